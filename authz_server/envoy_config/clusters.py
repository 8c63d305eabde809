"""The clusters of an Envoy but for the PDP's: the workload, peers, the agent that gives SVIDs."""

from datetime import timedelta
from pathlib import Path

from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.core.v3 import (
    Http2ProtocolOptions,
    KeepaliveSettings,
    TransportSocket,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.google.protobuf import Any

from authz_server.core.attributes import Protocol
from authz_server.envoy_config import tls
from authz_server.envoy_config.addresses import reached
from authz_server.envoy_config.enforcement_point import Address, EnforcementPoint, is_name
from authz_server.envoy_config.messages import packed
from authz_server.settings.addresses import UnixAddress

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

_CONNECT = timedelta(seconds=1)


def upstream_cluster_name(point: EnforcementPoint) -> str:
    """Return the name of the cluster that leads to the protected workload."""
    return f"{point.name}_upstream"


def upstream_cluster(point: EnforcementPoint) -> Cluster:
    """Return the cluster of the protected workload."""
    name = upstream_cluster_name(point)
    grpc = point.protocol is Protocol.GRPC
    alpn = ["h2"] if grpc else ["http/1.1"]
    return Cluster(
        name=name,
        type=discovery(point.upstream),
        connect_timeout=_CONNECT,
        load_assignment=endpoints(name, point.upstream),
        typed_extension_protocol_options=http2() if grpc else {},
        transport_socket=(
            tls.peer_socket(
                point.upstream_peer,
                point.svid,
                alpn=[] if point.protocol is Protocol.TCP else alpn,
            )
            if point.upstream_peer
            else None
        ),
    )


def agent_cluster(agent: Path) -> Cluster:
    """Return the cluster of the agent whose socket is `agent`."""
    return Cluster(
        name=tls.AGENT_CLUSTER,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=_CONNECT,
        load_assignment=endpoints(tls.AGENT_CLUSTER, UnixAddress(agent)),
        typed_extension_protocol_options=http2(),
    )


def peer_cluster(
    name: str, address: Address, *, socket: TransportSocket, options: dict[str, Any]
) -> Cluster:
    """Return the cluster of another Envoy at `address`, spoken to through `socket`."""
    return Cluster(
        name=name,
        type=discovery(address),
        connect_timeout=_CONNECT,
        load_assignment=endpoints(name, address),
        typed_extension_protocol_options=options,
        transport_socket=socket,
    )


def discovery(*addresses: Address) -> ClusterDiscoveryType:
    """Return how Envoy finds `addresses`: as they stand, or every address of their names."""
    if any(is_name(address) for address in addresses):
        return ClusterDiscoveryType.STRICT_DNS
    return ClusterDiscoveryType.STATIC


def endpoints(cluster: str, *addresses: Address) -> ClusterLoadAssignment:
    """Return `addresses` as equal endpoints of the cluster of that name."""
    endpoints = [LbEndpoint(endpoint=Endpoint(address=reached(address))) for address in addresses]
    return ClusterLoadAssignment(
        cluster_name=cluster, endpoints=[LocalityLbEndpoints(lb_endpoints=endpoints)]
    )


def keepalive() -> KeepaliveSettings:
    """Return how the death of an HTTP/2 peer is noticed between requests."""
    return KeepaliveSettings(interval=timedelta(seconds=30), timeout=timedelta(seconds=5))


def http2() -> dict[str, Any]:
    """Return options for an HTTP/2 upstream whose death is noticed between requests too."""
    http2 = Http2ProtocolOptions(connection_keepalive=keepalive())
    explicit = HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=http2)
    return {HTTP_OPTIONS: packed(HttpProtocolOptions(explicit_http_config=explicit))}
