"""Render a complete Envoy bootstrap for one or more enforcement points."""

import json
from collections.abc import Sequence
from pathlib import Path

from envoy_data_plane.envoy.config.bootstrap.v3 import (
    Admin,
    Bootstrap,
    BootstrapStaticResources,
    LayeredRuntime,
    RuntimeLayer,
)
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.overload.v3 import OverloadManager, ResourceMonitor
from envoy_data_plane.envoy.extensions.resource_monitors.downstream_connections.v3 import (
    DownstreamConnectionsConfig,
)
from envoy_data_plane.google.protobuf import Struct

from authz_server.core.errors import InvalidValueError
from authz_server.envoy_config import clusters, ext_authz, http_outbound, tcp_outbound
from authz_server.envoy_config.addresses import bound
from authz_server.envoy_config.enforcement_point import EnforcementPoint
from authz_server.envoy_config.http_outbound import HttpOutbound
from authz_server.envoy_config.listener import listener
from authz_server.envoy_config.messages import packed, tree_of
from authz_server.envoy_config.pdp_cluster import pdp_cluster
from authz_server.envoy_config.tcp_outbound import TcpOutbound
from authz_server.envoy_config.tree import Tree
from authz_server.settings.addresses import UnixAddress

Outbound = TcpOutbound | HttpOutbound

# Connections that a flood may hold open before Envoy refuses more; without a limit it warns.
_CONNECTIONS_MAX = 10_000


def render_bootstrap(
    points: Sequence[EnforcementPoint],
    *,
    node: str,
    admin_socket: Path | None,
    outbound: Sequence[Outbound] = (),
) -> str:
    """Return the bootstrap, as JSON, of an Envoy that enforces at `points`.

    It leads local clients to each of `outbound` as well, or to nothing else.

    JSON because YAML libraries disagree on what a bare word is: a node called `n` written by
    PyYAML is the boolean false to Envoy.

    `node` names this Envoy in decision records. The admin interface can drain listeners and show
    configuration, so it is a Unix socket for its own account, or absent when `admin_socket` is
    None. Raises `InvalidValueError` for nothing to do, or two of one name.
    """
    tree = bootstrap_tree(points, node=node, admin_socket=admin_socket, outbound=outbound)
    return json.dumps(tree, indent=2) + "\n"


def bootstrap_tree(
    points: Sequence[EnforcementPoint],
    *,
    node: str,
    admin_socket: Path | None,
    outbound: Sequence[Outbound] = (),
) -> Tree:
    """Return what `render_bootstrap` writes, as plain values."""
    return tree_of(bootstrap(points, node=node, admin_socket=admin_socket, outbound=outbound))


def bootstrap(
    points: Sequence[EnforcementPoint],
    *,
    node: str,
    admin_socket: Path | None,
    outbound: Sequence[Outbound] = (),
) -> Bootstrap:
    """Return what `render_bootstrap` writes, as Envoy's message."""
    names = [point.name for point in points] + [way.name for way in outbound]
    if not names or len(set(names)) != len(names):
        raise InvalidValueError(
            "an Envoy needs at least one enforcement point or way out, names unique"
        )
    metadata = Struct.from_dict(ext_authz.node_metadata(points, node=node))
    return Bootstrap(
        node=Node(id=node, cluster=node, metadata=metadata),
        admin=Admin(address=bound(UnixAddress(admin_socket))) if admin_socket else None,
        static_resources=BootstrapStaticResources(
            listeners=[
                *(listener(point) for point in points),
                *(_way_listener(way) for way in outbound),
            ],
            clusters=[
                *(
                    cluster
                    for point in points
                    for cluster in (pdp_cluster(point), clusters.upstream_cluster(point))
                ),
                *(cluster for way in outbound for cluster in _way_clusters(way)),
                *(clusters.agent_cluster(agent) for agent in _agents(points, outbound)),
            ],
        ),
        overload_manager=_overload_manager(),
        layered_runtime=_runtime(),
    )


def _runtime() -> LayeredRuntime:
    """Return the switches that Envoy has as runtime values alone; nothing else can set any."""
    # One connection's burst waits for its turn (CVE-2023-44487): beside 100,000 reset streams the
    # p99 of another client was 37 ms, against 114 ms without the limit and 6 ms without the flood.
    values = {"http.max_requests_per_io_cycle": 1}
    layer = RuntimeLayer(name="static", static_layer=Struct.from_dict(values))
    return LayeredRuntime(layers=[layer])


def _agents(points: Sequence[EnforcementPoint], outbound: Sequence[Outbound]) -> frozenset[Path]:
    agents = frozenset[Path]().union(
        *(point.agents for point in points), *(way.agents for way in outbound)
    )
    if len(agents) > 1:
        raise InvalidValueError("one Envoy takes its SVIDs from one agent")
    return agents


def _way_listener(way: Outbound) -> Listener:
    if isinstance(way, TcpOutbound):
        return tcp_outbound.listener(way)
    return http_outbound.listener(way)


def _way_clusters(way: Outbound) -> list[Cluster]:
    if isinstance(way, TcpOutbound):
        return [tcp_outbound.cluster(way)]
    return http_outbound.clusters(way)


def _overload_manager() -> OverloadManager:
    limit = DownstreamConnectionsConfig(max_active_downstream_connections=_CONNECTIONS_MAX)
    monitor = ResourceMonitor(
        name="envoy.resource_monitors.global_downstream_max_connections", typed_config=packed(limit)
    )
    return OverloadManager(resource_monitors=[monitor])
