"""What probes are told, and that a failed ledger is called ready again only with reason."""

import io
import json
from dataclasses import dataclass

import pytest

from authz_server.core.errors import ConfigurationError, Fault, LedgerError
from authz_server.core.snapshot import Snapshot
from authz_server.reload.holder import SnapshotHolder
from authz_server.servers import ledger_watch
from authz_server.servers.event_log import EventLog
from authz_server.servers.ledger_watch import LedgerWatch
from authz_server.servers.metrics import Metrics
from authz_server.servers.readiness import Readiness
from tests.unit.test_metrics import snapshot


def holder(serving: Snapshot | None) -> SnapshotHolder:
    state = SnapshotHolder()
    if serving is not None:
        state.replace(serving)
    return state


def page(readiness: Readiness) -> tuple[int, dict[str, object]]:
    answer = readiness.page()
    document = json.loads(answer.body)
    assert document["ready"] is (answer.status == 200)
    return answer.status, document


def test_a_serving_snapshot_is_ready_and_named() -> None:
    status, document = page(Readiness(holder(snapshot("tools"))))
    assert status == 200
    assert document["why_not"] == []
    assert document["revision"] == "r1"
    assert document["bundles"] == {
        "tools": {"domain": "application", "revision": "b1", "mode": "enforce"}
    }


def test_without_a_snapshot_it_is_not_ready() -> None:
    status, document = page(Readiness(holder(None)))
    assert status == 503
    assert document["why_not"] == ["no valid policy is loaded"]


def test_a_draining_server_is_not_ready() -> None:
    readiness = Readiness(holder(snapshot("tools")))
    readiness.drain()
    status, document = page(readiness)
    assert status == 503
    assert document["draining"] is True


def test_a_refused_reload_stays_ready_and_is_shown_without_policy_text() -> None:
    state = holder(snapshot("tools"))
    fault = Fault(
        file="tools/policy.csv", line=3, column=2, message="unknown effect", source="p, x, secret"
    )
    state.failed(ConfigurationError([fault]))
    status, document = page(Readiness(state))
    assert status == 200
    assert document["reload_faults"] == ["tools/policy.csv:3:2: error: unknown effect"]


@dataclass
class Disk:
    """A ledger that can be asked."""

    error: LedgerError | None = None
    asked: int = 0

    def ping(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error


class Watched:
    """A ledger watch with everything it tells."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.readiness = Readiness(holder(snapshot("tools")))
        self.lines = io.StringIO()
        self.watch = LedgerWatch(
            self.disk, metrics=Metrics(), readiness=self.readiness, log=EventLog.json(self.lines)
        )

    @property
    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.lines.getvalue().splitlines()]


def test_an_outage_is_logged_once_and_so_is_its_end() -> None:
    watched = Watched()
    for _ in range(3):
        watched.watch.committed(1, 0.1, LedgerError("disk is full"))
    assert watched.readiness.why_not == ("ledger unavailable: disk is full",)
    assert page(watched.readiness)[1]["ledger"] == "disk is full"
    for _ in range(3):
        watched.watch.committed(1, 0.1, None)
    assert not watched.readiness.why_not
    assert watched.events == ["ledger_unavailable", "ledger_recovered"]


def test_a_failed_ledger_gets_a_new_chance_only_after_a_while() -> None:
    watched = Watched()
    watched.watch.committed(1, 0.1, LedgerError("disk is full"))
    watched.watch.retry()
    assert watched.disk.asked == 0
    assert watched.readiness.why_not != ()


def test_a_failed_ledger_that_answers_again_gets_calls_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger_watch, "_RETRY_S", 0.0)
    watched = Watched()
    watched.watch.committed(1, 0.1, LedgerError("disk is full"))
    watched.disk.error = LedgerError("it is read-only")
    watched.watch.retry()
    assert watched.readiness.why_not == ("ledger unavailable: it is read-only",)
    watched.disk.error = None
    watched.watch.retry()
    assert not watched.readiness.why_not
    assert watched.events == ["ledger_unavailable"], "only a record proves the recovery"


def test_a_healthy_ledger_is_left_alone() -> None:
    watched = Watched()
    watched.watch.retry()
    assert watched.disk.asked == 0


def test_an_error_is_logged_once_and_kinds_are_bounded() -> None:
    lines = io.StringIO()
    log = EventLog.json(lines)
    for number in range(300):
        log.once("internal_error", fault=f"ValueError at wire.py:{number}")
        log.once("internal_error", fault="ValueError at wire.py:0")
    written = lines.getvalue().splitlines()
    assert len(written) == 100
    assert json.loads(written[0]).keys() == {"event", "level", "time", "fault"}
