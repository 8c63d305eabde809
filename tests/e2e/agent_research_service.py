"""The research agent of docs/examples as a service of the demonstration's mesh."""

from starlette.types import ASGIApp

from authz_server.demo.mesh_client import ServiceDirectory, mesh_http_client
from authz_server.demo.services.serving import Arguments, run
from docs.examples.two_agents import research_agent


def application(arguments: Arguments) -> ASGIApp:
    """Return the agent's application, its client on the mesh's mutual TLS."""
    services = ServiceDirectory(arguments.directory)
    return research_agent(mesh_http_client(arguments.svid, services, {}))


if __name__ == "__main__":
    run(application)
