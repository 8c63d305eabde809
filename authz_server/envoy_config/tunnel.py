"""The inbound end of a tunnel: HTTP CONNECT to named destinations, and to nothing else.

A tunnel is how a TCP connection carries delegation: its CONNECT request has the headers, is checked
as a request, and what follows is passed on as bytes. What Envoy 1.40 does with one (observed):

- a `Host` that differs from the request target is replaced by the target; a target with a path or
  without a port is answered 400, one that no virtual host names 404, and nobody is asked;
- `strip_any_host_port` takes the port off a CONNECT too, so that port 22 would do for 5432;
- with `with_request_body` the filter waits for the end of the tunnel before it asks;
- a denied tunnel has no connection to the upstream, and bytes sent ahead of the answer are dropped;
  `reject_connect_request_early_data` ends one that is allowed, unless it is connected already.
"""

from datetime import timedelta

from envoy_data_plane.envoy.config.route.v3 import (
    Route,
    RouteAction,
    RouteActionMaxStreamDuration,
    RouteActionUpgradeConfig,
    RouteActionUpgradeConfigConnectConfig,
    RouteConfiguration,
    RouteMatch,
    RouteMatchConnectMatcher,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManagerUpgradeConfig,
)

from authz_server.envoy_config import ext_authz
from authz_server.envoy_config.clusters import upstream_cluster_name
from authz_server.envoy_config.enforcement_point import EnforcementPoint

_CONNECT = "CONNECT"


def upgrades(point: EnforcementPoint) -> list[HttpConnectionManagerUpgradeConfig]:
    """Return what a connection may become: a tunnel where `point` has any, else nothing."""
    return [HttpConnectionManagerUpgradeConfig(upgrade_type=_CONNECT)] if point.tunnels else []


def routes(point: EnforcementPoint, *, idle: timedelta, duration: timedelta) -> RouteConfiguration:
    """Return the route of every destination of `point` to its upstream, as raw bytes.

    `idle` and `duration` bound the silence and the life of a tunnel: it is checked once.
    """
    ended_here = RouteActionUpgradeConfig(
        upgrade_type=_CONNECT, connect_config=RouteActionUpgradeConfigConnectConfig()
    )
    action = RouteAction(
        cluster=upstream_cluster_name(point),
        timeout=timedelta(0),  # there is no answer to wait for; these two bound it instead
        idle_timeout=idle,
        max_stream_duration=RouteActionMaxStreamDuration(max_stream_duration=duration),
        upgrade_configs=[ended_here],
    )
    host = VirtualHost(
        name=point.name,
        domains=list(point.tunnels),
        routes=[Route(match=RouteMatch(connect_matcher=RouteMatchConnectMatcher()), route=action)],
        typed_per_filter_config=ext_authz.http_route_settings(point),
    )
    return RouteConfiguration(name=point.name, virtual_hosts=[host])
