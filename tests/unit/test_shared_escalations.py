"""Escalations settled elsewhere: in time or not at all, and recorded even if nobody waits."""

import asyncio
import threading
from dataclasses import replace

import pytest

from authz_server.core.decision import Decision, Verdict
from authz_server.core.enforcement import Mode
from authz_server.core.errors import LedgerError, Reason
from authz_server.ledger.record import Record
from authz_server.servers.shared_escalations import UNREACHABLE, SharedEscalations
from tests.ledger_samples import allow, deny, escalation, record

ALLOWED = replace(allow(), detail="approved by a person")


class Approvals:
    """What settles, or fails, or hangs until it is let go."""

    def __init__(self, answer: Decision | LedgerError, *, timeout_s: float = 60.0) -> None:
        self.timeout_s = timeout_s
        self.asked = threading.Event()
        self.go = threading.Event()
        self._answer = answer

    def settle(self, record: Record, *, deadline: float) -> Decision:
        self.asked.set()
        self.go.wait(60)
        if isinstance(self._answer, LedgerError):
            raise self._answer
        return self._answer


class Kept:
    """A recorder that keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    async def record(self, record: Record) -> Decision:
        self.records.append(record)
        return record.decision


async def settled(approvals: Approvals, kept: Kept, one: Record) -> Decision:
    return await SharedEscalations(approvals, recorder=kept).record(one)


def test_records_what_the_escalation_became() -> None:
    approvals, kept = Approvals(ALLOWED), Kept()
    approvals.go.set()
    assert asyncio.run(settled(approvals, kept, record(escalation()))) is ALLOWED
    assert [one.decision for one in kept.records] == [ALLOWED]


@pytest.mark.parametrize("decision", [allow(), deny(), escalation(mode=Mode.SHADOW)])
def test_asks_for_nothing_else(decision: Decision) -> None:
    approvals, kept = Approvals(ALLOWED), Kept()
    assert asyncio.run(settled(approvals, kept, record(decision))) is decision
    assert not approvals.asked.is_set()


@pytest.mark.parametrize("hangs", [True, False])
def test_an_answer_that_fails_or_never_comes_leaves_an_escalation(hangs: bool) -> None:
    approvals, kept = Approvals(LedgerError("gone"), timeout_s=0.05 if hangs else 60.0), Kept()
    if not hangs:
        approvals.go.set()
    final = asyncio.run(settled(approvals, kept, record(escalation())))
    approvals.go.set()
    assert (final.verdict, final.reason) == (Verdict.ESCALATE, Reason.ESCALATED_BY_RULE)
    assert (final.detail, final.ticket) == (UNREACHABLE, None)
    assert [one.decision for one in kept.records] == [final]


def test_a_call_that_is_cancelled_is_recorded_all_the_same() -> None:
    approvals, kept = Approvals(ALLOWED), Kept()

    async def give_up() -> None:
        call = asyncio.ensure_future(settled(approvals, kept, record(escalation())))
        while not approvals.asked.is_set():
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert kept.records == []
        approvals.go.set()
        while not kept.records:
            await asyncio.sleep(0)

    asyncio.run(give_up())
    assert [one.decision for one in kept.records] == [ALLOWED]
