"""Shipping an outbox into a shared ledger: in order, each record once, whatever fails between.

One batch is one transaction of the shared ledger. It locks the note of where this chain ends there
(`chains`), adds the records that follow, and moves the note. What is known to be there is deleted
here afterwards. If the answer to a commit is lost, the note says whether it happened.

INVARIANT: a record is only shipped if it follows, by number and by hash, the last one that is
there. So two servers that run on copies of one outbox cannot both write: the second is refused.
"""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import SQLAlchemyError

from authz_server.core.errors import LedgerError
from authz_server.ledger.backlog import Backlog
from authz_server.ledger.chain import START, Link, hash_of, leaf_of
from authz_server.ledger.database import Access, Store, converted, open_shared_engine
from authz_server.ledger.partitions import Month, ensure
from authz_server.ledger.record import document_terms
from authz_server.ledger.schema import COMMITTED, chains, check, decisions, statements
from authz_server.ledger.store import Ledger

BATCH_RECORDS: Final = 1_000
_INTERVAL_S: Final = 0.2  # how long a record waits here while all is well
_RETRY_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)  # after the first, second, … failure in a row
_STATEMENT_MS: Final = 60_000
_JOIN_S: Final = 5.0  # a database that does not answer keeps no server from stopping

_COLUMNS: Final = tuple(column.name for column in decisions.c)
_COPY: Final = f"COPY decisions ({', '.join(_COLUMNS)}) FROM STDIN"
_COPY_TERMS: Final = "COPY decision_terms (kind, value, time_us, seq, writer) FROM STDIN"

# Told after every batch, from the shipping thread: None, or what failed.
ShipObserver = Callable[[LedgerError | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """What is in the shared ledger after one transaction and can go here."""

    records: int
    end: Link
    statements: Sequence[Mapping[str, Any]]

    def clear(self, driver: sqlite3.Connection) -> None:
        """Delete it from the outbox. A statement that was made meanwhile stays."""
        driver.execute("DELETE FROM decisions WHERE seq <= ?", (self.end.seq,))
        driver.executemany(
            "DELETE FROM statements WHERE kind = :kind AND last_seq = :last_seq"
            " AND time_us = :time_us",
            self.statements,
        )


class Shipper:
    """Moves the records of one outbox into a shared ledger, in a thread of its own."""

    def __init__(
        self, ledger: Ledger, *, url: str, backlog: Backlog, observe: ShipObserver
    ) -> None:
        self._ledger = ledger
        self._outbox = Store.of_file(ledger.path, Access.READ)
        self._engine = open_shared_engine(url, statement_timeout_ms=_STATEMENT_MS)
        self._backlog = backlog
        self._observe = observe
        self._connection: Connection | None = None
        self._months: set[Month] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-shipper", daemon=True)

    def start(self) -> None:
        """Take note of what waits, and begin. Raises `LedgerError` for an unreadable outbox."""
        with converted("read the outbox"), self._outbox.transaction() as connection:
            end = _end(connection)
            first = connection.execute(select(decisions.c.seq).order_by(decisions.c.seq)).first()
        self._backlog.committed_seq = end[1].seq
        self._backlog.shipped_seq = first.seq - 1 if first else end[1].seq
        self._thread.start()

    def stop(self) -> None:
        """Ship what is there, if the shared ledger answers, and end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def ship(self) -> int:
        """Ship one batch; return how many records. Raises `LedgerError`."""
        try:
            with converted("write the shared ledger"):
                connection = self._connected()
                with connection.begin():
                    batch = self._ship(connection)
        except BaseException:
            self._disconnect()
            raise
        self._backlog.shipped_seq = batch.end.seq
        if batch.records or batch.statements:
            self._ledger.transact("clear the outbox", batch.clear)
        return batch.records

    def _run(self) -> None:
        failures = 0
        while True:
            last_round = self._stopping.is_set()
            try:
                shipped = self.ship()
            except LedgerError as error:
                self._observe(error)
                wait_s = _RETRY_S[min(failures, len(_RETRY_S) - 1)]
                failures += 1
            else:
                self._observe(None)
                failures = 0
                if shipped == BATCH_RECORDS:
                    continue
                wait_s = _INTERVAL_S
            if last_round:
                break
            self._stopping.wait(wait_s)
        self._disconnect()

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            with self._connection.begin():
                check(self._connection)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.invalidate()
                connection.close()

    def _ship(self, shared: Connection) -> "_Batch":
        """Add the records that follow the end of this chain, and statements on what is there."""
        with self._outbox.transaction() as outbox:
            writer, _ = _end(outbox)
        there = _lock_end(shared, writer)
        with self._outbox.transaction() as outbox:
            rows = _rows_after(outbox, there.seq)
            _, here = _end(outbox)
            sealed = outbox.execute(select(*statements.c)).all()
        _check_same_chain(writer, there, here, rows)
        if rows:
            self._ensure_months(shared, rows)
            _copy(shared, rows)
            last = rows[-1]
            there = Link(last.seq, bytes(last.hash))
            shared.execute(
                update(chains)
                .where(chains.c.writer == writer)
                .values(seq=there.seq, hash=there.hash)
            )
        # A statement follows the records it speaks of.
        ready = [row._asdict() for row in sealed if row.last_seq <= there.seq]
        if ready:
            shared.execute(postgresql.insert(statements).on_conflict_do_nothing(), ready)
        return _Batch(records=len(rows), end=there, statements=ready)

    def _ensure_months(self, shared: Connection, rows: Sequence[Any]) -> None:
        months = {Month.of_us(row.time_us) for row in rows}
        if not months <= self._months:
            ensure(shared, months | {max(months).next})
            self._months |= months


def _end(outbox: Connection) -> tuple[str, Link]:
    writer, seq, value = outbox.execute(select(chains.c.writer, chains.c.seq, chains.c.hash)).one()
    return writer, Link(seq, bytes(value))


def _lock_end(shared: Connection, writer: str) -> Link:
    """Return where the chain of `writer` ends there; nobody else moves it until the commit."""
    locked = select(chains.c.seq, chains.c.hash).where(chains.c.writer == writer).with_for_update()
    row = shared.execute(locked).one_or_none()
    if row is None:
        shared.execute(
            postgresql.insert(chains)
            .values(writer=writer, seq=START.seq, hash=START.hash)
            .on_conflict_do_nothing()
        )
        row = shared.execute(locked).one()
    return Link(row.seq, bytes(row.hash))


def _rows_after(outbox: Connection, seq: int) -> Sequence[Any]:
    following = select(*decisions.c).where(decisions.c.seq > seq).order_by(decisions.c.seq)
    return outbox.execute(following.limit(BATCH_RECORDS)).all()


def _check_same_chain(writer: str, there: Link, here: Link, rows: Sequence[Any]) -> None:
    """Refuse to ship what does not continue the chain that is there."""
    if rows and rows[0].seq != there.seq + 1:
        raise LedgerError(
            f"the shared ledger has records of {writer} through {there.seq}, this outbox from "
            f"{rows[0].seq}: was the database restored from an old copy?"
        )
    if rows:
        first = rows[0]
        leaf = leaf_of(first.salt, [getattr(first, name) for name in COMMITTED], first.record)
        continues = hash_of(writer, first.seq, there.hash, leaf) == bytes(first.hash)
    else:
        continues = there == here
    if not continues:
        raise LedgerError(
            f"outbox of {writer} does not continue the shared ledger at {there.seq}: "
            "does another server run on a copy of it?"
        )


def _copy(shared: Connection, rows: Sequence[Any]) -> None:
    # The driver of this engine is psycopg; SQLAlchemy has no COPY of its own.
    driver = cast("Any", shared.connection.driver_connection)
    with driver.cursor() as cursor:
        with cursor.copy(_COPY) as copy:
            for row in rows:
                copy.write_row(row)
        with cursor.copy(_COPY_TERMS) as copy:
            for term in _terms(rows):
                copy.write_row(term)


def _terms(rows: Sequence[Any]) -> Iterator[tuple[str, str, int, int, str]]:
    for row in rows:
        for kind, value in document_terms(json.loads(row.record)):
            yield kind, value, row.time_us, row.seq, row.writer
