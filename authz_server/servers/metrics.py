"""What Prometheus sees: counts, durations and the state of policy and ledger.

Every label takes its values from a closed set: verdicts and reasons from their enums, bundles from
the serving snapshot. What a request brings never becomes a label.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from http import HTTPStatus
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from authz_server import __version__
from authz_server.core.decision import Decision, Verdict
from authz_server.core.enforcement import Mode
from authz_server.core.errors import LedgerError
from authz_server.core.snapshot import Snapshot
from authz_server.servers.admin_http import Page

_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# The name of a bundle that the serving snapshot does not have, and of no bundle at all.
_OTHER_BUNDLE: Final = "other"

# Seconds. Envoy waits 150-300 ms for an answer; what matters lies well below.
_CHECK_BUCKETS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
)  # fmt: skip
_BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_CountKey = tuple[str, str, str | None, str]  # verdict, reason, bundle, mode


class Metrics:
    """All metrics of one server, in a registry of its own.

    Written from the event loop, read from the admin threads; prometheus-client locks each value.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        Gauge("authz_build_info", "Version of the server.", ["version"], registry=registry).labels(
            __version__
        ).set(1)
        self._decisions = Counter(
            "authz_decisions",
            "Decisions answered; those of mode `shadow` were let pass whatever the verdict.",
            ["verdict", "reason", "bundle", "mode"],
            registry=registry,
        )
        self._children: dict[_CountKey, Counter] = {}
        self._bundles: frozenset[str] = frozenset()
        self._check_seconds = Histogram(
            "authz_check_duration_seconds",
            "Time from the bytes of a call to the bytes of its answer, the record included.",
            buckets=_CHECK_BUCKETS,
            registry=registry,
        )
        self._tickets = Counter(
            "authz_escalations",
            "Escalated decisions by the state of their ticket (`none`: ledger mode off), and "
            "those that an approval let pass (`consumed`).",
            ["ticket"],
            registry=registry,
        )
        self._internal_errors = Counter(
            "authz_internal_errors",
            "Errors of the server's own; each was answered with a denial.",
            registry=registry,
        )
        self._ledger = _LedgerMetrics(registry)
        self._reload = _ReloadMetrics(registry)

    def checked(self, decision: Decision, seconds: float) -> None:
        """Count one answered call. Called per request: about 1 µs."""
        key = (decision.verdict, decision.reason, decision.bundle, decision.mode)
        child = self._children.get(key)
        if child is None:
            child = self._bind(decision)
        child.inc()
        self._check_seconds.observe(seconds)
        if decision.ticket is not None:
            self._tickets.labels(decision.ticket.status).inc()
        elif decision.approval is not None:
            self._tickets.labels("consumed").inc()
        elif decision.verdict is Verdict.ESCALATE and decision.mode is Mode.ENFORCE:
            self._tickets.labels("none").inc()

    def broke(self) -> None:
        """Count one internal error."""
        self._internal_errors.inc()

    def committed(self, records: int, seconds: float, error: LedgerError | None) -> None:
        """Count one ledger transaction (a `group_commit.CommitObserver`)."""
        self._ledger.committed(records, seconds, error)

    def serving(self, snapshot: Snapshot, at: datetime) -> None:
        """Take note of a snapshot that was loaded and now serves."""
        self._bundles = frozenset(snapshot.policies)
        # Children of keys that are gone stay in the registry (a counter must not go backwards);
        # they are as many as bundles an operator ever had.
        self._children.clear()
        self._reload.serving(snapshot, at)

    def renewed(self, snapshot: Snapshot) -> None:
        """Take note of a snapshot in which a live input changed."""
        self._reload.renewed(snapshot)

    def reload_failed(self) -> None:
        """Take note of a reload that was refused; the last good snapshot serves on."""
        self._reload.refused()

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value is read when Prometheus asks."""
        Gauge(name, documentation, registry=self._registry).set_function(read)

    def count(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Add a counter that is kept elsewhere and read when Prometheus asks."""
        self._registry.register(_ReadCounter(name, documentation, read))

    def job_failed(self, job: str) -> None:
        """Count one failure of what runs beside the commits. `job` is from a closed set."""
        self._ledger.job_failed(job)

    def page(self) -> Page:
        """Return all metrics in the Prometheus text format."""
        body = generate_latest(self._registry)
        return Page(status=HTTPStatus.OK, content_type=_CONTENT_TYPE, body=body)

    def _bind(self, decision: Decision) -> Counter:
        bundle = decision.bundle
        if bundle is None:
            label = ""
        elif bundle in self._bundles:
            label = bundle
        else:
            label = _OTHER_BUNDLE
        values = (decision.verdict.value, decision.reason.value, label, decision.mode.value)
        child = self._decisions.labels(*values)
        # SECURITY: only closed sets may become keys, or callers could grow this map.
        if label != _OTHER_BUNDLE:
            key = (decision.verdict, decision.reason, bundle, decision.mode)
            self._children[key] = child
        return child


class _ReadCounter(Collector):
    """A counter whose value somebody else keeps."""

    def __init__(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        self._name = name
        self._documentation = documentation
        self._read = read

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(self._name, self._documentation, value=self._read())


class _LedgerMetrics:
    """Transactions of the ledger."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "authz_ledger_commit_duration_seconds",
            "Time of one ledger transaction.",
            buckets=_CHECK_BUCKETS,
            registry=registry,
        )
        self._records = Histogram(
            "authz_ledger_batch_records",
            "Records that shared one ledger transaction.",
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self._failures = Counter(
            "authz_ledger_failures",
            "Ledger transactions that failed; their calls were denied.",
            registry=registry,
        )
        self._jobs = Counter(
            "authz_ledger_job_failures",
            "Failures of what runs beside the commits.",
            ["job"],
            registry=registry,
        )

    def job_failed(self, job: str) -> None:
        self._jobs.labels(job).inc()

    def committed(self, records: int, seconds: float, error: LedgerError | None) -> None:
        self._seconds.observe(seconds)
        if error is None:
            self._records.observe(records)
        else:
            self._failures.inc()


class _ReloadMetrics:
    """Which policy serves, since when, and whether the files on disk could replace it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._failed = Gauge(
            "authz_reload_failed",
            "1 while the files on disk are refused and the last good policy serves.",
            registry=registry,
        )
        self._reloads = Counter(
            "authz_reloads", "Loads of policy and trust.", ["outcome"], registry=registry
        )
        self._loaded_at = Gauge(
            "authz_last_successful_reload_timestamp_seconds",
            "When the serving policy was loaded.",
            registry=registry,
        )
        self._snapshot = Gauge(
            "authz_snapshot_info", "The serving revision.", ["revision"], registry=registry
        )
        self._bundle = Gauge(
            "authz_bundle_info",
            "The serving policy bundles.",
            ["bundle", "domain", "revision", "mode"],
            registry=registry,
        )
        self._shadow = Gauge(
            "authz_bundle_shadow",
            "1 for a policy bundle whose verdicts are recorded and not enforced, 0 for others.",
            ["bundle"],
            registry=registry,
        )
        for outcome in ("loaded", "refused"):
            self._reloads.labels(outcome)

    def serving(self, snapshot: Snapshot, at: datetime) -> None:
        self._failed.set(0)
        self._reloads.labels("loaded").inc()
        self._loaded_at.set(at.timestamp())
        self.renewed(snapshot)
        self._bundle.clear()
        self._shadow.clear()
        for name, policy in snapshot.policies.items():
            mode = snapshot.mode_of(name)
            self._bundle.labels(name, policy.domain, policy.revision, mode.value).set(1)
            self._shadow.labels(name).set(mode is Mode.SHADOW)

    def renewed(self, snapshot: Snapshot) -> None:
        self._snapshot.clear()
        self._snapshot.labels(snapshot.revision).set(1)

    def refused(self) -> None:
        self._failed.set(1)
        self._reloads.labels("refused").inc()
