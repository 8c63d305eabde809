"""The filters that ask the PDP: `envoy.filters.http.ext_authz` and its TCP sibling.

Field by field, what must hold for a denial to be a denial:

- `failure_mode_allow: false`: no answer is no access, whatever the reason;
- the whole body or nothing (`allow_partial_message: false`), as bytes: text mode replaces what is
  not UTF-8, and the PDP would judge other bytes than the upstream gets;
- `encode_raw_headers`: one entry per field line, so that a header sent twice is seen twice;
- `deny_at_disable`: switching the filter off at run time denies.
"""

from collections.abc import Sequence

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutationRules
from envoy_data_plane.envoy.config.core.v3 import (
    ApiVersion,
    RuntimeFeatureFlag,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import (
    BufferSettings,
    CheckSettings,
    ExtAuthz,
    ExtAuthzPerRoute,
)
from envoy_data_plane.envoy.extensions.filters.http.mcp.v3 import Mcp, McpTrafficMode
from envoy_data_plane.envoy.extensions.filters.network.ext_authz.v3 import (
    ExtAuthz as NetworkExtAuthz,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpFilter,
)
from envoy_data_plane.envoy.type.matcher.v3 import (
    ListStringMatcher,
    RegexMatcher,
    StringMatcher,
)
from envoy_data_plane.envoy.type.v3 import HttpStatus, StatusCode
from envoy_data_plane.google.protobuf import Any

from authz_server.core import limits
from authz_server.core.request import NODE_LABEL
from authz_server.envoy_config.enforcement_point import EnforcementPoint
from authz_server.envoy_config.messages import packed
from authz_server.envoy_config.pdp_cluster import pdp_service

HTTP_FILTER = "envoy.filters.http.ext_authz"
NETWORK_FILTER = "envoy.filters.network.ext_authz"
MCP_FILTER = "envoy.filters.http.mcp"

# Twice what the PDP ever sends (`limits.DENIED_BODY_BYTES_MAX`).
_DENIED_BODY_BYTES_MAX = 2 * limits.DENIED_BODY_BYTES_MAX

# The node's metadata under this key become `destination.labels` of each check. A raw TCP listener
# has a key of its own, because its filter has no context extensions.
NODE_LABELS_KEY = "authz"


def node_metadata(points: Sequence[EnforcementPoint], *, node: str) -> dict[str, dict[str, str]]:
    """Return the node's metadata: its name, and for each raw TCP point what stands behind it."""
    name = {NODE_LABEL: node}
    told = {_labels_key(point): name | point.context_extensions for point in points if point.is_raw}
    return {NODE_LABELS_KEY: name, **told}


def http_filter(point: EnforcementPoint, *, namespaces: list[str]) -> HttpFilter:
    """Return the HTTP filter. `namespaces` are those of filters that really run before it."""
    settings = ExtAuthz(
        transport_api_version=ApiVersion.V3,
        stat_prefix="pdp",
        grpc_service=pdp_service(point),
        failure_mode_allow=False,
        include_peer_certificate=True,
        include_tls_session=True,
        bootstrap_metadata_labels_key=NODE_LABELS_KEY,
        status_on_error=HttpStatus(code=StatusCode.ServiceUnavailable),
        validate_mutations=True,
        encode_raw_headers=True,
        # The body of a CONNECT is the tunnel: Envoy would wait for its end before it asks.
        with_request_body=None if point.tunnels else _whole_body(),
        # Secrets the PDP has no use for. Delegation and Authorization must reach it.
        disallowed_headers=ListStringMatcher(
            patterns=[StringMatcher(exact="cookie", ignore_case=True)]
        ),
        decoder_header_mutation_rules=HeaderMutationRules(
            disallow_all=True,
            allow_expression=RegexMatcher(regex=_mutable_headers(point)),
        ),
        enable_dynamic_metadata_ingestion=True,
        emit_filter_state_stats=True,
        charge_cluster_response_stats=True,
        max_denied_response_body_bytes=_DENIED_BODY_BYTES_MAX,
        enforce_response_header_limits=True,
        deny_at_disable=RuntimeFeatureFlag(default_value=True, runtime_key="authz.deny_at_disable"),
        metadata_context_namespaces=list(namespaces),
    )
    return HttpFilter(name=HTTP_FILTER, typed_config=packed(settings))


def http_route_settings(point: EnforcementPoint) -> dict[str, Any]:
    """Return the per-route settings that tell the PDP which workload stands behind the route."""
    told = CheckSettings(context_extensions=point.context_extensions)
    return {HTTP_FILTER: packed(ExtAuthzPerRoute(check_settings=told))}


def stream_route_settings(point: EnforcementPoint) -> dict[str, Any]:
    """Return the settings of a route to a gRPC method whose client streams: asked at once.

    Envoy would wait for the end of the stream before it asks, and a client that waits for an answer
    in between waits for ever. The PDP is told no message, so it can bind no approval to one.
    """
    # Settings of a route are laid over those of its host, so what is not so must be said.
    told = CheckSettings(
        context_extensions=point.context_extensions | {"body": "none"},
        disable_request_body_buffering=True,
    )
    return {HTTP_FILTER: packed(ExtAuthzPerRoute(check_settings=told))}


def _whole_body() -> BufferSettings:
    return BufferSettings(
        max_request_bytes=limits.BODY_BYTES_MAX, allow_partial_message=False, pack_as_bytes=True
    )


def network_filter(point: EnforcementPoint) -> Filter:
    """Return the TCP filter: one check for each connection, at its first byte."""
    settings = NetworkExtAuthz(
        transport_api_version=ApiVersion.V3,
        stat_prefix="pdp",
        grpc_service=pdp_service(point),
        failure_mode_allow=False,
        include_peer_certificate=True,
        include_tls_session=True,
        bootstrap_metadata_labels_key=_labels_key(point),
        send_tls_alert_on_denial=True,
    )
    return Filter(name=NETWORK_FILTER, typed_config=packed(settings))


def mcp_filter() -> HttpFilter:
    """Return the filter that rejects what is not MCP before the PDP is asked.

    A second opinion, not the judge: it admits GET and DELETE without a look, and compares
    headers with the body for one protocol version only. The PDP parses the body itself.
    """
    settings = Mcp(
        traffic_mode=McpTrafficMode.REJECT_NO_MCP,
        reject_duplicate_keys=True,
        max_request_body_size=limits.BODY_BYTES_MAX,
    )
    return HttpFilter(name=MCP_FILTER, typed_config=packed(settings, attribute_source="VERIFY"))


def _labels_key(point: EnforcementPoint) -> str:
    return f"{NODE_LABELS_KEY}.{point.name}"


def _mutable_headers(point: EnforcementPoint) -> str:
    """Return which request headers an answer may change, as an RE2 expression.

    Removal obeys the same rule: without the two names an allowed `strip_delegation` is dropped
    silently and the workload sees its caller's delegation.
    """
    if point.strip_delegation:
        return "x-authz-.*|txn-token|delegation-chain"
    return "x-authz-.*"
