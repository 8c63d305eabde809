"""A process that uses a ledger and may be killed. Run as `python -m tests.faults.ledger_worker`.

Each line it prints says that something has happened; a line on standard input lets it go on. The
`naive_…` jobs do what the ledger does, without its precaution, so that a test can show that it
notices the difference.
"""

import os
import resource
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

from authz_server.core.decision import Verdict
from authz_server.core.errors import LedgerError
from authz_server.ledger.approvals import Approvals
from authz_server.ledger.store import Ledger
from tests.ledger_samples import BOB, GROUPS, TTL_S, allow, at, escalation, record


def say(*words: object) -> None:
    print(*words, flush=True)


def wait() -> None:
    sys.stdin.readline()


def open_ledger(url: str) -> Ledger:
    # Patient, so that only the fault under test makes a commit fail on a loaded machine.
    return Ledger.open(url, approval_ttl_s=TTL_S, busy_timeout_ms=60_000)


def driver_of(ledger: Ledger) -> sqlite3.Connection:
    assert ledger._writer is not None
    return ledger._writer.driver


def open_new(url: str) -> None:
    """Open the ledger at the same time as others do."""
    say("ready")
    wait()
    ledger = open_ledger(url)
    ledger.commit([record(allow(), f"of-{os.getpid()}")])
    say("opened")


def use(url: str, prefix: str, times: str) -> None:
    """Attempt the approved action so many times, one transaction each."""
    ledger = open_ledger(url)
    say("ready")
    wait()
    for number in range(int(times)):
        (final,) = ledger.commit([record(escalation(time=at(10)), f"{prefix}-{number}")])
        say(final.verdict.value)
    say("done")
    wait()


def naive_use(url: str) -> None:
    """Look whether it is approved, and then use it up."""
    with sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None) as connection:
        (status,) = connection.execute("SELECT status FROM approvals").fetchone()
        say("ready")
        wait()
        connection.execute("UPDATE approvals SET status = 'consumed'")
    connection.close()
    say("allow" if status == "approved" else "escalate")
    say("done")
    wait()


def ask(url: str) -> None:
    """Attempt the action without an approval."""
    (final,) = open_ledger(url).commit([record(escalation(), "asked")])
    assert final.ticket is not None
    say(final.ticket.id)
    wait()


def approve(url: str, approval_id: str) -> None:
    Approvals.open(url, groups=GROUPS).approve(approval_id, approver=BOB, now=at(1))
    say("approved")
    wait()


def die_at(url: str, statement: str) -> None:
    """Use the approval, and be killed as `statement` begins."""
    ledger = open_ledger(url)

    def kill_before(text: str) -> None:
        if text.startswith(statement):
            os.kill(os.getpid(), signal.SIGKILL)

    driver_of(ledger).set_trace_callback(kill_before)
    ledger.commit([record(escalation(time=at(10)), "used")])
    say("survived")


def naive_die_between(url: str) -> None:
    """Use the approval up, and be killed before that is recorded."""
    with sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None) as connection:
        connection.execute("UPDATE approvals SET status = 'consumed', consumed_by = 'used'")
    os.kill(os.getpid(), signal.SIGKILL)


def load(url: str, prefix: str) -> None:
    """Record batches until killed; print each id once it is durable."""
    ledger = open_ledger(url)
    batch = 0
    while True:
        records = [record(allow(), f"{prefix}-{batch}-{number}") for number in range(8)]
        ledger.commit(records)
        say(*(one.decision_id for one in records))
        batch += 1


def full_disk(url: str) -> None:
    """Record until the file may not grow, then again once it may."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    ledger = open_ledger(url)
    size = max(
        file.stat().st_size for file in Path(url.removeprefix("sqlite:///")).parent.iterdir()
    )
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 512 * 1024, hard))
    number = 0
    try:
        while True:
            ledger.commit([record(allow(), f"before-{number}-{part}") for part in range(4)])
            number += 1
    except LedgerError as error:
        say(number, error)
    for attempt in range(3):
        try:
            ledger.commit([record(allow(), f"during-{attempt}")])
            say("written")
        except LedgerError:
            say("refused")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    ledger.ping()
    (final,) = ledger.commit([record(allow(), "after")])
    assert final.verdict is Verdict.ALLOW
    say("recovered")


JOBS: dict[str, Callable[..., None]] = {
    job.__name__: job
    for job in (
        open_new, use, naive_use, ask, approve, die_at, naive_die_between, load, full_disk,
    )
}  # fmt: skip

if __name__ == "__main__":
    JOBS[sys.argv[1]](*sys.argv[2:])
