"""The local ports of a mesh's outbound Envoys: where they are, and what is behind each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from authz_server.agent.tunnel_files import leave_delegation
from authz_server.core.attributes import Protocol
from authz_server.core.spiffe import SpiffeId
from authz_server.demo.layout import Layout
from authz_server.demo.mesh_client import Endpoint
from authz_server.demo.plan import MeshPlan, Service, WayOut
from authz_server.envoy_config.bootstrap import Outbound
from authz_server.envoy_config.enforcement_point import SvidFiles, SvidFromAgent
from authz_server.envoy_config.http_outbound import HttpOutbound, OutboundHost
from authz_server.envoy_config.tcp_outbound import TcpOutbound
from authz_server.settings.addresses import TcpAddress

_FIRST_PORT: Final = 15_001


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPort:
    """A port that a plain client of `way` connects to: one for HTTP, one for each TCP service."""

    way: WayOut
    address: TcpAddress
    services: tuple[Service, ...]


def local_ports(layout: Layout, plan: MeshPlan) -> list[LocalPort]:
    """Return every local port of the mesh, in the order of the plan."""
    found: list[LocalPort] = []
    for way in plan.ways_out:
        services = [service for service in plan.services if service.name in way.services]
        http = tuple(s for s in services if s.protocol is not Protocol.TCP)
        groups = [http] if http else []
        groups += [(service,) for service in services if service.protocol is Protocol.TCP]
        for group in groups:
            address = TcpAddress(layout.loopback, _FIRST_PORT + len(found))
            found.append(LocalPort(way=way, address=address, services=group))
    return found


def outbound_of(
    ports: list[LocalPort],
    layout: Layout,
    svid: SvidFiles | SvidFromAgent,
    endpoint: Callable[[Service], Endpoint],
) -> Iterator[Outbound]:
    """Yield what one outbound Envoy listens for, at `ports` of one way out."""
    for port in ports:
        if any(service.protocol is Protocol.TCP for service in port.services):
            yield _tcp(port, layout, svid, endpoint)
        else:
            hosts = tuple(_host(service, endpoint(service)) for service in port.services)
            yield HttpOutbound(name=port.way.name, listen=port.address, hosts=hosts, svid=svid)


def delegation_directory(layout: Layout, way: WayOut, service: Service) -> Path:
    """Return where the delegation for the tunnels of `way` to `service` is left."""
    return layout.root / "delegation" / f"{way.name}-{service.name}"


def _tcp(
    port: LocalPort,
    layout: Layout,
    svid: SvidFiles | SvidFromAgent,
    endpoint: Callable[[Service], Endpoint],
) -> TcpOutbound:
    (service,) = port.services
    at = endpoint(service)
    tunnel = next(iter(service.tunnels), None)
    directory = delegation_directory(layout, port.way, service) if tunnel else None
    if directory is not None:
        leave_delegation(directory, None)  # Envoy does not start without the files
    return TcpOutbound(
        name=f"{port.way.name}-{service.name}",
        listen=port.address,
        upstream=TcpAddress(at.host, at.port),
        peer=SpiffeId.parse(at.spiffe_id),
        svid=svid,
        server_name=service.host,
        tunnel=tunnel,
        delegation=directory,
    )


def _host(service: Service, at: Endpoint) -> OutboundHost:
    return OutboundHost(
        host=service.host,
        upstream=TcpAddress(at.host, at.port),
        peer=SpiffeId.parse(at.spiffe_id),
    )
