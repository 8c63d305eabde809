"""Kills, full disks, locks and lost files: nothing half done, nothing lost, no restart needed."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from authz_server.core.decision import Verdict
from authz_server.core.errors import LedgerError
from authz_server.ledger.approvals import Approvals, ApprovalStatus
from authz_server.ledger.query import DecisionFilter
from authz_server.ledger.store import Ledger
from tests.ledger_samples import BOB, GROUPS, TTL_S, allow, at, escalation, record

ROOT = Path(__file__).parents[2]


class Worker:
    """A process running one job of `ledger_worker`; killed when the test leaves it."""

    def __init__(self, job: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.ledger_worker", job, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def line(self) -> str:
        """Return the next line; empty once the process has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self.wait()

    def wait(self) -> int:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        return self._process.wait()

    def end(self) -> int:
        """Wait for the end of a process that needs no more lines; negative if killed."""
        return self._process.wait()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "authz.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    ledger = Ledger.open(url, approval_ttl_s=TTL_S)
    yield ledger
    ledger.close()


def recorded(url: str) -> list[str]:
    """Return the ids recorded, oldest first, after checking that the file is whole."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute("SELECT seq, decision_id FROM decisions ORDER BY seq").fetchall()
    assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1)), "sequence without gaps"
    return [decision_id for _, decision_id in rows]


def approved(url: str) -> str:
    """Ask and approve; return the id of an approval that waits to be used."""
    with closing(Ledger.open(url, approval_ttl_s=TTL_S)) as ledger:
        (asked,) = ledger.commit([record(escalation(), "asked")])
    assert asked.ticket is not None
    Approvals.open(url, groups=GROUPS).approve(asked.ticket.id, approver=BOB, now=at(1))
    return asked.ticket.id


def together(jobs: list[list[str]]) -> list[list[str]]:
    """Run jobs at once: all are ready before any goes on. Return the lines of each."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(*job)) for job in jobs]
        assert [worker.line() for worker in workers] == ["ready"] * len(jobs)
        for worker in workers:
            worker.go_on()
        return [list(iter(worker.line, "done")) for worker in workers]


def test_two_processes_spend_one_approval_once(url: str) -> None:
    """Case approval-07: fifty uses over two processes; looking before spending would allow two."""
    approval_id = approved(url)
    naive = together([["naive_use", url]] * 2)
    assert naive == [["allow"], ["allow"]], "the naive version must fail this test"
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        connection.execute("UPDATE approvals SET status = 'approved'")
        connection.commit()

    verdicts = together([["use", url, "one", "25"], ["use", url, "two", "25"]])
    assert [len(each) for each in verdicts] == [25, 25]
    assert (verdicts[0] + verdicts[1]).count("allow") == 1
    request = Approvals.open(url, groups=GROUPS).show(approval_id, now=at(10))
    assert request.status is ApprovalStatus.CONSUMED
    assert len(recorded(url)) == 51
    open_questions = Approvals.open(url, groups=GROUPS).list(
        now=at(10), status=ApprovalStatus.PENDING
    )
    assert len(open_questions) == 1, "the forty-nine share one new question"


def test_an_approval_outlives_every_process_and_is_still_good_once(url: str) -> None:
    """Case approval-01: kill -9 after the question, after the approval, and after its use."""
    with Worker("ask", url) as worker:
        approval_id = worker.line()
    with Worker("approve", url, approval_id) as worker:
        assert worker.line() == "approved"
    for prefix, verdict in (("first", "allow"), ("second", "escalate")):
        with Worker("use", url, prefix, "1") as worker:
            assert worker.line() == "ready"
            worker.go_on()
            assert worker.line() == verdict
    assert recorded(url) == ["asked", "first-0", "second-0"]


def test_a_naive_commit_loses_an_approval_to_a_kill(url: str) -> None:
    approval_id = approved(url)
    with Worker("naive_die_between", url) as worker:
        worker.end()
    request = Approvals.open(url, groups=GROUPS).show(approval_id, now=at(10))
    assert request.status is ApprovalStatus.CONSUMED
    assert "used" not in recorded(url), "spent, and nobody knows on what"


@pytest.mark.parametrize(
    "statement",
    [
        "BEGIN IMMEDIATE",
        "UPDATE approvals SET status='consumed'",
        "INSERT INTO decisions",
        "INSERT INTO decision_terms",
        "COMMIT",
    ],
)
def test_a_kill_during_commit_leaves_all_or_nothing(url: str, statement: str) -> None:
    approval_id = approved(url)
    with Worker("die_at", url, statement) as worker:
        assert worker.line() == "", "the process did not die where it should"
        assert worker.end() == -9
    request = Approvals.open(url, groups=GROUPS).show(approval_id, now=at(10))
    assert request.status is ApprovalStatus.APPROVED
    assert recorded(url) == ["asked"]
    with closing(Ledger.open(url, approval_ttl_s=TTL_S)) as ledger:
        (final,) = ledger.commit([record(escalation(time=at(10)), "used")])
    assert final.verdict is Verdict.ALLOW


def test_what_was_acknowledged_before_a_kill_is_recorded(url: str) -> None:
    acknowledged: list[str] = []
    for round_ in range(5):
        with Worker("load", url, f"round{round_}") as worker:
            for _ in range(20 + 7 * round_):
                acknowledged.extend(worker.line().split())
    kept = recorded(url)
    assert set(acknowledged) <= set(kept)
    assert len(kept) == len(set(kept))
    assert len(kept) % 8 == 0, "batches are whole"


def test_several_servers_may_create_one_ledger_at_once(url: str) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker("open_new", url)) for _ in range(4)]
        assert [worker.line() for worker in workers] == ["ready"] * 4
        for worker in workers:
            worker.go_on()
        assert [worker.line() for worker in workers] == ["opened"] * 4
    assert len(recorded(url)) == 4


def test_a_full_disk_refuses_and_heals_without_a_restart(url: str) -> None:
    with Worker("full_disk", url) as worker:
        batches, _, message = worker.line().partition(" ")
        lines = [worker.line() for _ in range(4)]
        assert worker.end() == 0
    assert message.startswith("cannot write the ledger: ")
    assert lines[-1] == "recovered"
    kept = recorded(url)
    assert [one for one in kept if one.startswith("before")] == [
        f"before-{number}-{part}" for number in range(int(batches)) for part in range(4)
    ], "every acknowledged batch whole, the refused one not at all"
    for attempt, line in enumerate(lines[:3]):
        assert (f"during-{attempt}" in kept) == (line == "written")
    assert kept[-1] == "after"


def test_a_lock_refuses_within_the_time_a_check_has_and_heals(path: Path, ledger: Ledger) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked"):
            ledger.commit([record(allow(), "refused")])
        other.execute("ROLLBACK")
    ledger.commit([record(allow(), "kept")])
    assert recorded(f"sqlite:///{path}") == ["kept"]


def test_a_file_that_turns_read_only_refuses_and_heals(ledger: Ledger, url: str) -> None:
    assert ledger._writer is not None
    ledger._writer.driver.execute("PRAGMA query_only = ON")
    with pytest.raises(LedgerError, match="readonly"):
        ledger.commit([record(allow(), "refused")])
    ledger.commit([record(allow(), "kept")])
    assert recorded(url) == ["kept"]


def test_a_naive_connection_records_into_a_removed_file(path: Path) -> None:
    with closing(sqlite3.connect(path)) as naive:
        naive.execute("PRAGMA journal_mode = WAL")
        naive.execute("CREATE TABLE decisions (decision_id TEXT)")
        naive.commit()
        path.unlink()
        naive.execute("INSERT INTO decisions VALUES ('lost')")
        naive.commit()  # no error: the decision is durable where nobody will ever look
    assert not path.exists()


def test_a_removed_file_refuses_once_and_is_created_anew(
    path: Path, ledger: Ledger, url: str
) -> None:
    ledger.commit([record(allow(), "before")])
    for file in list(path.parent.iterdir()):
        file.unlink()
    with pytest.raises(LedgerError, match="No such file"):
        ledger.commit([record(allow(), "refused")])
    ledger.commit([record(allow(), "kept")])
    assert recorded(url) == ["kept"]


@pytest.mark.parametrize("notices", ["commit", "ping"])
def test_a_replaced_file_refuses_once_and_is_then_written(
    path: Path, ledger: Ledger, url: str, notices: str, tmp_path: Path
) -> None:
    ledger.commit([record(allow(), "before")])
    restored = tmp_path / "restored.db"
    with closing(Ledger.open(f"sqlite:///{restored}", approval_ttl_s=TTL_S)) as other:
        other.commit([record(allow(), "restored")])
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()
    restored.replace(path)
    with pytest.raises(LedgerError, match="replaced"):
        ledger.ping() if notices == "ping" else ledger.commit([record(allow(), "refused")])
    ledger.commit([record(allow(), "kept")])
    assert recorded(url) == ["restored", "kept"]


def test_a_directory_that_went_away_heals_when_it_is_back(tmp_path: Path) -> None:
    volume, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"
    volume.mkdir()
    url = f"sqlite:///{volume}/authz.db"
    with closing(Ledger.open(url, approval_ttl_s=TTL_S)) as ledger:
        ledger.commit([record(allow(), "before")])
        volume.rename(elsewhere)
        for attempt in range(3):
            with pytest.raises(LedgerError):
                ledger.commit([record(allow(), f"refused-{attempt}")])
            with pytest.raises(LedgerError):
                ledger.ping()
        elsewhere.rename(volume)
        ledger.ping()
        ledger.commit([record(allow(), "after")])
        ids = [stored.decision_id for stored in ledger.list(DecisionFilter())]
    # What was refused while the volume was away may still have reached the file that moved.
    assert (ids[0], ids[-1]) == ("after", "before")
