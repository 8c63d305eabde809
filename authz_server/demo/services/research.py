"""The research agent: takes a task from another agent and works on it with what it was granted.

It never makes or alters a delegation: the headers that came with the task go onward as they are,
and prove by themselves how far it may go. What a model would decide to do arrives as a list of
calls, so that the story can also have the model led astray.
"""

from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from authz_server.demo.agent_calls import AgentRuntime
from authz_server.demo.calls import Call
from authz_server.demo.mesh_client import ServiceDirectory
from authz_server.demo.services.serving import Arguments, run

_DELEGATION_HEADERS: Final = ("txn-token", "delegation-chain")


def application(arguments: Arguments) -> ASGIApp:
    """Return the agent's application: `POST /tasks`."""
    runtime = AgentRuntime(arguments.svid, ServiceDirectory(arguments.directory))

    async def task(request: Request) -> JSONResponse:
        delegation = {
            name: request.headers[name] for name in _DELEGATION_HEADERS if name in request.headers
        }
        calls = [Call(**call) for call in (await request.json())["calls"]]
        outcomes = [await runtime.perform(call, delegation) for call in calls]
        return JSONResponse({"outcomes": [outcome.to_json() for outcome in outcomes]})

    return Starlette(routes=[Route("/tasks", task, methods=["POST"])])


if __name__ == "__main__":
    run(application)
