"""Making checkpoints: the end of a chain, signed, kept in the ledger and sent elsewhere."""

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from authz_server.core.errors import LedgerError
from authz_server.ledger.chain import Link
from authz_server.ledger.record import unix_us
from authz_server.ledger.seal import SigningKey, Statement, StatementKind
from authz_server.ledger.sinks import Sink, line_of
from authz_server.ledger.store import Ledger

_INSERT: Final = (
    "INSERT OR IGNORE INTO statements (writer, kind, last_seq, time_us, jws) VALUES (?, ?, ?, ?, ?)"
)


class Checkpoints:
    """Signs the end of one ledger's or outbox's chain. Used by one thread at a time."""

    def __init__(self, ledger: Ledger, *, key: SigningKey, sinks: Sequence[Sink]) -> None:
        self._ledger = ledger
        self._key = key
        self._sinks = sinks
        self._sealed = -1
        self._unsent: dict[int, str] = {}  # newest line by number of sink; an older one says less

    def make(self, now: datetime) -> None:
        """Sign the end of the chain, if it moved, and send what could not be sent before.

        Raises `LedgerError` with everything that failed; the next call tries again.
        """
        failed = []
        try:
            self._seal(now)
        except LedgerError as error:
            failed.append(error)
        for number, line in list(self._unsent.items()):
            try:
                self._sinks[number].write(line)
            except LedgerError as error:
                failed.append(error)
            else:
                del self._unsent[number]
        if failed:
            raise LedgerError("; ".join(map(str, failed))) from failed[0]

    def _seal(self, now: datetime) -> None:
        writer, link = self._ledger.transact("read the ledger", end_of)
        if link.seq in (0, self._sealed):
            return
        statement = Statement(
            kind=StatementKind.CHECKPOINT,
            writer=writer,
            first=1,
            last=link.seq,
            hash=link.hash,
            time=now,
        )
        jws = self._key.sign(statement)
        self._ledger.transact("keep a checkpoint", lambda driver: keep(driver, statement, jws))
        self._sealed = link.seq
        line = line_of(statement, jws)
        self._unsent = dict.fromkeys(range(len(self._sinks)), line)


def end_of(driver: sqlite3.Connection) -> tuple[str, Link]:
    """Return the writer of a file and the end of its chain."""
    writer, seq, value = driver.execute("SELECT writer, seq, hash FROM chains").fetchone()
    return writer, Link(seq, value)


def keep(driver: sqlite3.Connection, statement: Statement, jws: str) -> None:
    """Write a signed statement into a file. Runs inside the caller's transaction."""
    row = (statement.writer, statement.kind.value, statement.last, unix_us(statement.time), jws)
    driver.execute(_INSERT, row)
