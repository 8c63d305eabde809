"""The ledger as the server uses it: one transaction per batch, and nothing half written."""

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

from sqlalchemy import Connection, Engine, func, insert, select
from sqlalchemy.exc import SQLAlchemyError

from authz_server.core.decision import Decision, Verdict
from authz_server.core.errors import LedgerError
from authz_server.ledger import schema
from authz_server.ledger.database import (
    BUSY_TIMEOUT_MS,
    Access,
    Synchronous,
    converted,
    create_file,
    file_identity,
    open_engine,
    sqlite_path,
)
from authz_server.ledger.query import DecisionFilter, LedgerReader, StoredDecision
from authz_server.ledger.record import (
    Record,
    RecordFault,
    Row,
    decision_row,
    term_rows,
)
from authz_server.ledger.settlement import ApprovalTerms, settle

_Settled = list[Decision]  # `list` means something else inside `Ledger`


@dataclass(frozen=True, slots=True)
class _Statements:
    """What every batch executes, as SQL text compiled once.

    The texts go straight to the driver, inside the transaction that SQLAlchemy holds. A record
    alone, and each of a batch of 64, in µs of CPU: SQLAlchemy Core 221 and 58, `exec_driver_sql`
    138 and 49, driver 121 and 43, of which 18 make the row. `tests/bench/bench_ledger.py` measures.
    """

    last_seq: str
    insert_decision: str
    insert_term: str

    @classmethod
    def compiled_for(cls, engine: Engine) -> Self:
        return cls(
            str(select(func.max(schema.decisions.c.seq)).compile(engine)),
            str(insert(schema.decisions).compile(engine)),
            str(insert(schema.decision_terms).compile(engine)),
        )


@dataclass(frozen=True, slots=True)
class _Writer:
    """The one connection that writes, and the file it was opened on."""

    connection: Connection
    driver: sqlite3.Connection
    file: tuple[int, int]


class Ledger:
    """Decision records and approvals in one SQLite file, for one server.

    Several servers on one machine may share the file; each transaction takes the write lock first.
    After any failure the connection is given up and the next call opens the file anew, so that a
    full disk, a lock or a remounted volume heals without a restart.
    """

    def __init__(
        self, path: Path, *, terms: ApprovalTerms, synchronous: Synchronous, busy_timeout_ms: int
    ) -> None:
        self._path = path
        self._terms = terms
        self._engine = open_engine(
            path, Access.WRITE, synchronous=synchronous, busy_timeout_ms=busy_timeout_ms
        )
        self._statements = _Statements.compiled_for(self._engine)
        self._reader = LedgerReader(path)
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
        once, others until that deadline. `synchronous` is `NORMAL` (survives kill -9) or `FULL`
        (survives power loss too, see `Synchronous`). Raises `LedgerError`.
        """
        ledger = cls(
            sqlite_path(url),
            terms=ApprovalTerms(ttl=timedelta(seconds=approval_ttl_s), single_use=single_use),
            synchronous=Synchronous(synchronous),
            busy_timeout_ms=busy_timeout_ms,
        )
        ledger.ping()
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
        with self._exclusive("write the ledger") as writer:
            # The row counts as written when COMMIT returns and the file is still the ledger.
            with writer.connection.begin():
                final = self._write(writer, batch)
            self._check_in_place(writer)
            return final

    def ping(self) -> None:
        """Check that the ledger is there and may be written; raises `LedgerError`.

        Never takes the write lock of an open ledger, so a readiness probe delays no decision.
        """
        with self._exclusive("open the ledger") as writer:
            self._check_in_place(writer)
            if not os.access(self._path, os.W_OK):
                raise LedgerError(f"`{self._path}` is read-only")

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
        create_file(self._path)
        file = file_identity(self._path)
        connection = self._engine.connect()
        try:
            with connection.begin():
                schema.create_or_check(connection)
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

    def _write(self, writer: _Writer, batch: Sequence[Record]) -> _Settled:
        """Settle every escalation, then insert all rows. Runs inside the transaction."""
        final: _Settled = []
        rows: list[Row] = []
        terms: list[Row] = []
        (last_seq,) = writer.driver.execute(self._statements.last_seq).fetchone()
        for seq, record in enumerate(batch, start=(last_seq or 0) + 1):
            decision = record.decision
            if decision.verdict is Verdict.ESCALATE:
                decision = settle(
                    writer.connection,
                    decision,
                    decision_id=record.decision_id,
                    terms=self._terms,
                )
            final.append(decision)
            rows.append(decision_row(seq, record, decision))
            terms.extend(term_rows(seq, decision))
        try:
            writer.driver.executemany(self._statements.insert_decision, rows)
        except sqlite3.IntegrityError as error:
            raise RecordFault(f"a record of the batch cannot be stored: {error}") from error
        writer.driver.executemany(self._statements.insert_term, terms)
        return final

    def _check_in_place(self, writer: _Writer) -> None:
        """Refuse to go on with a file that was removed or replaced under the open connection."""
        # SECURITY: the system keeps an unlinked file writable for whoever holds it open. Without
        # this check decisions would be recorded where nobody can ever read them.
        if file_identity(self._path) != writer.file:
            raise LedgerError(f"`{self._path}` was replaced")
