"""The HTTP connection manager, hardened the same way towards callers and towards local clients."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog
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
from envoy_data_plane.envoy.config.listener.v3 import Filter
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerForwardClientCertDetails,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpConnectionManagerSetCurrentClientCertDetails,
    HttpConnectionManagerUpgradeConfig,
    HttpFilter,
)
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    HeaderMutation,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher

from authz_server.envoy_config.messages import packed

# What one caller may hold open, and for how long: a revocation is noticed at the next check.
CONNECTION_MAX: Final = timedelta(hours=1)
IDLE_MAX: Final = timedelta(minutes=5)


def http_manager(  # noqa: PLR0913 - one keyword for each thing that differs
    name: str,
    *,
    log: AccessLog,
    forwarded: HttpConnectionManagerForwardClientCertDetails,
    filters: Sequence[HttpFilter],
    routes: RouteConfiguration,
    upgrades: Sequence[HttpConnectionManagerUpgradeConfig] = (),
    request_timeout: timedelta | None = None,
) -> Filter:
    """Return the manager that runs `filters`, then routes.

    `upgrades` are what a connection may become; with one, the port of a host counts. Within
    `request_timeout` a request has to be there with its body; None: it may be a stream.

    SECURITY: the last of `filters` asks the PDP where one is asked; none may stand behind it that
    changes path, host or route.
    """
    router = Router(reject_connect_request_early_data=True)
    settings = HttpConnectionManager(
        stat_prefix=name,
        access_log=[log],
        # One reading of every path and host, for the filters and the workload alike.
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=(
            HttpConnectionManagerPathWithEscapedSlashesAction.REJECT_REQUEST
        ),
        # SECURITY: the port of a tunnel is a part of where it leads.
        strip_any_host_port=None if upgrades else True,
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
        request_timeout=request_timeout,
        stream_idle_timeout=IDLE_MAX,
        common_http_protocol_options=HttpProtocolOptions(
            headers_with_underscores_action=(
                HttpProtocolOptionsHeadersWithUnderscoresAction.REJECT_REQUEST
            ),
            max_headers_count=100,
            idle_timeout=IDLE_MAX,
            max_connection_duration=CONNECTION_MAX,
        ),
        http_protocol_options=Http1ProtocolOptions(accept_http_10=False),
        http2_protocol_options=Http2ProtocolOptions(
            allow_connect=False,
            max_concurrent_streams=100,
            initial_stream_window_size=64 * 1024,
            initial_connection_window_size=1024 * 1024,
        ),
        upgrade_configs=list(upgrades),
        http_filters=[
            *filters,
            HttpFilter(name="envoy.filters.http.router", typed_config=packed(router)),
        ],
        route_config=routes,
    )
    return Filter(
        name="envoy.filters.network.http_connection_manager", typed_config=packed(settings)
    )


def _drop_forged_headers() -> TypedExtensionConfig:
    """Return the mutation that takes `x-authz-*` off every request before any filter sees it."""
    forged = StringMatcher(prefix="x-authz-", ignore_case=True)
    rule = HeaderMutationRule(remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=forged))
    return TypedExtensionConfig(
        name="envoy.http.early_header_mutation.header_mutation",
        typed_config=packed(HeaderMutation(mutations=[rule])),
    )
