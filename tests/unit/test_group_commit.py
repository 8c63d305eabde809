"""One tick, one transaction; and whatever happens to it, every waiting call gets an answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from authz_server.core.decision import Decision, Verdict
from authz_server.core.errors import LedgerError, Reason
from authz_server.ledger.record import Record, RecordFault
from authz_server.servers import group_commit
from authz_server.servers.group_commit import GroupCommit, Unrecorded

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
ESCALATION = Decision(
    verdict=Verdict.ESCALATE,
    reason=Reason.ESCALATED_BY_RULE,
    detail="a person must approve",
    time=NOW,
    revision="r1",
)


def record(name: str) -> Record:
    return Record(decision_id=name, decision=ESCALATION, duration_us=1)


class Memory:
    """A committer that keeps batches; refuses all while `outage`, and always what is `poison`."""

    def __init__(self, *, poison: frozenset[str] = frozenset()) -> None:
        self.batches: list[list[str]] = []
        self.outage = False
        self._poison = poison

    def commit(self, batch: Sequence[Record]) -> list[Decision]:
        if self.outage:
            raise LedgerError("disk is full")
        names = [entry.decision_id for entry in batch]
        if taken := self._poison.intersection(names):
            raise RecordFault(f"{taken} cannot be written")
        self.batches.append(names)
        return [replace(entry.decision, detail=entry.decision_id) for entry in batch]

    @property
    def written(self) -> list[str]:
        return [name for batch in self.batches for name in batch]


class Observed:
    def __init__(self) -> None:
        self.transactions: list[tuple[int, bool]] = []

    def __call__(self, records: int, seconds: float, error: LedgerError | None) -> None:
        assert seconds >= 0
        self.transactions.append((records, error is None))


async def outcome(commit: GroupCommit, name: str) -> str:
    try:
        return (await commit.record(record(name))).detail
    except LedgerError as error:
        return f"failed: {error}"


def test_the_records_of_one_tick_share_a_transaction() -> None:
    memory, observed = Memory(), Observed()

    async def run() -> list[str]:
        commit = GroupCommit(memory, observe=observed)
        first = await asyncio.gather(*(outcome(commit, name) for name in "abc"))
        return [*first, await outcome(commit, "d")]

    assert asyncio.run(run()) == ["a", "b", "c", "d"], "each call gets its own final decision"
    assert memory.batches == [["a", "b", "c"], ["d"]]
    assert observed.transactions == [(3, True), (1, True)]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_lone_record_waits_for_nobody() -> None:
    memory = Memory()

    async def run() -> None:
        commit = GroupCommit(memory, observe=Observed())
        for name in "abc":
            call = asyncio.ensure_future(outcome(commit, name))
            await turns(2)  # one to ask, one to commit
            assert memory.written[-1:] == [name]
            assert await call == name

    asyncio.run(run())
    assert memory.batches == [["a"], ["b"], ["c"]]


def test_after_company_a_record_waits_for_those_that_the_loop_still_brings() -> None:
    memory = Memory()

    async def run() -> None:
        commit = GroupCommit(memory, observe=Observed())
        await asyncio.gather(outcome(commit, "a"), outcome(commit, "b"))
        calls = []
        for name in "cdef":  # each some turns of the loop after the one before
            calls.append(asyncio.ensure_future(outcome(commit, name)))
            await turns(4)
        assert await asyncio.gather(*calls) == ["c", "d", "e", "f"]

        await outcome(commit, "g")  # waits in vain, so that the next one does not
        call = asyncio.ensure_future(outcome(commit, "h"))
        await turns(2)
        assert memory.written[-1:] == ["h"]
        await call

    asyncio.run(run())
    assert memory.batches == [["a", "b"], ["c", "d", "e", "f"], ["g"], ["h"]]


def test_nobody_waits_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "_WAIT_S_MAX", 0.0)
    memory = Memory()

    async def run() -> None:
        commit = GroupCommit(memory, observe=Observed())
        await asyncio.gather(outcome(commit, "a"), outcome(commit, "b"))
        call = asyncio.ensure_future(outcome(commit, "c"))
        await turns(2)
        assert memory.written[-1:] == ["c"]
        await call

    asyncio.run(run())


def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "BATCH_RECORDS_MAX", 4)
    memory = Memory()

    async def run() -> list[str]:
        commit = GroupCommit(memory, observe=Observed())
        return list(await asyncio.gather(*(outcome(commit, str(n)) for n in range(10))))

    assert asyncio.run(run()) == [str(n) for n in range(10)]
    assert [len(batch) for batch in memory.batches] == [4, 4, 2]


def test_an_outage_fails_the_whole_batch_and_recovery_needs_no_restart() -> None:
    memory, observed = Memory(), Observed()

    async def run() -> None:
        commit = GroupCommit(memory, observe=observed)
        memory.outage = True
        refused = await asyncio.gather(*(outcome(commit, name) for name in "ab"))
        assert refused == ["failed: disk is full"] * 2
        memory.outage = False
        assert await outcome(commit, "c") == "c"

    asyncio.run(run())
    assert memory.written == ["c"]
    assert observed.transactions == [(2, False), (1, True)], "an outage is tried once, not per call"


def test_a_record_that_cannot_be_written_fails_alone() -> None:
    memory = Memory(poison=frozenset("b"))

    async def run() -> list[str]:
        commit = GroupCommit(memory, observe=Observed())
        return list(await asyncio.gather(*(outcome(commit, name) for name in "abc")))

    assert asyncio.run(run()) == ["a", "failed: record cannot be written", "c"]
    assert memory.written == ["a", "c"]


def test_the_cause_tells_a_bad_record_from_an_outage() -> None:
    memory = Memory(poison=frozenset("b"))

    async def run() -> tuple[BaseException | None, BaseException | None]:
        commit = GroupCommit(memory, observe=Observed())
        with pytest.raises(LedgerError) as alone:
            await commit.record(record("b"))
        memory.outage = True
        with pytest.raises(LedgerError) as outage:
            await commit.record(record("a"))
        return alone.value.__cause__, outage.value.__cause__

    fault, outage = asyncio.run(run())
    assert isinstance(fault, RecordFault)
    assert outage is None


def test_a_cancelled_call_is_recorded_all_the_same() -> None:
    memory = Memory()

    async def run() -> None:
        commit = GroupCommit(memory, observe=Observed())
        calls = [asyncio.ensure_future(outcome(commit, name)) for name in "ab"]
        await asyncio.sleep(0)  # both have asked, nothing is committed yet
        assert memory.batches == []
        calls[0].cancel()
        assert await calls[1] == "b"
        with pytest.raises(asyncio.CancelledError):
            await calls[0]

    asyncio.run(run())
    assert memory.written == ["a", "b"]


def test_closing_commits_what_waits_and_refuses_the_rest() -> None:
    memory = Memory()

    async def run() -> None:
        commit = GroupCommit(memory, observe=Observed())
        waiting = [asyncio.ensure_future(outcome(commit, name)) for name in "ab"]
        await asyncio.sleep(0)
        commit.close()
        assert memory.written == ["a", "b"], "without another turn of the loop"
        assert await asyncio.gather(*waiting) == ["a", "b"]
        assert await outcome(commit, "c") == "failed: ledger is closed"

    asyncio.run(run())
    assert memory.written == ["a", "b"]


def test_without_a_ledger_an_escalation_stays_one_without_a_ticket() -> None:
    final = asyncio.run(Unrecorded().record(record("a")))
    assert final is ESCALATION
    assert final.ticket is None
