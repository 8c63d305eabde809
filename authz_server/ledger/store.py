"""The ledger as the server uses it: one transaction per batch, and nothing half written.

The same class writes a ledger in one SQLite file, and the outbox in front of a shared ledger.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Self, TypeVar

from sqlalchemy import Connection, Engine, bindparam, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from authz_server.core.decision import Decision
from authz_server.core.errors import LedgerError
from authz_server.ledger import schema
from authz_server.ledger.backlog import Backlog
from authz_server.ledger.chain import SALT_BYTES, Link
from authz_server.ledger.database import (
    BUSY_TIMEOUT_MS,
    Access,
    Store,
    Synchronous,
    converted,
    create_file,
    file_identity,
    open_engine,
    sqlite_path,
)
from authz_server.ledger.pseudonym import Pseudonyms
from authz_server.ledger.query import DecisionFilter, LedgerReader, StoredDecision
from authz_server.ledger.record import (
    Record,
    RecordFault,
    Row,
    decision_row,
    term_rows,
)
from authz_server.ledger.schema import Layout, chains
from authz_server.ledger.settlement import ApprovalTerms, settle

_T = TypeVar("_T")
_Settled = list[Decision]  # `list` means something else inside `Ledger`

# Several servers may create one ledger at once, and turning a file to WAL does not wait for a lock
# as statements do. Opening is not on the way of a request, so it can.
_OPEN_WAIT_S: Final = 5.0
_OPEN_RETRY_S: Final = 0.02
_LOCKED: Final = "database is locked"  # SQLite's own words for SQLITE_BUSY


@dataclass(frozen=True, slots=True)
class _Statements:
    """What every batch executes, as SQL text compiled once.

    The texts go straight to the driver, inside the transaction that SQLAlchemy holds. A record
    alone, and each of a batch of 64, in µs of CPU: SQLAlchemy Core 332 and 61, `exec_driver_sql`
    164 and 46, driver 116 and 49, of which 22 make the row. `tests/bench/bench_ledger.py` measures.
    """

    end: str
    move_end: str
    insert_decision: str
    insert_term: str

    @classmethod
    def compiled_for(cls, engine: Engine) -> Self:
        return cls(
            str(select(chains.c.writer, chains.c.seq, chains.c.hash).compile(engine)),
            str(
                update(chains).values(seq=bindparam("seq"), hash=bindparam("hash")).compile(engine)
            ),
            str(insert(schema.decisions).compile(engine)),
            str(insert(schema.decision_terms).compile(engine)),
        )


@dataclass(frozen=True, slots=True)
class _Writer:
    """The one connection that writes, and the file it was opened on."""

    connection: Connection
    driver: sqlite3.Connection
    file: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerOptions:
    """How records are kept. The defaults are those of a ledger in one file.

    `approvals` are the terms of questions kept in the same file; None leaves an escalation as it
    is. `synchronous` NORMAL survives kill -9, FULL power loss too (see `Synchronous`). A commit
    waits `busy_timeout_ms` for other writers.
    """

    approvals: ApprovalTerms | None = None
    layout: Layout = Layout.LEDGER
    synchronous: Synchronous = Synchronous.NORMAL
    busy_timeout_ms: int = BUSY_TIMEOUT_MS
    pseudonyms: Pseudonyms | None = None
    backlog: Backlog | None = None


class Ledger:
    """Decision records, and approvals, in one SQLite file.

    Several servers on one machine may share the file; each transaction takes the write lock first.
    After any failure the connection is given up and the next call opens the file anew, so that a
    full disk, a lock or a remounted volume heals without a restart.
    """

    def __init__(self, path: Path, options: LedgerOptions) -> None:
        self.path = path
        self._options = options
        self._engine = open_engine(
            path,
            Access.WRITE,
            synchronous=options.synchronous,
            busy_timeout_ms=options.busy_timeout_ms,
        )
        self._statements = _Statements.compiled_for(self._engine)
        self._reader = LedgerReader(Store.of_file(path, Access.READ))
        self._backlog = options.backlog
        self._lock = threading.Lock()
        self._writer: _Writer | None = None
        self._closed = False

    @classmethod
    def open(
        cls,
        url: str,
        *,
        approval_ttl_s: int,
        single_use: bool = True,
        synchronous: str = Synchronous.NORMAL,
        busy_timeout_ms: int = BUSY_TIMEOUT_MS,
    ) -> Self:
        """Open the ledger at `url` (`sqlite:///path`), creating the file (mode 0600) if missing.

        `approval_ttl_s` is how long a question put to people stands; `single_use` approvals allow
        once, others until that deadline. Raises `LedgerError`.
        """
        options = LedgerOptions(
            approvals=ApprovalTerms(ttl=timedelta(seconds=approval_ttl_s), single_use=single_use),
            synchronous=Synchronous(synchronous),
            busy_timeout_ms=busy_timeout_ms,
        )
        return cls.open_file(sqlite_path(url), options)

    @classmethod
    def open_file(cls, path: Path, options: LedgerOptions) -> Self:
        """Open the ledger or outbox at `path`, creating the file (mode 0600) if missing.

        Raises `LedgerError`.
        """
        ledger = cls(path, options)
        until = time.monotonic() + _OPEN_WAIT_S
        while True:
            try:
                ledger.ping()
            except LedgerError as error:
                if _LOCKED not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(_OPEN_RETRY_S)
            else:
                return ledger

    def commit(self, batch: Sequence[Record]) -> list[Decision]:
        """Settle and record `batch` in one transaction; return the final decisions in its order.

        An escalation comes back as an allow with its `approval`, or with its `ticket`; every other
        decision comes back as it is. Either the whole batch is durable or nothing of it is.
        Raises `LedgerError` when the ledger cannot be written now, and `RecordFault` when a
        decision id of the batch is recorded already: a verdict never passes for the record of
        another, so a repeated id is refused rather than taken as written.
        """
        if not batch:
            return []
        if self._backlog is not None:
            self._backlog.admit(len(batch))
        with self._exclusive("write the ledger") as writer:
            # The row counts as written when COMMIT returns and the file is still the ledger.
            with self._transaction(writer, batch):
                final, end = self._write(writer, batch)
            self._check_in_place(writer)
        if self._backlog is not None:
            self._backlog.committed_seq = end.seq
        return final

    def transact(self, doing: str, job: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `job` in a transaction of its own, between those of decisions. Keep it short.

        `doing` completes "cannot …". Raises `LedgerError`.
        """
        with self._exclusive(doing) as writer:
            with _driver_transaction(writer.driver):
                result = job(writer.driver)
            self._check_in_place(writer)
            return result

    def ping(self) -> None:
        """Check that the ledger is there and may be written; raises `LedgerError`.

        Never takes the write lock of an open ledger, so a readiness probe delays no decision.
        """
        with self._exclusive("open the ledger") as writer:
            self._check_in_place(writer)
            if not os.access(self.path, os.W_OK):
                raise LedgerError(f"`{self.path}` is read-only")
        if self._backlog is not None:
            self._backlog.admit(1)

    def get(self, decision_id: str) -> StoredDecision | None:
        """Return the record of exactly `decision_id`, or None. Raises `LedgerError`."""
        return self._reader.get(decision_id)

    def list(self, wanted: DecisionFilter) -> Iterator[StoredDecision]:
        """Yield the records that match, newest first. Raises `LedgerError` while iterating."""
        return self._reader.list(wanted)

    def close(self) -> None:
        """Close the file; every later call raises `LedgerError`."""
        with self._lock:
            self._closed = True
            self._give_up_writer()

    @contextmanager
    def _exclusive(self, doing: str) -> Iterator[_Writer]:
        """Lend the writer to one thread; give it up if anything at all goes wrong."""
        with self._lock:
            try:
                with converted(doing):
                    if self._closed:
                        raise LedgerError("it is closed")
                    if self._writer is None:
                        self._writer = self._open_writer()
                    yield self._writer
            except RecordFault:
                raise  # the transaction is rolled back, the connection is sound
            except BaseException:
                self._give_up_writer()
                raise

    def _open_writer(self) -> _Writer:
        create_file(self.path)
        file = file_identity(self.path)
        connection = self._engine.connect()
        try:
            with connection.begin():
                schema.create_or_check(connection, self._options.layout)
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            return _Writer(connection, driver, file)
        except BaseException:
            connection.close()
            raise

    def _give_up_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            # An open transaction is rolled back by closing. A file that is gone may fail to close.
            with suppress(SQLAlchemyError, sqlite3.Error):
                writer.connection.close()

    @contextmanager
    def _transaction(self, writer: _Writer, batch: Sequence[Record]) -> Iterator[None]:
        """Open the transaction of `batch`; SQLAlchemy's own, and dearer, where it settles."""
        settles = self._options.approvals is not None and any(
            record.decision.awaits_approval for record in batch
        )
        with writer.connection.begin() if settles else _driver_transaction(writer.driver):
            yield

    def _write(self, writer: _Writer, batch: Sequence[Record]) -> tuple[_Settled, Link]:
        """Settle every escalation, then insert all rows. Runs inside the transaction."""
        final: _Settled = []
        rows: list[Row] = []
        terms: list[Row] = []
        name, *end = writer.driver.execute(self._statements.end).fetchone()
        link = Link(*end)
        salts = os.urandom(SALT_BYTES * len(batch))
        for number, record in enumerate(batch):
            decision = self._settled(writer, record)
            final.append(decision)
            if self._options.pseudonyms is not None:
                decision = self._options.pseudonyms.applied(decision)
            salt = salts[SALT_BYTES * number : SALT_BYTES * (number + 1)]
            row, link = decision_row(name, link, salt, record, decision)
            rows.append(row)
            if self._options.layout is Layout.LEDGER:
                terms.extend(term_rows(link, name, decision))
        try:
            writer.driver.executemany(self._statements.insert_decision, rows)
        except sqlite3.IntegrityError as error:
            raise RecordFault(f"a record of the batch cannot be stored: {error}") from error
        if terms:
            writer.driver.executemany(self._statements.insert_term, terms)
        writer.driver.execute(self._statements.move_end, link)
        return final, link

    def _settled(self, writer: _Writer, record: Record) -> Decision:
        decision, terms = record.decision, self._options.approvals
        if terms is None or not decision.awaits_approval:
            return decision
        return settle(writer.connection, decision, decision_id=record.decision_id, terms=terms)

    def _check_in_place(self, writer: _Writer) -> None:
        """Refuse to go on with a file that was removed or replaced under the open connection."""
        # SECURITY: the system keeps an unlinked file writable for whoever holds it open. Without
        # this check decisions would be recorded where nobody can ever read them.
        if file_identity(self.path) != writer.file:
            raise LedgerError(f"`{self.path}` was replaced")


@contextmanager
def _driver_transaction(driver: sqlite3.Connection) -> Iterator[None]:
    driver.execute(Access.WRITE.value)
    try:
        yield
        driver.execute("COMMIT")
    except BaseException:
        if driver.in_transaction:
            driver.execute("ROLLBACK")
        raise
