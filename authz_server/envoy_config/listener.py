"""The listener of an enforcement point: mutual TLS, then HTTP or TCP, then the question."""

from datetime import timedelta

from envoy_data_plane.envoy.config.listener.v3 import (
    Filter,
    FilterChain,
    FilterChainMatch,
    Listener,
    ListenerFilter,
)
from envoy_data_plane.envoy.config.route.v3 import (
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.listener.tls_inspector.v3 import TlsInspector
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManagerForwardClientCertDetails,
    HttpFilter,
)
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy.v3 import (
    TcpProxy,
    UpstreamConnectMode,
)

from authz_server.core.attributes import Protocol
from authz_server.envoy_config import ext_authz, tls, tunnel
from authz_server.envoy_config.access_log import access_log
from authz_server.envoy_config.addresses import bound
from authz_server.envoy_config.clusters import upstream_cluster_name
from authz_server.envoy_config.enforcement_point import EnforcementPoint
from authz_server.envoy_config.http_manager import IDLE_MAX, http_manager
from authz_server.envoy_config.messages import packed

# A TCP connection is checked once, so its life bounds how late a revocation is noticed.
_TCP_CONNECTION_MAX = timedelta(minutes=15)
_ANSWER_MAX = timedelta(seconds=30)
# A body is judged when it is there, at most 256 KiB of it: a client that trickles it is cut off.
_BODY_MAX = timedelta(seconds=30)
_BUFFER_BYTES_MAX = 1024 * 1024


def listener(point: EnforcementPoint) -> Listener:
    """Return the listener of `point`, filters and routes included."""
    named = point.is_raw and bool(point.domains)
    chain = FilterChain(
        filter_chain_match=FilterChainMatch(server_names=list(point.domains)) if named else None,
        transport_socket=tls.server_socket(point),
        filters=_tcp_filters(point) if point.is_raw else [_http_manager(point)],
    )
    return Listener(
        name=point.name,
        address=bound(point.listen),
        per_connection_buffer_limit_bytes=_BUFFER_BYTES_MAX,
        # Without it no server name is known when the chain is chosen, and none would match.
        listener_filters=[_tls_inspector()] if named else [],
        filter_chains=[chain],
    )


def _tls_inspector() -> ListenerFilter:
    return ListenerFilter(
        name="envoy.filters.listener.tls_inspector", typed_config=packed(TlsInspector())
    )


def _http_manager(point: EnforcementPoint) -> Filter:
    return http_manager(
        point.name,
        log=access_log(point),
        forwarded=HttpConnectionManagerForwardClientCertDetails[point.forwarded_certificate.value],
        filters=_http_filters(point),
        routes=_routes(point),
        upgrades=tunnel.upgrades(point),
        request_timeout=None if point.tunnels or point.streams else _BODY_MAX,
    )


def _http_filters(point: EnforcementPoint) -> list[HttpFilter]:
    """Return the filters in order.

    SECURITY: none after ext_authz may change path, host or route.
    """
    if point.protocol is Protocol.MCP:
        asking = ext_authz.http_filter(point, namespaces=[ext_authz.MCP_FILTER])
        return [ext_authz.mcp_filter(), asking]
    return [ext_authz.http_filter(point, namespaces=[])]


def _routes(point: EnforcementPoint) -> RouteConfiguration:
    if point.tunnels:
        return tunnel.routes(point, idle=IDLE_MAX, duration=_TCP_CONNECTION_MAX)
    action = RouteAction(cluster=upstream_cluster_name(point), timeout=_ANSWER_MAX)
    if point.protocol in {Protocol.MCP, Protocol.A2A}:
        # A tool or an agent may stream its answer for as long as it works; silence still ends it.
        action = RouteAction(
            cluster=upstream_cluster_name(point), timeout=timedelta(0), idle_timeout=IDLE_MAX
        )
    host = VirtualHost(
        name=point.name,
        domains=list(point.domains),
        routes=[*_streams(point), Route(match=RouteMatch(prefix="/"), route=action)],
        typed_per_filter_config=ext_authz.http_route_settings(point),
    )
    return RouteConfiguration(name=point.name, virtual_hosts=[host])


def _streams(point: EnforcementPoint) -> list[Route]:
    action = RouteAction(
        cluster=upstream_cluster_name(point), timeout=timedelta(0), idle_timeout=IDLE_MAX
    )
    return [
        Route(
            match=RouteMatch(path=f"/{method}"),
            route=action,
            typed_per_filter_config=ext_authz.stream_route_settings(point),
        )
        for method in point.streams
    ]


def _tcp_filters(point: EnforcementPoint) -> list[Filter]:
    """Return question, then proxy.

    SECURITY: without `ON_DOWNSTREAM_DATA` a server that speaks first has a connection, and its
    greeting is on the way, before the PDP is asked.
    """
    settings = TcpProxy(
        stat_prefix=point.name,
        cluster=upstream_cluster_name(point),
        upstream_connect_mode=UpstreamConnectMode.ON_DOWNSTREAM_DATA,
        max_early_data_bytes=0,
        idle_timeout=IDLE_MAX,
        max_downstream_connection_duration=_TCP_CONNECTION_MAX,
        access_log=[access_log(point)],
    )
    proxy = Filter(name="envoy.filters.network.tcp_proxy", typed_config=packed(settings))
    return [ext_authz.network_filter(point), proxy]
