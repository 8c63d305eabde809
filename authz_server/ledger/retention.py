"""Removing what is older than the records need be kept, so that the chain still verifies.

A signed `retention` statement is written before, or together with, the removal: it says which
numbers may be gone and what the last of them hashed to, so that the record after it is still held
to its predecessor. Numbers, not times, bound what is removed: with a clock that stepped back, a
younger record in front keeps older ones behind it.

In a file the oldest records go one by one. In a shared ledger whole months are dropped, so a record
stays up to a month longer.
"""

import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, delete, select, text
from sqlalchemy.dialects import postgresql

from authz_server.ledger.checkpoints import end_of, keep
from authz_server.ledger.database import Access, Store, converted
from authz_server.ledger.partitions import Month, drop, existing_months
from authz_server.ledger.record import document_terms, unix_us
from authz_server.ledger.schema import approvals, decisions, statements
from authz_server.ledger.seal import SigningKey, Statement, StatementKind
from authz_server.ledger.store import Ledger

_PAGE_ROWS: Final = 4_096
# Removed in one transaction; decisions wait for as long, a few milliseconds.
_CHUNK_ROWS: Final = 100

_OLDEST: Final = (
    "SELECT seq, time_us, record, writer FROM decisions WHERE seq <= ? ORDER BY seq LIMIT ?"
)
_DELETE_TERM: Final = (
    "DELETE FROM decision_terms "
    "WHERE kind = ? AND value = ? AND time_us = ? AND seq = ? AND writer = ?"
)
# Runs of consecutive numbers in one month: one per writer, unless a clock stepped back.
_RUNS: Final = """
SELECT runs.writer, runs.first, runs.last, d.hash
FROM (
    SELECT writer, min(seq) AS first, max(seq) AS last
    FROM (
        SELECT writer, seq, seq - row_number() OVER (PARTITION BY writer ORDER BY seq) AS run
        FROM decisions WHERE time_us >= :since AND time_us < :until
    ) numbered
    GROUP BY writer, run
) runs
JOIN decisions d ON d.writer = runs.writer AND d.seq = runs.last
    AND d.time_us >= :since AND d.time_us < :until
"""


def expire_file(ledger: Ledger, key: SigningKey, *, cutoff: datetime, now: datetime) -> int:
    """Remove from a file what was decided before `cutoff`; return how many records.

    Raises `LedgerError`; what was removed until then is covered by its statement.
    """
    store = Store.of_file(ledger.path, Access.READ)
    with converted("read the ledger"):
        cut = _last_before(store, unix_us(cutoff))
    removed = 0
    if cut is not None:
        seq, value = cut

        def state(driver: sqlite3.Connection) -> None:
            writer, _ = end_of(driver)
            statement = Statement(
                kind=StatementKind.RETENTION,
                writer=writer,
                first=1,
                last=seq,
                hash=value,
                time=now,
            )
            # Each covers everything from the first record on, so the newest is enough.
            driver.execute("DELETE FROM statements WHERE kind = 'retention'")
            driver.execute("DELETE FROM statements WHERE last_seq < ?", (seq,))
            keep(driver, statement, key.sign(statement))

        ledger.transact("state a removal", state)
        while chunk := ledger.transact("remove records", lambda driver: _remove(driver, seq)):
            removed += chunk
    ledger.transact("remove approvals", lambda driver: _remove_approvals(driver, cutoff))
    return removed


def expire_shared(store: Store, key: SigningKey, *, cutoff: datetime, now: datetime) -> int:
    """Drop the months of a shared ledger that ended before `cutoff`; return how many.

    Each is dropped in one transaction with its statements. Raises `LedgerError`.
    """
    with converted("read the shared ledger"), store.transaction() as connection:
        months = sorted(existing_months(connection))
    old = [month for month in months if month.next.first_us <= unix_us(cutoff)]
    for month in old:
        with converted("remove a month"), store.transaction() as connection:
            _drop_month(connection, month, key, now)
    with converted("remove approvals"), store.transaction() as connection:
        connection.execute(delete(approvals).where(approvals.c.expires_at_us < unix_us(cutoff)))
    return len(old)


def _last_before(store: Store, cutoff_us: int) -> tuple[int, bytes] | None:
    """Return number and hash of the last record of which all up to it are older."""
    found, last = None, 0
    read = select(decisions.c.seq, decisions.c.time_us, decisions.c.hash).order_by(decisions.c.seq)
    while True:
        with store.transaction() as connection:
            rows = connection.execute(read.where(decisions.c.seq > last).limit(_PAGE_ROWS)).all()
        for seq, time_us, value in rows:
            if time_us >= cutoff_us:
                return found
            found = seq, value
        if not rows:
            return found
        last = rows[-1].seq


def _remove(driver: sqlite3.Connection, seq: int) -> int:
    rows: Sequence[tuple[int, int, str | None, str]]
    rows = driver.execute(_OLDEST, (seq, _CHUNK_ROWS)).fetchall()
    for number, time_us, record, writer in rows:
        terms = document_terms(json.loads(record)) if record else ()
        driver.executemany(_DELETE_TERM, [(*term, time_us, number, writer) for term in terms])
    if rows:
        driver.execute("DELETE FROM decisions WHERE seq <= ?", (rows[-1][0],))
    return len(rows)


def _remove_approvals(driver: sqlite3.Connection, cutoff: datetime) -> None:
    driver.execute("DELETE FROM approvals WHERE expires_at_us < ?", (unix_us(cutoff),))


def _drop_month(connection: Connection, month: Month, key: SigningKey, now: datetime) -> None:
    bounds = {"since": month.first_us, "until": month.next.first_us}
    for writer, first, last, value in connection.execute(text(_RUNS), bounds).all():
        statement = Statement(
            kind=StatementKind.RETENTION,
            writer=writer,
            first=first,
            last=last,
            hash=bytes(value),
            time=now,
        )
        row = {
            "writer": writer,
            "kind": statement.kind.value,
            "last_seq": last,
            "time_us": unix_us(now),
            "jws": key.sign(statement),
        }
        connection.execute(postgresql.insert(statements).on_conflict_do_nothing(), row)
        # Checkpoints on what is gone say nothing any more.
        connection.execute(
            delete(statements).where(
                statements.c.writer == writer,
                statements.c.kind == StatementKind.CHECKPOINT.value,
                statements.c.last_seq.between(first, last - 1),
            )
        )
    drop(connection, month)
