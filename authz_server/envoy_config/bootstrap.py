"""Render a complete Envoy bootstrap for one or more enforcement points."""

import json
from collections.abc import Sequence
from pathlib import Path

from authz_server.core.attributes import Protocol
from authz_server.core.errors import InvalidValueError
from authz_server.envoy_config import ext_authz, tls
from authz_server.envoy_config.enforcement_point import Address, EnforcementPoint, is_name
from authz_server.envoy_config.listener import listener_tree, upstream_cluster_name
from authz_server.envoy_config.tree import Tree, address_tree, typed
from authz_server.settings.addresses import TcpAddress, UnixAddress

# Connections that a flood may hold open before Envoy refuses more; without a limit it warns.
_CONNECTIONS_MAX = 10_000


def render_bootstrap(
    points: Sequence[EnforcementPoint], *, node: str, admin_socket: Path | None
) -> str:
    """Return the bootstrap, as JSON, of an Envoy that enforces at every one of `points`.

    JSON because YAML libraries disagree on what a bare word is: a node called `n` written by
    PyYAML is the boolean false to Envoy.

    `node` names this Envoy in decision records. The admin interface can drain listeners and show
    configuration, so it is a Unix socket for its own account, or absent when `admin_socket` is
    None. Raises `InvalidValueError` for no points, or two of one name.
    """
    tree = bootstrap_tree(points, node=node, admin_socket=admin_socket)
    return json.dumps(tree, indent=2) + "\n"


def bootstrap_tree(
    points: Sequence[EnforcementPoint], *, node: str, admin_socket: Path | None
) -> Tree:
    """Return what `render_bootstrap` writes, as plain values."""
    names = [point.name for point in points]
    if not names or len(set(names)) != len(names):
        raise InvalidValueError("an Envoy needs at least one enforcement point, names unique")
    tree: Tree = {
        "node": {
            "id": node,
            "cluster": node,
            "metadata": {ext_authz.NODE_LABELS_KEY: {"node": node}},
        }
    }
    if admin_socket is not None:
        tree["admin"] = {"address": address_tree(UnixAddress(admin_socket))}
    tree["static_resources"] = {
        "listeners": [listener_tree(point) for point in points],
        "clusters": [cluster for point in points for cluster in _clusters(point)]
        + [_agent_cluster(agent) for agent in _agents(points)],
    }
    tree["overload_manager"] = _overload_manager()
    return tree


def _clusters(point: EnforcementPoint) -> list[Tree]:
    pdp = _cluster(ext_authz.pdp_cluster_name(point), *point.pdp, connect_timeout="0.25s")
    pdp["typed_extension_protocol_options"] = _http2()
    if point.pdp_tls is not None:
        pdp["transport_socket"] = tls.pdp_socket(point.pdp_tls)
    upstream = _cluster(upstream_cluster_name(point), point.upstream, connect_timeout="1s")
    if point.protocol is Protocol.GRPC:
        upstream["typed_extension_protocol_options"] = _http2()
    return [pdp, upstream]


def _agents(points: Sequence[EnforcementPoint]) -> frozenset[Path]:
    agents = frozenset[Path]().union(*(point.agents for point in points))
    if len(agents) > 1:
        raise InvalidValueError("one Envoy takes its SVIDs from one agent")
    return agents


def _agent_cluster(agent: Path) -> Tree:
    cluster = _cluster(tls.AGENT_CLUSTER, UnixAddress(agent), connect_timeout="1s")
    return cluster | {"typed_extension_protocol_options": _http2()}


def _cluster(name: str, *addresses: Address, connect_timeout: str) -> Tree:
    resolved = not any(is_name(address) for address in addresses)
    endpoints = [{"endpoint": {"address": _endpoint_address(address)}} for address in addresses]
    return {
        "name": name,
        "type": "STATIC" if resolved else "STRICT_DNS",
        "connect_timeout": connect_timeout,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": endpoints}],
        },
    }


def _endpoint_address(address: Address) -> Tree:
    if isinstance(address, TcpAddress):
        return address_tree(address)
    return {"pipe": {"path": str(address.path)}}


def _http2() -> Tree:
    """Return options for an HTTP/2 upstream whose death is noticed between requests too."""
    keepalive = {"interval": "30s", "timeout": "5s"}
    return {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
            "upstreams.http.v3.HttpProtocolOptions",
            {
                "explicit_http_config": {
                    "http2_protocol_options": {"connection_keepalive": keepalive}
                }
            },
        )
    }


def _overload_manager() -> Tree:
    monitor = {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": typed(
            "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
            {"max_active_downstream_connections": _CONNECTIONS_MAX},
        ),
    }
    return {"resource_monitors": [monitor]}
