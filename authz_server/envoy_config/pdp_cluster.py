"""How an Envoy finds its PDP: one address, or several equal ones that share the checks.

Several are asked in turn, check by check: gRPC keeps one HTTP/2 connection to each, and Envoy
chooses for each request. What was observed of Envoy 1.40 with two of them decides the rest:

- least-request instead of in-turn sends most to a PDP that is dead: nobody looks as idle as one
  that fails at once;
- a killed PDP costs no denial if what it was working on is asked again at the other;
- `retry_back_off.max_interval` of a gRPC service is the time limit of each attempt, too;
- with `previous_hosts` an attempt goes elsewhere, and to the same PDP if there is no other.

SECURITY: no setting here can turn a missing answer into access. The panic threshold is zero: when
every PDP is known to be down, none is asked, and the request is denied at once.
"""

from datetime import timedelta
from typing import Final

from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterCommonLbConfig,
    ClusterLbPolicy,
    OutlierDetection,
)
from envoy_data_plane.envoy.config.core.v3 import (
    BackoffStrategy,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    HealthCheck,
    HealthCheckGrpcHealthCheck,
    RetryPolicy,
    RetryPolicyRetryHostPredicate,
    RoutingPriority,
)
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import PreviousHostsPredicate
from envoy_data_plane.envoy.type.v3 import Percent

from authz_server.envoy_config import tls
from authz_server.envoy_config.clusters import discovery, endpoints, http2
from authz_server.envoy_config.enforcement_point import EnforcementPoint, is_name
from authz_server.envoy_config.messages import packed

# The PDP is near, and a check waits no longer than its timeout.
_CONNECT: Final = timedelta(seconds=0.25)

# What one PDP says of itself (`servers.grpc_server`): not serving while it starts, drains, or has
# no valid policy.
_HEALTH_SERVICE: Final = "envoy.service.auth.v3.Authorization"
# Two bad ones take a PDP out, one that drains within 3 s; a good one brings it back.
_PROBE_INTERVAL: Final = timedelta(seconds=1)
_PROBE_TIMEOUT: Final = timedelta(seconds=1)
_PROBE_JITTER_PERCENT: Final = 20  # a hundred Envoys that start together do not probe together

# Checks that fail in a row before a PDP is left out until its next good probe. A slow request may
# time out at one PDP after the other: never more than half of them are left out for that.
_FAILURES_IN_A_ROW: Final = 5
_EJECTION: Final = timedelta(seconds=10)
_EJECTED_PERCENT_MAX: Final = 50

# Checks under way at once, by all workers of one Envoy; beyond it they are denied. Within the
# timeout of a check no PDP answers as many. It is the default of Envoy, written out.
_CHECKS_MAX: Final = 1024
_RETRIES_MAX: Final = _CHECKS_MAX  # a killed PDP may have had all of them

# What proves that no answer is on its way: a slow PDP is never asked twice, so that overload does
# not double itself.
_RETRY_ON: Final = "connect-failure,refused-stream,reset"
_RETRY_PAUSE: Final = timedelta(milliseconds=5)
_RETRY_CHOICES_MAX: Final = 5


def pdp_cluster_name(point: EnforcementPoint) -> str:
    """Return the name of the cluster that leads to the point's PDP."""
    return f"{point.name}_pdp"


def pdp_cluster(point: EnforcementPoint) -> Cluster:
    """Return the cluster of all addresses of the PDP."""
    name = pdp_cluster_name(point)
    several = has_several(point)
    return Cluster(
        name=name,
        type=discovery(*point.pdp),
        connect_timeout=_CONNECT,
        lb_policy=ClusterLbPolicy.ROUND_ROBIN,
        load_assignment=endpoints(name, *point.pdp),
        typed_extension_protocol_options=http2(),
        transport_socket=tls.pdp_socket(point.pdp_tls) if point.pdp_tls else None,
        circuit_breakers=_circuit_breakers(),
        common_lb_config=_common_lb() if several else None,
        health_checks=[_health_check()] if several else [],
        outlier_detection=_outlier_detection() if several else None,
        # An address that the name no longer stands for is a PDP that is gone.
        ignore_health_on_host_removal=several,
    )


def pdp_service(point: EnforcementPoint) -> GrpcService:
    """Return how a filter asks the PDP: its cluster, the time limit, and when to ask once more."""
    limit = timedelta(seconds=point.pdp_timeout_s)
    return GrpcService(
        envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=pdp_cluster_name(point)),
        timeout=limit,
        retry_policy=_retry_policy(limit) if has_several(point) else None,
    )


def has_several(point: EnforcementPoint) -> bool:
    """Tell whether there may be another PDP to ask; a host name may stand for any number."""
    return len(point.pdp) > 1 or any(is_name(address) for address in point.pdp)


def _common_lb() -> ClusterCommonLbConfig:
    return ClusterCommonLbConfig(
        healthy_panic_threshold=Percent(value=0),
        # Unset, Envoy's workers hear of a PDP that fell or rose up to a second later.
        update_merge_window=timedelta(0),
    )


def _circuit_breakers() -> CircuitBreakers:
    limits = CircuitBreakersThresholds(
        priority=RoutingPriority.DEFAULT,
        max_connections=_CHECKS_MAX,
        max_pending_requests=_CHECKS_MAX,
        max_requests=_CHECKS_MAX,
        max_retries=_RETRIES_MAX,
    )
    return CircuitBreakers(thresholds=[limits])


def _health_check() -> HealthCheck:
    return HealthCheck(
        timeout=_PROBE_TIMEOUT,
        interval=_PROBE_INTERVAL,
        # Unset, a cluster without traffic is probed once a minute: as long would Envoy deny after
        # it started before its PDP.
        no_traffic_interval=_PROBE_INTERVAL,
        interval_jitter_percent=_PROBE_JITTER_PERCENT,
        unhealthy_threshold=2,
        healthy_threshold=1,
        grpc_health_check=HealthCheckGrpcHealthCheck(service_name=_HEALTH_SERVICE),
    )


def _outlier_detection() -> OutlierDetection:
    return OutlierDetection(
        consecutive_5xx=_FAILURES_IN_A_ROW,
        interval=timedelta(seconds=1),
        base_ejection_time=_EJECTION,
        max_ejection_time=_EJECTION,
        max_ejection_percent=_EJECTED_PERCENT_MAX,
        # A PDP that answers is right: nothing is learnt from how often it denies.
        enforcing_success_rate=0,
        successful_active_health_check_uneject_host=True,
    )


def _retry_policy(limit: timedelta) -> RetryPolicy:
    elsewhere = RetryPolicyRetryHostPredicate(
        name="envoy.retry_host_predicates.previous_hosts",
        typed_config=packed(PreviousHostsPredicate()),
    )
    return RetryPolicy(
        # INVARIANT: `max_interval` limits each attempt, and `reset` counts that as one. Below
        # `limit` it would ask a second PDP while the first one works, and have two decisions
        # recorded for most of the slow requests; above it, it never ends an attempt.
        retry_back_off=BackoffStrategy(base_interval=_RETRY_PAUSE, max_interval=2 * limit),
        num_retries=1,
        retry_on=_RETRY_ON,
        retry_host_predicate=[elsewhere],
        host_selection_retry_max_attempts=_RETRY_CHOICES_MAX,
    )
