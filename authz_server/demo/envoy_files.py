"""Write the bootstrap of every Envoy of a mesh: before each service, and beside who calls."""

from collections.abc import Iterator

from authz_server.demo.identities import MeshIdentity
from authz_server.demo.layout import Layout
from authz_server.demo.mesh_client import Endpoint
from authz_server.demo.plan import MeshPlan, Service, WayOut
from authz_server.demo.ways_out import local_ports, outbound_of
from authz_server.envoy_config.bootstrap import Outbound, render_bootstrap
from authz_server.envoy_config.enforcement_point import EnforcementPoint
from authz_server.settings.addresses import TcpAddress, UnixAddress

_FIRST_PORT = 10_443
# Many processes on perhaps two cores: a decision may wait for its turn longer than in production.
_PDP_TIMEOUT_S = 2.0


def write_envoy_files(layout: Layout, plan: MeshPlan, identity: MeshIdentity) -> None:
    """Write the bootstraps, and the service directory that leads to the Envoys."""
    for name, points, outbound in _envoys(layout, plan, identity):
        bootstrap = render_bootstrap(
            points, node=f"envoy-{name}", admin_socket=layout.admin(name), outbound=outbound
        )
        layout.envoy(name).write_text(bootstrap)
    layout.services.publish(
        {service.host: endpoint(layout, plan, service) for service in plan.services}
    )


def endpoint(layout: Layout, plan: MeshPlan, service: Service) -> Endpoint:
    """Return where the Envoy in front of `service` listens."""
    return Endpoint(
        host=layout.loopback,
        port=_FIRST_PORT + plan.services.index(service),
        spiffe_id=str(plan.spiffe_id(service.workload)),
    )


def _envoys(
    layout: Layout, plan: MeshPlan, identity: MeshIdentity
) -> Iterator[tuple[str, list[EnforcementPoint], list[Outbound]]]:
    for service in plan.services:
        yield service.name, [_point(layout, plan, identity, service)], []
    for way in plan.ways_out:
        yield way.name, [], _ways(layout, plan, identity, way)


def _point(
    layout: Layout, plan: MeshPlan, identity: MeshIdentity, service: Service
) -> EnforcementPoint:
    """Return the enforcement point of `service`; it proves itself as the service it guards."""
    at = endpoint(layout, plan, service)
    return EnforcementPoint(
        name=service.name,
        listen=TcpAddress(at.host, at.port),
        upstream=UnixAddress(service.socket or layout.socket(service.name)),
        protocol=service.protocol,
        workload_id=plan.spiffe_id(service.workload),
        audience=service.audience,
        bundle=service.bundle,
        resource=service.resource,
        labels=service.labels,
        domains=() if service.tunnels else (service.host,),
        tunnels=service.tunnels,
        strip_delegation=service.strip_delegation,
        pdp=identity.pdp,
        pdp_timeout_s=_PDP_TIMEOUT_S,
        pdp_tls=identity.pdp_tls(service),
        svid=identity.envoy_svid(service),
        access_log=layout.access_log(service.name),
    )


def _ways(layout: Layout, plan: MeshPlan, identity: MeshIdentity, way: WayOut) -> list[Outbound]:
    """Return what the outbound Envoy `way` listens for, as the workload it stands beside."""
    ports = [port for port in local_ports(layout, plan) if port.way == way]
    svid = identity.files(way.workload)
    return list(outbound_of(ports, layout, svid, lambda service: endpoint(layout, plan, service)))
