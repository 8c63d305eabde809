"""Whatever comes in and whatever breaks, one well-formed answer goes out, and it is recorded."""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from authz_server.core.chain_cache import ChainCache
from authz_server.core.decision import Decision, Verdict
from authz_server.core.errors import LedgerError, Reason
from authz_server.core.snapshot import Snapshot
from authz_server.ledger.record import Record
from authz_server.reload.loader import load_snapshot
from authz_server.servers.check_service import (
    CheckService,
    decide,
    describe,
    new_decision_id,
)
from authz_server.servers.group_commit import Recorder, Unrecorded
from authz_server.settings import load_settings
from tests.pdp_site import PdpSite


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> PdpSite:
    return PdpSite.create(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def snapshot(site: PdpSite) -> Snapshot:
    return load_snapshot(load_settings(site.configuration), chains=ChainCache())


@dataclass
class Source:
    """A snapshot source that holds what it is given, or breaks."""

    snapshot: Snapshot | None
    error: Exception | None = None

    @property
    def current(self) -> Snapshot | None:
        if self.error is not None:
            raise self.error
        return self.snapshot


@dataclass
class Memory:
    """A recorder that keeps records, and settles them as it is told."""

    settle: Callable[[Decision], Decision] = lambda decision: decision
    records: list[Record] = field(default_factory=list)

    async def record(self, record: Record) -> Decision:
        final = self.settle(record.decision)
        self.records.append(replace(record, decision=final))
        return final


@dataclass
class Outage:
    """A recorder without a ledger behind it."""

    cause: Exception | None = None

    async def record(self, record: Record) -> Decision:
        raise LedgerError("disk is full") from self.cause


@dataclass
class Outcome:
    """What one call came to."""

    answer: CheckResponse
    decision: Decision
    faults: list[str]

    @property
    def reason(self) -> Reason:
        return self.decision.reason

    @property
    def decision_id(self) -> str:
        return str(self.answer.dynamic_metadata.fields["decision_id"].string_value)


def ask(data: bytes, source: Source, recorder: Recorder) -> Outcome:
    """Run one call, and check what must hold of every answer."""
    decisions: list[Decision] = []
    faults: list[str] = []
    service = CheckService(
        snapshots=source,
        recorder=recorder,
        clock=lambda: datetime.now(UTC),
        checked=lambda decision, seconds: decisions.append(decision),
        broke=faults.append,
    )
    answer = CheckResponse.FromString(asyncio.run(service.handle(data)))
    assert service.in_flight == 0
    (decision,) = decisions
    allowed = decision.verdict is Verdict.ALLOW
    assert (answer.status.code == 0) is allowed
    assert answer.WhichOneof("http_response") == ("ok_response" if allowed else "denied_response")
    return Outcome(answer=answer, decision=decision, faults=faults)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/open/1", Reason.OK),
        ("/open/closed/1", Reason.DENIED_BY_RULE),
        ("/ask/1", Reason.ESCALATED_BY_RULE),
        ("/elsewhere", Reason.NO_MATCHING_RULE),
    ],
)
def test_a_decision_is_recorded_under_the_id_it_is_answered_with(
    site: PdpSite, snapshot: Snapshot, path: str, reason: Reason
) -> None:
    memory = Memory()
    outcome = ask(site.check_request(path), Source(snapshot), memory)
    assert outcome.reason is reason, outcome.decision.detail
    (record,) = memory.records
    assert record.decision is outcome.decision
    assert record.decision_id == outcome.decision_id
    assert record.duration_us > 0
    assert outcome.faults == []


def test_without_a_snapshot_everything_is_denied_and_recorded(site: PdpSite) -> None:
    memory = Memory()
    outcome = ask(site.check_request("/open/1"), Source(None), memory)
    assert outcome.reason is Reason.NOT_READY
    assert [record.decision_id for record in memory.records] == [outcome.decision_id]


@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_request_are_a_recorded_denial(snapshot: Snapshot, data: bytes) -> None:
    memory = Memory()
    outcome = ask(data, Source(snapshot), memory)
    assert outcome.decision.verdict is Verdict.DENY
    assert len(memory.records) == 1
    assert outcome.faults == []


@pytest.mark.parametrize("path", ["/open/1", "/open/closed/1", "/ask/1"])
def test_what_cannot_be_recorded_is_denied_whatever_the_verdict(
    site: PdpSite, snapshot: Snapshot, path: str
) -> None:
    outcome = ask(site.check_request(path), Source(snapshot), Outage())
    assert outcome.reason is Reason.LEDGER_UNAVAILABLE
    assert outcome.decision.rules == ()
    assert outcome.decision.principal is not None, "who asked is still known"
    assert outcome.faults == [], "an outage is not a defect of ours"


def test_a_record_that_alone_is_at_fault_is_reported(site: PdpSite, snapshot: Snapshot) -> None:
    outage = Outage(cause=ValueError("secret"))
    outcome = ask(site.check_request("/open/1"), Source(snapshot), outage)
    assert outcome.reason is Reason.LEDGER_UNAVAILABLE
    assert outcome.faults == ["ValueError at "]


def test_an_approved_escalation_is_answered_as_the_ledger_settled_it(
    site: PdpSite, snapshot: Snapshot
) -> None:
    memory = Memory(
        settle=lambda decision: replace(decision, verdict=Verdict.ALLOW, reason=Reason.OK)
    )
    outcome = ask(site.check_request("/ask/1"), Source(snapshot), memory)
    assert outcome.decision.verdict is Verdict.ALLOW


def test_no_ledger_can_lift_a_denial(site: PdpSite, snapshot: Snapshot) -> None:
    lifted = False

    def lift_once(decision: Decision) -> Decision:
        nonlocal lifted
        if lifted:
            return decision
        lifted = True
        return replace(decision, verdict=Verdict.ALLOW, reason=Reason.OK)

    outcome = ask(site.check_request("/elsewhere"), Source(snapshot), Memory(settle=lift_once))
    assert outcome.reason is Reason.INTERNAL_ERROR


def test_a_recorder_that_stays_broken_still_ends_in_a_denial(
    site: PdpSite, snapshot: Snapshot
) -> None:
    """Not in an exception through gRPC: the denial of the failure cannot be recorded either."""

    def lift(decision: Decision) -> Decision:
        return replace(decision, verdict=Verdict.ALLOW, reason=Reason.OK)

    outcome = ask(site.check_request("/elsewhere"), Source(snapshot), Memory(settle=lift))
    assert outcome.reason is Reason.LEDGER_UNAVAILABLE


def test_without_a_ledger_an_escalation_has_no_ticket(site: PdpSite, snapshot: Snapshot) -> None:
    outcome = ask(site.check_request("/ask/1"), Source(snapshot), Unrecorded())
    assert outcome.decision.verdict is Verdict.ESCALATE
    assert outcome.decision.ticket is None


@pytest.mark.parametrize(
    "error", [ValueError("secret"), RecursionError(), MemoryError(), SystemError("secret")]
)
def test_an_error_of_ours_is_a_recorded_denial_and_keeps_its_message_to_itself(
    site: PdpSite, snapshot: Snapshot, error: Exception
) -> None:
    memory = Memory()
    outcome = ask(site.check_request("/open/1"), Source(snapshot, error), memory)
    assert outcome.reason is Reason.INTERNAL_ERROR
    assert [record.decision_id for record in memory.records] == [outcome.decision_id]
    (fault,) = outcome.faults
    assert fault.startswith(f"{type(error).__name__} at test_check_service.py:")
    assert "secret" not in fault
    assert "secret" not in str(outcome.answer)


def test_the_same_bytes_at_the_same_time_give_the_same_decision(
    site: PdpSite, snapshot: Snapshot
) -> None:
    data, now = site.check_request("/open/1"), datetime.now(UTC)
    assert decide(data, snapshot, now) == decide(data, snapshot, now)


def test_decision_ids_are_version_7_and_sort_by_time() -> None:
    now = datetime(2026, 11, 24, 10, 0, 0, 123_000, tzinfo=UTC)
    early, late = new_decision_id(now), new_decision_id(now + timedelta(milliseconds=1))
    assert early < late
    parsed = uuid.UUID(early)
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert parsed.int >> 80 == int(now.timestamp() * 1000)
    assert len({new_decision_id(now) for _ in range(1000)}) == 1000


def test_a_described_error_says_where_and_nothing_else() -> None:
    try:
        int("secret")
    except ValueError as error:
        text = describe(error)
    assert text.startswith("ValueError at test_check_service.py:")
    assert "secret" not in text
