"""Decisions as OpenTelemetry log records and metrics, sent as OTLP over HTTP (extra `otel`).

There is no semantic convention for authorization decisions, so the attributes are our own, below
`authz.`. A log record belongs to the trace that the request named. Metrics have labels from closed
sets alone, as those for Prometheus.

SECURITY: only what the decision document holds goes out: digests of arguments, no value of one.
"""

import logging
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from authz_server import __version__
from authz_server.core.decision import Decision, TraceRecord, Verdict
from authz_server.core.errors import ConfigurationError, Fault
from authz_server.ledger.pseudonym import Pseudonyms
from authz_server.ledger.record import Record, resource_text, unix_us
from authz_server.servers.event_log import EventLog
from authz_server.servers.telemetry import QUEUE_RECORDS_MAX

if TYPE_CHECKING:
    from opentelemetry._logs import SeverityNumber
    from opentelemetry.context import Context

SCOPE: Final = "authz_server"
EVENT_NAME: Final = "authz.decision"
_TIMEOUT_S: Final = 5.0  # of one attempt; a collector that takes longer gets the next batch
_LOG_DELAY_MS: Final = 1000.0
_MILLISECONDS: Final = 1000
_US_PER_S: Final = 1_000_000
_NS_PER_US: Final = 1000

# Values of attributes: texts, whole numbers, truths, and lists of texts.
_Attribute = str | int | bool | tuple[str, ...]


class OtlpExporter:
    """Sends decisions to one collector (a `telemetry.Exporter`)."""

    def __init__(
        self, endpoint: str, *, interval_s: int, pseudonyms: Pseudonyms | None, log: EventLog
    ) -> None:
        """`endpoint` is the base address. Raises `ConfigurationError` without the extra `otel`."""
        try:
            from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.sdk._logs import LoggerProvider
            from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
            from opentelemetry.sdk.resources import Resource
        except ImportError as error:
            message = "`telemetry.otlp_endpoint` needs `pip install authz-server[otel]`"
            raise ConfigurationError([Fault(file="telemetry", message=message)]) from error
        _keep_quiet(log)
        self._pseudonyms = pseudonyms
        base = endpoint.rstrip("/")
        resource = Resource.create({"service.name": "authz-server", "service.version": __version__})
        self._logs = LoggerProvider(resource=resource, shutdown_on_exit=False)
        self._logs.add_log_record_processor(
            BatchLogRecordProcessor(
                OTLPLogExporter(endpoint=f"{base}/v1/logs", timeout=_TIMEOUT_S),
                schedule_delay_millis=_LOG_DELAY_MS,
                max_queue_size=QUEUE_RECORDS_MAX,
            )
        )
        self._logger = self._logs.get_logger(SCOPE, __version__)
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(endpoint=f"{base}/v1/metrics", timeout=_TIMEOUT_S),
            export_interval_millis=interval_s * _MILLISECONDS,
        )
        self._metrics = MeterProvider(
            metric_readers=[reader], resource=resource, shutdown_on_exit=False
        )
        meter = self._metrics.get_meter(SCOPE, __version__)
        self._decisions = meter.create_counter(
            "authz.decisions", unit="{decision}", description="Decisions made."
        )
        self._durations = meter.create_histogram(
            "authz.decision.duration", unit="s", description="Time to decide, without the ledger."
        )

    def export(self, record: Record) -> None:
        """Queue one decision for the next batch."""
        decision = record.decision
        labels = {
            "authz.verdict": decision.verdict.value,
            "authz.reason": decision.reason.value,
            "authz.mode": decision.mode.value,
        }
        self._decisions.add(1, labels)
        self._durations.record(record.duration_us / _US_PER_S, labels)
        self._logger.emit(
            timestamp=_nanoseconds(decision.time),
            context=_context(decision.trace),
            severity_number=_severity(decision.verdict),
            severity_text="INFO" if decision.verdict is Verdict.ALLOW else "WARN",
            body=f"{decision.verdict.value} {decision.reason.value}",
            event_name=EVENT_NAME,
            attributes=dict(self._attributes(record)),
        )

    def close(self) -> None:
        """Send what waits, within the timeout of an attempt."""
        self._logs.shutdown()
        self._metrics.shutdown(timeout_millis=_TIMEOUT_S * _MILLISECONDS)

    def _attributes(self, record: Record) -> Iterator[tuple[str, _Attribute]]:
        """Yield what is known of the decision; nothing is sent empty."""
        found = (*_of_outcome(record), *_of_request(record.decision), *self._of_chain(record))
        for name, value in found:
            if value is not None and value not in ("", ()):
                yield f"authz.{name}", value

    def _of_chain(self, record: Record) -> Iterator[tuple[str, _Attribute | None]]:
        chain = record.decision.chain
        if chain is None:
            return
        # SECURITY: whoever is a pseudonym in the ledger is one here.
        subject = self._pseudonyms.of(chain.subject) if self._pseudonyms else chain.subject
        yield "subject.id", subject
        yield "subject.issuer", chain.subject_issuer
        yield "chain.actors", chain.actors
        yield "chain.assurance", chain.assurance
        yield "chain.mode", chain.mode
        yield "chain.txn", chain.txn


def _of_outcome(record: Record) -> Iterator[tuple[str, _Attribute | None]]:
    decision = record.decision
    yield "decision.id", record.decision_id
    yield "verdict", decision.verdict.value
    yield "reason", decision.reason.value
    yield "rules", decision.rules
    yield "bundle", decision.bundle
    yield "revision", decision.revision
    yield "mode", decision.mode
    yield "duration_us", record.duration_us
    if decision.approval is not None:
        yield "approval.id", decision.approval.id
        yield "approval.approver", decision.approval.approver
    if decision.ticket is not None:
        yield "access_request.id", decision.ticket.id
        yield "access_request.status", decision.ticket.status


def _of_request(decision: Decision) -> Iterator[tuple[str, _Attribute | None]]:
    if (principal := decision.principal) is not None:
        yield "principal.id", principal.spiffe_id
        yield "principal.kind", principal.kind
        yield "principal.assurance", principal.assurance
    yield "owner", decision.owner
    if (action := decision.action) is not None:
        yield "action.protocol", action.protocol
        yield "action.name", action.name
        yield "action.read_only", action.read_only
    if (resource := decision.resource) is not None:
        yield "resource.type", resource.type
        yield "resource.name", resource_text(resource)
        yield "resource.args_sha256", resource.args_sha256


def _context(trace: TraceRecord | None) -> "Context | None":
    if trace is None:
        return None
    from opentelemetry.trace import (
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        set_span_in_context,
    )

    return set_span_in_context(
        NonRecordingSpan(
            SpanContext(
                trace_id=int(trace.trace_id, 16),
                span_id=int(trace.span_id, 16),
                is_remote=True,
                trace_flags=TraceFlags(TraceFlags.DEFAULT),
            )
        )
    )


def _severity(verdict: Verdict) -> "SeverityNumber":
    from opentelemetry._logs import SeverityNumber

    return SeverityNumber.INFO if verdict is Verdict.ALLOW else SeverityNumber.WARN


def _nanoseconds(moment: datetime) -> int:
    return unix_us(moment) * _NS_PER_US


class _Quiet(logging.Handler):
    """Passes on that the SDK failed, without its words: they may quote headers and addresses."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.once("telemetry_failed", fault=record.name)


def _keep_quiet(log: EventLog) -> None:
    logger: Any = logging.getLogger("opentelemetry")
    logger.handlers = [_Quiet(log)]
    logger.propagate = False
