"""Decisions reach a collector with their trace, under pseudonyms where asked; calls never wait."""

import asyncio
import io
import json
import threading
from pathlib import Path

import pytest

from authz_server.core.decision import Decision, TraceRecord
from authz_server.core.errors import LedgerError
from authz_server.ledger.pseudonym import Pseudonyms
from authz_server.ledger.record import Record
from authz_server.servers.event_log import EventLog
from authz_server.servers.otlp import OtlpExporter
from authz_server.servers.telemetry import ReportingRecorder, Telemetry
from tests.ledger_samples import ALICE, RESEARCHER, allow, deny, record
from tests.otlp_collector import attributes, collecting

TRACE = TraceRecord(trace_id="4b" * 16, span_id="0f" * 8)


def exporter(endpoint: str, pseudonyms: Pseudonyms | None = None) -> OtlpExporter:
    log = EventLog.json(io.StringIO())
    return OtlpExporter(endpoint, interval_s=3600, pseudonyms=pseudonyms, log=log)


def test_logs_and_metrics_say_what_was_decided_in_which_trace() -> None:
    with collecting() as collector:
        sending = exporter(collector.endpoint)
        sending.export(record(allow(trace=TRACE), "d-1"))
        sending.export(record(deny(principal=None, chain=None), "d-2"))
        sending.close()
    first, second = collector.logs
    assert first.trace_id.hex() == TRACE.trace_id
    assert first.span_id.hex() == TRACE.span_id
    assert first.event_name == "authz.decision"
    found = attributes(first)
    assert all(name.startswith("authz.") for name in found)
    assert found["authz.decision.id"] == "d-1"
    assert found["authz.verdict"] == "allow"
    assert found["authz.principal.id"] == RESEARCHER
    assert found["authz.subject.id"] == ALICE
    assert found["authz.rules"] == ("support-read",)
    assert found["authz.action.read_only"] is False
    assert not second.trace_id
    assert "authz.subject.id" not in attributes(second)
    counter = collector.metrics["authz.decisions"]
    assert sum(point.as_int for point in counter.sum.data_points) == 2
    labels = {pair.key for point in counter.sum.data_points for pair in point.attributes}
    assert labels == {"authz.verdict", "authz.reason", "authz.mode"}
    assert "authz.decision.duration" in collector.metrics


def test_a_subject_is_a_pseudonym_here_too(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    pseudonyms = Pseudonyms.load(key)
    with collecting() as collector:
        sending = exporter(collector.endpoint, pseudonyms)
        sending.export(record(allow()))
        sending.close()
    (sent,) = collector.logs
    assert attributes(sent)["authz.subject.id"] == pseudonyms.of(ALICE)
    assert all(ALICE.encode() not in body for _, body in collector.posts)


def test_a_collector_that_is_gone_is_one_quiet_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        endpoint = collector.endpoint
    stream = io.StringIO()
    monkeypatch.setattr("authz_server.servers.otlp._TIMEOUT_S", 0.2)
    sending = OtlpExporter(endpoint, interval_s=3600, pseudonyms=None, log=EventLog.json(stream))
    sending.export(record(allow()))
    sending.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines
    assert all(line["event"] == "telemetry_failed" for line in lines)
    assert endpoint not in stream.getvalue()


class _Stuck:
    """An exporter that waits until it is let go."""

    def __init__(self) -> None:
        self.go, self.entered = threading.Event(), threading.Event()
        self.taken: list[Record] = []

    def export(self, record: Record) -> None:
        self.entered.set()
        self.go.wait(20)
        self.taken.append(record)

    def close(self) -> None:
        pass


def test_a_slow_exporter_drops_and_counts_and_holds_up_nobody() -> None:
    stuck = _Stuck()
    telemetry = Telemetry(stuck, records_max=2)
    telemetry.offer(record(allow()))
    assert stuck.entered.wait(20)
    for _ in range(5):
        telemetry.offer(record(allow()))
    assert telemetry.dropped == 3
    stuck.go.set()
    telemetry.close()
    assert len(stuck.taken) == 3


class _Recorder:
    def __init__(self, outcome: Decision | LedgerError) -> None:
        self._outcome = outcome

    async def record(self, record: Record) -> Decision:
        if isinstance(self._outcome, LedgerError):
            raise self._outcome
        return self._outcome


def test_the_final_decision_is_told_also_when_it_could_not_be_recorded() -> None:
    kept = _Stuck()
    kept.go.set()
    telemetry = Telemetry(kept)
    final = allow(detail="approved by a person")
    recorder = ReportingRecorder(_Recorder(final), telemetry)
    assert asyncio.run(recorder.record(record(allow()))) is final
    failing = ReportingRecorder(_Recorder(LedgerError("gone")), telemetry)
    with pytest.raises(LedgerError):
        asyncio.run(failing.record(record(allow())))
    telemetry.close()
    assert [one.decision.reason.value for one in kept.taken] == ["OK", "LEDGER_UNAVAILABLE"]
