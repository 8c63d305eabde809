"""The listener of an enforcement point: mutual TLS, then HTTP or TCP, then the question."""

from datetime import timedelta

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import (
    HeaderMutation as HeaderMutationRule,
)
from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutationRemoveOnMatch
from envoy_data_plane.envoy.config.core.v3 import (
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    HttpProtocolOptionsHeadersWithUnderscoresAction,
    TypedExtensionConfig,
)
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
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.listener.tls_inspector.v3 import TlsInspector
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerForwardClientCertDetails,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpConnectionManagerSetCurrentClientCertDetails,
    HttpFilter,
)
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy.v3 import (
    TcpProxy,
    UpstreamConnectMode,
)
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    HeaderMutation,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher

from authz_server.core.attributes import Protocol
from authz_server.envoy_config import ext_authz, tls, tunnel
from authz_server.envoy_config.access_log import access_log
from authz_server.envoy_config.addresses import bound
from authz_server.envoy_config.clusters import upstream_cluster_name
from authz_server.envoy_config.enforcement_point import EnforcementPoint
from authz_server.envoy_config.messages import packed

# What one caller may hold open, and for how long: a revocation is noticed at the next check, and
# a TCP connection is checked once, so its life is bounded.
_HTTP_CONNECTION_MAX = timedelta(hours=1)
_TCP_CONNECTION_MAX = timedelta(minutes=15)
_IDLE_MAX = timedelta(minutes=5)
_ANSWER_MAX = timedelta(seconds=30)
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
    forwarded = HttpConnectionManagerForwardClientCertDetails[point.forwarded_certificate.value]
    settings = HttpConnectionManager(
        stat_prefix=point.name,
        access_log=[access_log(point)],
        # One reading of every path and host, for the filters and the workload alike.
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=(
            HttpConnectionManagerPathWithEscapedSlashesAction.REJECT_REQUEST
        ),
        # SECURITY: the port of a tunnel is a part of where it leads.
        strip_any_host_port=None if point.tunnels else True,
        strip_trailing_host_dot=True,
        # SECURITY: what the client says about itself is replaced, not appended to.
        # `internal_address_config` stays unset: even empty it makes loopback callers internal.
        use_remote_address=True,
        xff_num_trusted_hops=0,
        # Kept where a proxy calls, it is believed from a trusted one alone (`core.callers`).
        forward_client_cert_details=forwarded,
        set_current_client_cert_details=HttpConnectionManagerSetCurrentClientCertDetails(
            uri=True, dns=True, subject=True
        ),
        early_header_mutation_extensions=[_drop_forged_headers()],
        max_request_headers_kb=48,
        request_headers_timeout=timedelta(seconds=10),
        stream_idle_timeout=_IDLE_MAX,
        common_http_protocol_options=HttpProtocolOptions(
            headers_with_underscores_action=(
                HttpProtocolOptionsHeadersWithUnderscoresAction.REJECT_REQUEST
            ),
            max_headers_count=100,
            idle_timeout=_IDLE_MAX,
            max_connection_duration=_HTTP_CONNECTION_MAX,
        ),
        http_protocol_options=Http1ProtocolOptions(accept_http_10=False),
        http2_protocol_options=Http2ProtocolOptions(
            allow_connect=False,
            max_concurrent_streams=100,
            initial_stream_window_size=64 * 1024,
            initial_connection_window_size=1024 * 1024,
        ),
        upgrade_configs=tunnel.upgrades(point),
        http_filters=_http_filters(point),
        route_config=_routes(point),
    )
    return Filter(
        name="envoy.filters.network.http_connection_manager", typed_config=packed(settings)
    )


def _http_filters(point: EnforcementPoint) -> list[HttpFilter]:
    """Return the filters in order.

    SECURITY: none after ext_authz may change path, host or route.
    """
    settings = Router(reject_connect_request_early_data=True)
    router = HttpFilter(name="envoy.filters.http.router", typed_config=packed(settings))
    if point.protocol is Protocol.MCP:
        asking = ext_authz.http_filter(point, namespaces=[ext_authz.MCP_FILTER])
        return [ext_authz.mcp_filter(), asking, router]
    return [ext_authz.http_filter(point, namespaces=[]), router]


def _routes(point: EnforcementPoint) -> RouteConfiguration:
    if point.tunnels:
        return tunnel.routes(point, idle=_IDLE_MAX, duration=_TCP_CONNECTION_MAX)
    action = RouteAction(cluster=upstream_cluster_name(point), timeout=_ANSWER_MAX)
    if point.protocol in {Protocol.MCP, Protocol.A2A}:
        # A tool or an agent may stream its answer for as long as it works; silence still ends it.
        action = RouteAction(
            cluster=upstream_cluster_name(point), timeout=timedelta(0), idle_timeout=_IDLE_MAX
        )
    host = VirtualHost(
        name=point.name,
        domains=list(point.domains),
        routes=[Route(match=RouteMatch(prefix="/"), route=action)],
        typed_per_filter_config=ext_authz.http_route_settings(point),
    )
    return RouteConfiguration(name=point.name, virtual_hosts=[host])


def _drop_forged_headers() -> TypedExtensionConfig:
    """Return the mutation that takes `x-authz-*` off every request before any filter sees it."""
    forged = StringMatcher(prefix="x-authz-", ignore_case=True)
    rule = HeaderMutationRule(remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=forged))
    return TypedExtensionConfig(
        name="envoy.http.early_header_mutation.header_mutation",
        typed_config=packed(HeaderMutation(mutations=[rule])),
    )


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
        idle_timeout=_IDLE_MAX,
        max_downstream_connection_duration=_TCP_CONNECTION_MAX,
        access_log=[access_log(point)],
    )
    proxy = Filter(name="envoy.filters.network.tcp_proxy", typed_config=packed(settings))
    return [ext_authz.network_filter(point), proxy]
