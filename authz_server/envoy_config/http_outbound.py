"""The outbound end for HTTP: a local port where mutual TLS is done for a plain client.

An agent speaks plain HTTP/1.1 or HTTP/2 to a loopback port or a Unix socket, with the host it means
in `Host`. Envoy proves this workload's SVID to the one Envoy that stands for that host, which must
prove exactly the SPIFFE ID configured for it. A host that is not configured is answered 404.

SECURITY: `Txn-Token` and `Delegation-Chain` are worth the subject's authority to whoever receives
them. They leave through this port only towards a host that is listed, and only after the peer has
proved its name; who may use the port acts as this workload, so that it is never bound to a network.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import (
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    TrafficDirection,
)
from envoy_data_plane.envoy.config.listener.v3 import FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import (
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManagerForwardClientCertDetails,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsAutoHttpConfig,
)
from envoy_data_plane.google.protobuf import Any

from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import SpiffeId
from authz_server.envoy_config import tls
from authz_server.envoy_config.access_log import outbound_access_log
from authz_server.envoy_config.addresses import bound
from authz_server.envoy_config.clusters import HTTP_OPTIONS, keepalive, peer_cluster
from authz_server.envoy_config.enforcement_point import (
    Address,
    SvidFiles,
    SvidFromAgent,
    check_name,
    is_host,
)
from authz_server.envoy_config.http_manager import IDLE_MAX, http_manager
from authz_server.envoy_config.messages import packed

_BUFFER_BYTES_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundHost:
    """One host that local clients may call: the Envoy at `upstream`, which must prove `peer`."""

    host: str
    upstream: Address
    peer: SpiffeId


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOutbound:
    """A way to HTTP workloads behind other Envoys, for the plain clients of one workload.

    `listen` is on this machine; `svid` is what this Envoy proves to each of `hosts`.
    """

    name: str
    listen: Address
    hosts: tuple[OutboundHost, ...]
    svid: SvidFiles | SvidFromAgent
    access_log: Path | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.listen.is_local:
            # SECURITY: it lends out this workload's identity.
            raise InvalidValueError(
                f"outbound `{self.name}` listens at `{self.listen}`, which is not on this machine"
            )
        names = [host.host for host in self.hosts]
        if not names or len(set(names)) != len(names):
            raise InvalidValueError(f"outbound `{self.name}` needs hosts, each named once")
        for name in names:
            if not is_host(name):
                raise InvalidValueError(
                    f"outbound `{self.name}`: `{name}` is not one lower-case host without port"
                )

    @property
    def agents(self) -> frozenset[Path]:
        """The agents that it takes SVIDs from; one at most."""
        return frozenset({self.svid.agent} if isinstance(self.svid, SvidFromAgent) else ())


def listener(way: HttpOutbound) -> Listener:
    """Return the local listener of `way`."""
    manager = http_manager(
        way.name,
        log=outbound_access_log(way.access_log),
        # A plain client has no certificate, and its word about one is dropped.
        forwarded=HttpConnectionManagerForwardClientCertDetails.SANITIZE,
        filters=[],
        routes=RouteConfiguration(
            name=way.name, virtual_hosts=[_virtual_host(way, host) for host in way.hosts]
        ),
    )
    return Listener(
        name=way.name,
        address=bound(way.listen),
        per_connection_buffer_limit_bytes=_BUFFER_BYTES_MAX,
        traffic_direction=TrafficDirection.OUTBOUND,
        filter_chains=[FilterChain(filters=[manager])],
    )


def clusters(way: HttpOutbound) -> list[Cluster]:
    """Return the cluster of each host of `way`."""
    return [_cluster(way, host) for host in way.hosts]


def _virtual_host(way: HttpOutbound, host: OutboundHost) -> VirtualHost:
    # Answers may be streams that last as long as a tool works; silence ends them.
    action = RouteAction(
        cluster=_cluster_name(way, host), timeout=timedelta(0), idle_timeout=IDLE_MAX
    )
    return VirtualHost(
        name=host.host,
        domains=[host.host],
        routes=[Route(match=RouteMatch(prefix="/"), route=action)],
    )


def _cluster(way: HttpOutbound, host: OutboundHost) -> Cluster:
    socket = tls.peer_socket(
        host.peer, way.svid, alpn=["h2", "http/1.1"], server_name=_server_name(host)
    )
    return peer_cluster(
        _cluster_name(way, host), host.upstream, socket=socket, options=_as_negotiated()
    )


def _server_name(host: OutboundHost) -> str | None:
    """Return the name for TLS; RFC 6066 §3 has none for an address."""
    is_address = host.host.startswith("[") or host.host.replace(".", "").isdigit()
    return None if is_address else host.host


def _cluster_name(way: HttpOutbound, host: OutboundHost) -> str:
    return f"{way.name}_{host.host}"


def _as_negotiated() -> dict[str, Any]:
    """Return options for a peer that is spoken to as it chooses by ALPN, HTTP/2 first."""
    auto = HttpProtocolOptionsAutoHttpConfig(
        http_protocol_options=Http1ProtocolOptions(),
        http2_protocol_options=Http2ProtocolOptions(connection_keepalive=keepalive()),
    )
    return {HTTP_OPTIONS: packed(HttpProtocolOptions(auto_config=auto))}
