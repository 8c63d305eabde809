"""The listener of an enforcement point: mutual TLS, then HTTP or TCP, then the question."""

from authz_server.core.attributes import Protocol
from authz_server.envoy_config import ext_authz, tls
from authz_server.envoy_config.enforcement_point import EnforcementPoint
from authz_server.envoy_config.tree import Tree, address_tree, extension

# What one caller may hold open, and for how long: a revocation is noticed at the next check, and
# a TCP connection is checked once, so its life is bounded.
_HTTP_CONNECTION_MAX = "3600s"
_TCP_CONNECTION_MAX = "900s"
_IDLE_MAX = "300s"

_ACCESS_LOG = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "listener": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "peer": "%DOWNSTREAM_PEER_URI_SAN%",
    "response_flags": "%RESPONSE_FLAGS%",
    "upstream": "%UPSTREAM_HOST%",
    "duration_ms": "%DURATION%",
}
# Never the query, the body or a token: they may name people and hold secrets.
_HTTP_ACCESS_LOG = {
    "method": "%REQ(:METHOD)%",
    "host": "%REQ(:AUTHORITY)%",
    "path": "%PATH(NQ)%",
    "status": "%RESPONSE_CODE%",
    "details": "%RESPONSE_CODE_DETAILS%",
}
_DECISION_FIELDS = ("decision_id", "verdict", "reason", "bundle", "revision", "subject", "rules")


def listener_tree(point: EnforcementPoint) -> Tree:
    """Return `config.listener.v3.Listener` for `point`."""
    filters = _tcp_filters(point) if point.protocol is Protocol.TCP else [_http_manager(point)]
    return {
        "name": point.name,
        "address": address_tree(point.listen),
        "per_connection_buffer_limit_bytes": 1024 * 1024,
        "filter_chains": [{"transport_socket": tls.server_socket(point), "filters": filters}],
    }


def upstream_cluster_name(point: EnforcementPoint) -> str:
    """Return the name of the cluster that leads to the protected workload."""
    return f"{point.name}_upstream"


def _http_manager(point: EnforcementPoint) -> Tree:
    settings: Tree = {
        "stat_prefix": point.name,
        "access_log": [_access_log(point, _ACCESS_LOG | _HTTP_ACCESS_LOG, ext_authz.HTTP_FILTER)],
        # One reading of every path and host, for the filters and the workload alike.
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "strip_any_host_port": True,
        "strip_trailing_host_dot": True,
        # SECURITY: what the client says about itself is replaced, not appended to.
        # `internal_address_config` stays unset: even empty it makes loopback callers internal.
        "use_remote_address": True,
        "xff_num_trusted_hops": 0,
        # Kept where a proxy calls, it is believed from a trusted one alone (`core.callers`).
        "forward_client_cert_details": point.forwarded_certificate.value,
        "set_current_client_cert_details": {"uri": True, "dns": True, "subject": True},
        "early_header_mutation_extensions": [_drop_forged_headers()],
        "max_request_headers_kb": 48,
        "request_headers_timeout": "10s",
        "stream_idle_timeout": _IDLE_MAX,
        "common_http_protocol_options": {
            "headers_with_underscores_action": "REJECT_REQUEST",
            "max_headers_count": 100,
            "idle_timeout": _IDLE_MAX,
            "max_connection_duration": _HTTP_CONNECTION_MAX,
        },
        "http_protocol_options": {"accept_http_10": False},
        "http2_protocol_options": {
            "allow_connect": False,
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 64 * 1024,
            "initial_connection_window_size": 1024 * 1024,
        },
        "http_filters": _http_filters(point),
        "route_config": _routes(point),
    }
    return extension(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        settings,
    )


def _http_filters(point: EnforcementPoint) -> list[Tree]:
    """Return the filters in order.

    SECURITY: none after ext_authz may change path, host or route.
    """
    router = extension(
        "envoy.filters.http.router",
        "filters.http.router.v3.Router",
        {"reject_connect_request_early_data": True},
    )
    if point.protocol is Protocol.MCP:
        asking = ext_authz.http_filter(point, namespaces=[ext_authz.MCP_FILTER])
        return [ext_authz.mcp_filter(), asking, router]
    return [ext_authz.http_filter(point, namespaces=[]), router]


def _routes(point: EnforcementPoint) -> Tree:
    route: Tree = {"cluster": upstream_cluster_name(point), "timeout": "30s"}
    if point.protocol is Protocol.MCP:
        # A tool may stream its answer for as long as it works; silence still ends it.
        route |= {"timeout": "0s", "idle_timeout": _IDLE_MAX}
    host: Tree = {
        "name": point.name,
        "domains": list(point.domains),
        "routes": [{"match": {"prefix": "/"}, "route": route}],
        "typed_per_filter_config": ext_authz.http_route_settings(point),
    }
    return {"name": point.name, "virtual_hosts": [host]}


def _drop_forged_headers() -> Tree:
    """Return the mutation that takes `x-authz-*` off every request before any filter sees it."""
    mutation = {"remove_on_match": {"key_matcher": {"prefix": "x-authz-", "ignore_case": True}}}
    return extension(
        "envoy.http.early_header_mutation.header_mutation",
        "http.early_header_mutation.header_mutation.v3.HeaderMutation",
        {"mutations": [mutation]},
    )


def _tcp_filters(point: EnforcementPoint) -> list[Tree]:
    """Return question, then proxy.

    SECURITY: without `ON_DOWNSTREAM_DATA` a server that speaks first has a connection, and its
    greeting is on the way, before the PDP is asked.
    """
    proxy: Tree = {
        "stat_prefix": point.name,
        "cluster": upstream_cluster_name(point),
        "upstream_connect_mode": "ON_DOWNSTREAM_DATA",
        "max_early_data_bytes": 0,
        "idle_timeout": _IDLE_MAX,
        "max_downstream_connection_duration": _TCP_CONNECTION_MAX,
        "access_log": [_access_log(point, _ACCESS_LOG, ext_authz.NETWORK_FILTER)],
    }
    tcp_proxy = extension(
        "envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", proxy
    )
    return [ext_authz.network_filter(point), tcp_proxy]


def _access_log(point: EnforcementPoint, fields: dict[str, str], namespace: str) -> Tree:
    decision = {name: f"%DYNAMIC_METADATA({namespace}:{name})%" for name in _DECISION_FIELDS}
    log_format = {"log_format": {"json_format": fields | decision}}
    if point.access_log is None:
        return extension(
            "envoy.access_loggers.stdout",
            "access_loggers.stream.v3.StdoutAccessLog",
            log_format,
        )
    return extension(
        "envoy.access_loggers.file",
        "access_loggers.file.v3.FileAccessLog",
        {"path": str(point.access_log), **log_format},
    )
