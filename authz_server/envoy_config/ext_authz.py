"""The filters that ask the PDP: `envoy.filters.http.ext_authz` and its TCP sibling.

Field by field, what must hold for a denial to be a denial:

- `failure_mode_allow: false`: no answer is no access, whatever the reason;
- the whole body or nothing (`allow_partial_message: false`), as bytes: text mode replaces what is
  not UTF-8, and the PDP would judge other bytes than the upstream gets;
- `encode_raw_headers`: one entry per field line, so that a header sent twice is seen twice;
- `deny_at_disable`: switching the filter off at run time denies.
"""

from authz_server.core import limits
from authz_server.envoy_config.enforcement_point import EnforcementPoint
from authz_server.envoy_config.tree import Tree, extension, seconds, typed

HTTP_FILTER = "envoy.filters.http.ext_authz"
NETWORK_FILTER = "envoy.filters.network.ext_authz"
MCP_FILTER = "envoy.filters.http.mcp"

# Twice what the PDP ever sends (`limits.DENIED_BODY_BYTES_MAX`).
_DENIED_BODY_BYTES_MAX = 2 * limits.DENIED_BODY_BYTES_MAX

# The node's metadata under this key become `destination.labels` of each check.
NODE_LABELS_KEY = "authz"


def http_filter(point: EnforcementPoint, *, namespaces: list[str]) -> Tree:
    """Return the HTTP filter. `namespaces` are those of filters that really run before it."""
    settings: Tree = {
        **_common(point),
        "status_on_error": {"code": "ServiceUnavailable"},
        "validate_mutations": True,
        "encode_raw_headers": True,
        "with_request_body": {
            "max_request_bytes": limits.BODY_BYTES_MAX,
            "allow_partial_message": False,
            "pack_as_bytes": True,
        },
        # Secrets the PDP has no use for. Delegation and Authorization must reach it.
        "disallowed_headers": {"patterns": [{"exact": "cookie", "ignore_case": True}]},
        "decoder_header_mutation_rules": {
            "disallow_all": True,
            "allow_expression": {"regex": _mutable_headers(point)},
        },
        "enable_dynamic_metadata_ingestion": True,
        "emit_filter_state_stats": True,
        "charge_cluster_response_stats": True,
        "max_denied_response_body_bytes": _DENIED_BODY_BYTES_MAX,
        "enforce_response_header_limits": True,
        "deny_at_disable": {
            "default_value": {"value": True},
            "runtime_key": "authz.deny_at_disable",
        },
    }
    if namespaces:
        settings["metadata_context_namespaces"] = list(namespaces)
    return extension(HTTP_FILTER, "filters.http.ext_authz.v3.ExtAuthz", settings)


def http_route_settings(point: EnforcementPoint) -> Tree:
    """Return the per-route settings that tell the PDP which workload stands behind the route."""
    return {
        HTTP_FILTER: typed(
            "filters.http.ext_authz.v3.ExtAuthzPerRoute",
            {"check_settings": {"context_extensions": point.context_extensions}},
        )
    }


def network_filter(point: EnforcementPoint) -> Tree:
    """Return the TCP filter: one check for each connection, at its first byte."""
    settings = {**_common(point), "send_tls_alert_on_denial": True}
    return extension(NETWORK_FILTER, "filters.network.ext_authz.v3.ExtAuthz", settings)


def mcp_filter() -> Tree:
    """Return the filter that rejects what is not MCP before the PDP is asked.

    A second opinion, not the judge: it admits GET and DELETE without a look, and compares
    headers with the body for one protocol version only. The PDP parses the body itself.
    """
    settings: Tree = {
        "traffic_mode": "REJECT_NO_MCP",
        "attribute_source": "VERIFY",
        "reject_duplicate_keys": True,
        "max_request_body_size": limits.BODY_BYTES_MAX,
    }
    return extension(MCP_FILTER, "filters.http.mcp.v3.Mcp", settings)


def pdp_cluster_name(point: EnforcementPoint) -> str:
    """Return the name of the cluster that leads to the point's PDP."""
    return f"{point.name}_pdp"


def _common(point: EnforcementPoint) -> Tree:
    return {
        "transport_api_version": "V3",
        "stat_prefix": "pdp",
        "grpc_service": {
            "envoy_grpc": {"cluster_name": pdp_cluster_name(point)},
            "timeout": seconds(point.pdp_timeout_s),
        },
        "failure_mode_allow": False,
        "include_peer_certificate": True,
        "include_tls_session": True,
        "bootstrap_metadata_labels_key": NODE_LABELS_KEY,
    }


def _mutable_headers(point: EnforcementPoint) -> str:
    """Return which request headers an answer may change, as an RE2 expression.

    Removal obeys the same rule: without the two names an allowed `strip_delegation` is dropped
    silently and the workload sees its caller's delegation.
    """
    if point.strip_delegation:
        return "x-authz-.*|txn-token|delegation-chain"
    return "x-authz-.*"
