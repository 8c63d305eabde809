"""Mode `async`: answers at once, records soon, and denies when it cannot keep up."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from authz_server.core.decision import Decision
from authz_server.core.enforcement import Mode
from authz_server.core.errors import LedgerError
from authz_server.ledger.record import Record, RecordFault
from authz_server.servers.async_commit import AsyncCommit
from authz_server.servers.group_commit import Unrecorded
from tests.ledger_samples import allow, deny, escalation, record


class Disk:
    """A committer that a test can stop, fail, and read."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.error: LedgerError | None = None
        self.faulty: set[str] = set()
        self.kept: list[str] = []
        self.tried = threading.Event()

    def commit(self, batch: Sequence[Record]) -> list[Decision]:
        self.tried.set()
        self.open.wait()
        if self.error is not None:
            raise self.error
        if any(one.decision_id in self.faulty for one in batch):
            raise RecordFault("taken")
        self.kept += [one.decision_id for one in batch]
        return [one.decision for one in batch]


class Durable:
    """A recorder that notes what it was given."""

    def __init__(self) -> None:
        self.given: list[str] = []

    async def record(self, record: Record) -> Decision:
        self.given.append(record.decision_id)
        return record.decision


def queue(disk: Disk, records_max: int = 100, durable: Durable | None = None) -> AsyncCommit:
    return AsyncCommit(
        disk,
        escalations=durable or Unrecorded(),
        records_max=records_max,
        observe=lambda *_: None,
    )


async def refused(commit: AsyncCommit, one: Record) -> bool:
    try:
        await commit.record(one)
    except LedgerError:
        return True
    return False


def test_answers_before_the_record_is_kept() -> None:
    disk = Disk()
    disk.open.clear()
    commit = queue(disk)
    one = record(allow(), "a")
    assert asyncio.run(_ask(commit, one)) == one.decision
    assert disk.kept == []
    disk.open.set()
    commit.close()
    assert (disk.kept, commit.waiting, commit.lost) == (["a"], 0, 0)


async def _ask(commit: AsyncCommit, one: Record) -> Decision:
    return await commit.record(one)


def test_denies_and_counts_what_does_not_fit() -> None:
    disk = Disk()
    disk.open.clear()
    commit = queue(disk, records_max=3)

    async def ask() -> list[bool]:
        return [await refused(commit, record(allow(), f"d{number}")) for number in range(5)]

    assert asyncio.run(ask()) == [False] * 3 + [True] * 2
    assert commit.overflowed == 2
    disk.open.set()
    commit.close()
    assert disk.kept == ["d0", "d1", "d2"]


def test_keeps_what_waits_through_an_outage() -> None:
    disk = Disk()
    disk.error = LedgerError("disk is full")
    commit = queue(disk)
    asyncio.run(_ask(commit, record(deny(), "a")))
    assert disk.tried.wait(10)
    disk.error = None
    asyncio.run(_ask(commit, record(allow(), "b")))
    commit.close()
    assert disk.kept == ["a", "b"]


def test_one_record_that_cannot_be_stored_holds_up_no_other() -> None:
    disk = Disk()
    disk.open.clear()
    disk.faulty = {"b"}
    commit = queue(disk)

    async def ask() -> None:
        for name in "abc":
            await commit.record(record(allow(), name))

    asyncio.run(ask())
    disk.open.set()
    commit.close()
    assert (disk.kept, commit.lost) == (["a", "c"], 1)


def test_an_escalation_waits_for_its_record() -> None:
    durable = Durable()
    commit = queue(Disk(), durable=durable)
    asyncio.run(_ask(commit, record(escalation(), "e")))
    commit.close()
    assert durable.given == ["e"]


def test_what_is_only_observed_passes_no_full_queue_and_asks_nobody() -> None:
    """In shadow mode a record that finds no room is a denial as any other."""
    disk, durable = Disk(), Durable()
    disk.open.clear()
    commit = queue(disk, records_max=1, durable=durable)
    observed = escalation(mode=Mode.SHADOW)
    assert asyncio.run(_ask(commit, record(observed, "a"))) == observed
    assert asyncio.run(refused(commit, record(observed, "b")))
    assert (durable.given, commit.overflowed) == ([], 1)
    disk.open.set()
    commit.close()
    assert disk.kept == ["a"]


def test_a_closed_queue_says_so() -> None:
    commit = queue(Disk())
    commit.close()
    with pytest.raises(LedgerError, match="closed"):
        asyncio.run(_ask(commit, record(allow())))
