"""Erasing one person from a ledger, so that the chain still verifies.

The content of their records goes, with the columns that could name them and the salt, without which
the hash that stays tells nothing. A signed `erasure` statement says which records, who ordered it
and why: an empty record without one is an alteration. What the database itself keeps of the old
rows (free pages, dead rows, backups) is its administrator's to remove.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, insert, select, update

from authz_server.ledger.chain import leaf_of
from authz_server.ledger.database import Store, converted
from authz_server.ledger.printable import printable
from authz_server.ledger.record import column_text, unix_us
from authz_server.ledger.schema import COMMITTED, approvals, decisions, statements
from authz_server.ledger.seal import (
    ERASED_RECORDS_MAX,
    SigningKey,
    Statement,
    StatementKind,
)

_REST: Final = ("resource", "txn")  # columns that may name a person besides `subject`


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureOrder:
    """Whom to erase, on whose order, and why.

    `subjects` are all spellings of one person, such as the name and its pseudonym.
    """

    subjects: Sequence[str]
    by: str
    reason: str


def erase(store: Store, key: SigningKey, order: ErasureOrder, *, now: datetime) -> int:
    """Erase every record whose subject `order` names; return how many.

    Each transaction erases some and states so. Raises `LedgerError`.
    """
    erased = 0
    with converted("erase from the ledger"):
        while True:
            with store.transaction() as connection:
                if store.path is not None:
                    connection.exec_driver_sql("PRAGMA secure_delete = ON")
                found = _erase_some(connection, key, order, now)
            if not found:
                break
            erased += found
        with store.transaction() as connection:
            _erase_approvals(connection, [printable(subject) for subject in order.subjects])
    return erased


def _erase_some(connection: Connection, key: SigningKey, order: ErasureOrder, now: datetime) -> int:
    names = [column_text(subject) for subject in order.subjects]
    read = (
        select(
            decisions.c.writer,
            decisions.c.seq,
            decisions.c.salt,
            decisions.c.record,
            *(decisions.c[name] for name in COMMITTED),
        )
        .where(decisions.c.subject.in_(names), decisions.c.record.is_not(None))
        .limit(ERASED_RECORDS_MAX)
    )
    by_writer: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for writer, seq, salt, record, *columns in connection.execute(read):
        leaf = leaf_of(salt, columns, record)
        by_writer[writer].append({"at_writer": writer, "at_seq": seq, "leaf": leaf})
    for writer, rows in by_writer.items():
        seqs = tuple(sorted(row["at_seq"] for row in rows))
        statement = Statement(
            kind=StatementKind.ERASURE,
            writer=writer,
            first=seqs[0],
            last=seqs[-1],
            seqs=seqs,
            time=now,
            by=order.by,
            reason=order.reason,
        )
        _state(connection, statement, key.sign(statement))
        connection.execute(_EMPTY, rows)
    return sum(map(len, by_writer.values()))


def _state(connection: Connection, statement: Statement, jws: str) -> None:
    row = {
        "writer": statement.writer,
        "kind": statement.kind.value,
        "last_seq": statement.last,
        "time_us": unix_us(statement.time),
        "jws": jws,
    }
    connection.execute(insert(statements), row)


def _erase_approvals(connection: Connection, names: Sequence[str]) -> None:
    connection.execute(
        update(approvals)
        .where(approvals.c.subject.in_(names))
        .values(subject=None, purpose=None, resource="", reject_reason=None)
    )


_EMPTY: Final = (
    update(decisions)
    .where(decisions.c.writer == bindparam("at_writer"), decisions.c.seq == bindparam("at_seq"))
    .values(
        record=None,
        salt=None,
        leaf=bindparam("leaf"),
        subject=None,
        **dict.fromkeys(_REST),
    )
)
