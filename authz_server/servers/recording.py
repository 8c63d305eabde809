"""How this server records: the ledger of the configuration, and what calls wait for."""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Final

from authz_server.core.errors import LedgerError
from authz_server.ledger.backlog import Backlog
from authz_server.ledger.database import Synchronous
from authz_server.ledger.pseudonym import Pseudonyms
from authz_server.ledger.service import LedgerPlan, LedgerService
from authz_server.ledger.settlement import ApprovalTerms
from authz_server.ledger.store import Ledger
from authz_server.servers.async_commit import AsyncCommit
from authz_server.servers.event_log import EventLog
from authz_server.servers.group_commit import CommitObserver, GroupCommit, Recorder
from authz_server.servers.metrics import Metrics
from authz_server.servers.shared_escalations import SharedEscalations
from authz_server.servers.telemetry import ReportingRecorder, Telemetry
from authz_server.settings import Settings

# What a failed job means to people, by its name.
_EVENTS: Final = {
    "ship": "shared_ledger_unreachable",
    "checkpoint": "checkpoint_failed",
    "retention": "retention_failed",
}


class Recording:
    """The parts between a decision and the disk. `close` writes what still waits."""

    def __init__(self, *, recorder: Recorder, parts: ExitStack) -> None:
        self.recorder = recorder
        self._parts = parts

    def close(self) -> None:
        """Commit what waits, sign the end of the chain, ship what can be shipped, and close."""
        self._parts.close()


# Returns what is told of every transaction of a ledger.
ObserverOf = Callable[[Ledger], CommitObserver]


def ledger_plan(settings: Settings) -> LedgerPlan:
    """Return what the configuration says of the ledger."""
    ledger, approvals = settings.ledger, settings.approvals
    return LedgerPlan(
        url=ledger.url,
        outbox=ledger.outbox,
        outbox_records_max=ledger.outbox_records_max,
        approvals=ApprovalTerms(
            ttl=timedelta(seconds=approvals.ttl_s), single_use=approvals.single_use
        ),
        synchronous=Synchronous(ledger.synchronous),
        retention_days=ledger.retention_days,
        subject_key=ledger.subject_key,
        signing_key=ledger.signing_key,
        checkpoint_interval_s=ledger.checkpoint_interval_s,
        checkpoint_sinks=ledger.checkpoint_sinks,
    )


def start_recording(
    settings: Settings, *, observer_of: ObserverOf, metrics: Metrics, log: EventLog
) -> Recording:
    """Open the ledger and begin. Raises `LedgerError`; then nothing runs."""
    with ExitStack() as parts:
        service = LedgerService.start(
            ledger_plan(settings), observe=_JobWatch(metrics=metrics, log=log).ran
        )
        parts.callback(service.stop)
        observe = observer_of(service.ledger)
        group = GroupCommit(service.ledger, observe=observe)
        parts.callback(group.close)
        recorder: Recorder = group
        if service.backlog is not None:
            _show_backlog(metrics, service.backlog)
        if service.approvals is not None:
            recorder = shared = SharedEscalations(service.approvals, recorder=group)
            _count_unreachable(metrics, shared)
        if settings.ledger.mode == "async":
            recorder = queue = AsyncCommit(
                service.ledger,
                escalations=recorder,
                records_max=settings.ledger.async_records_max,
                observe=observe,
            )
            parts.callback(_close_queue, queue, log)
            _show_queue(metrics, queue)
        return Recording(recorder=recorder, parts=parts.pop_all())


def _close_queue(queue: AsyncCommit, log: EventLog) -> None:
    queue.close()
    if queue.lost:
        log.error("records_lost", records=queue.lost)


def start_telemetry(
    settings: Settings, recorder: Recorder, *, metrics: Metrics, log: EventLog, parts: ExitStack
) -> Recorder:
    """Return `recorder`, or one that also tells a collector; `parts` ends it.

    Raises `ConfigurationError` and `LedgerError`.
    """
    given = settings.telemetry
    if given.otlp_endpoint is None:
        return recorder
    from authz_server.servers.otlp import OtlpExporter

    key = settings.ledger.subject_key
    exporter = OtlpExporter(
        given.otlp_endpoint,
        interval_s=given.interval_s,
        pseudonyms=Pseudonyms.load(key) if key else None,
        log=log,
    )
    telemetry = Telemetry(exporter)
    parts.callback(telemetry.close)
    metrics.count(
        "authz_telemetry_dropped",
        "Decisions that telemetry was too slow for; the ledger has them.",
        lambda: telemetry.dropped,
    )
    return ReportingRecorder(recorder, telemetry)


def _show_backlog(metrics: Metrics, backlog: Backlog) -> None:
    metrics.gauge(
        "authz_outbox_records", "Records that wait for the shared ledger.", lambda: backlog.records
    )


def _count_unreachable(metrics: Metrics, shared: SharedEscalations) -> None:
    metrics.count(
        "authz_approvals_unreachable",
        "Escalations that the shared ledger did not settle in time.",
        lambda: shared.unreachable,
    )


def _show_queue(metrics: Metrics, queue: AsyncCommit) -> None:
    metrics.gauge(
        "authz_async_records", "Answered decisions not recorded yet.", lambda: queue.waiting
    )
    metrics.count(
        "authz_async_overflows",
        "Calls denied because the queue of records was full.",
        lambda: queue.overflowed,
    )


class _JobWatch:
    """Counts the failures of what runs beside the commits, and logs when one begins and ends."""

    def __init__(self, *, metrics: Metrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        self._failing: set[str] = set()

    def ran(self, job: str, error: LedgerError | None) -> None:
        """Take note of one run of a job (a `keeper.JobObserver`). Each job has its own thread."""
        if error is not None:
            self._metrics.job_failed(job)
            if job not in self._failing:
                self._failing.add(job)
                self._log.error(_EVENTS[job], why=str(error))
        elif job in self._failing:
            self._failing.discard(job)
            self._log.info("recovered", job=job)
