"""Reading the ledger: one decision by its id, or the newest that match a filter."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self, TypeVar

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    and_,
    select,
    true,
    tuple_,
)

from authz_server.core.decision import Verdict
from authz_server.core.errors import AuthzError, LedgerError, Reason
from authz_server.ledger.database import (
    Access,
    Store,
    converted,
)
from authz_server.ledger.printable import printable
from authz_server.ledger.record import column_text, unix_us
from authz_server.ledger.schema import chains, check, decision_terms, decisions

# Each page is a read of its own: a long listing holds no snapshot that would keep the log growing.
_PAGE_ROWS: Final = 256
ERASED: Final = "the content of this record was erased"
_LAST_CHARACTER: Final = "\U0010ffff"

_T = TypeVar("_T")
_Clock = tuple[ColumnElement[int], ColumnElement[int], ColumnElement[str]]


class _Found(NamedTuple):
    """One row, in the order of `_RECORDS`."""

    seq: int
    decision_id: str
    time_us: int
    record: str | None
    writer: str


_RECORDS: Final = select(*(decisions.c[name] for name in _Found._fields))


class Order(StrEnum):
    """In which order records are listed, by the time of the decision."""

    NEWEST_FIRST = "newest first"
    OLDEST_FIRST = "oldest first"


class LookupFault(AuthzError):
    """An id, or the beginning of one, names nothing or more than one thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDecision:
    """One row as read back. `document` is the decision JSON of `core.record.decision_json`.

    `seq` numbers the records of one `writer`. Of an erased record the document holds the id alone.
    """

    seq: int
    decision_id: str
    document: Mapping[str, object]
    writer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionFilter:
    """What to list; every given member must match.

    `since` is inclusive, `until` exclusive. A text that ends in `*` matches by its beginning.
    """

    since: datetime | None = None
    until: datetime | None = None
    verdict: Verdict | None = None
    reason: Reason | None = None
    subject: str | None = None
    actor: str | None = None
    principal: str | None = None
    resource: str | None = None
    rule: str | None = None
    txn: str | None = None
    bundle: str | None = None
    limit: int | None = None


class LedgerReader:
    """Reads a ledger that other processes may be writing; connects anew for each read."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def open(cls, url: str) -> Self:
        """Return a reader of the ledger at `url`, which must exist. Raises `LedgerError`."""
        reader = cls(Store.open(url, Access.READ))
        with converted("read the ledger"), reader._store.transaction() as connection:
            check(connection)
        return reader

    def get(self, decision_id: str) -> StoredDecision | None:
        """Return the record of exactly `decision_id`, or None. Raises `LedgerError`."""
        found = self._fetch(_RECORDS.where(decisions.c.decision_id == decision_id))
        return _stored(found[0]) if found else None

    def find(self, beginning: str) -> StoredDecision:
        """Return the one record whose decision id is, or begins with, `beginning`.

        Raises `LookupFault` when there is none or more than one, and `LedgerError`.
        """
        column = decisions.c.decision_id
        found = self._fetch(
            _RECORDS.where(begins_with(column, beginning)).order_by(column).limit(2)
        )
        return _stored(the_one(found, "decision", beginning))

    def list(
        self, wanted: DecisionFilter, *, order: Order = Order.NEWEST_FIRST
    ) -> Iterator[StoredDecision]:
        """Yield the records that match. Raises `LedgerError` while iterating."""
        statement, clock = self._statement(wanted)
        newest_first = order is Order.NEWEST_FIRST
        statement = statement.order_by(*(c.desc() if newest_first else c.asc() for c in clock))
        left, page = wanted.limit, statement
        while left is None or left > 0:
            size = _PAGE_ROWS if left is None else min(_PAGE_ROWS, left)
            rows = self._fetch(page.limit(size))
            yield from map(_stored, rows)
            if len(rows) < size:
                return
            left = None if left is None else left - size
            last = rows[-1]
            here, there = tuple_(*clock), tuple_(last.time_us, last.seq, last.writer)
            page = statement.where(here < there if newest_first else here > there)

    def ends(self) -> Mapping[str, int]:
        """Return the number of the last record of every writer. Raises `LedgerError`."""
        statement = select(chains.c.writer, chains.c.seq)
        with converted("read the ledger"), self._store.transaction() as connection:
            return {row.writer: row.seq for row in connection.execute(statement)}

    def between(
        self, wanted: DecisionFilter, *, writer: str, after: int, through: int
    ) -> Iterator[StoredDecision]:
        """Yield the records of `writer` that match, `after` < number <= `through`, in order.

        Raises `LedgerError` while iterating. `wanted.limit` has no effect.
        """
        statement = _matching(wanted)[0].where(
            decisions.c.writer == writer, decisions.c.seq <= through
        )
        while True:
            page = statement.where(decisions.c.seq > after).order_by(decisions.c.seq)
            rows = self._fetch(page.limit(_PAGE_ROWS))
            yield from map(_stored, rows)
            if len(rows) < _PAGE_ROWS:
                return
            after = rows[-1].seq

    def _statement(self, wanted: DecisionFilter) -> tuple[Select[*tuple[Any, ...]], _Clock]:
        if self._store.path is None:
            for kind, text in (("actor", wanted.actor), ("rule", wanted.rule)):
                if text is not None and not text.endswith("*"):
                    return _led_by_term(wanted, kind, text)
        return _matching(wanted)

    def _fetch(self, statement: Select[*tuple[Any, ...]]) -> Sequence[_Found]:
        with converted("read the ledger"), self._store.transaction() as connection:
            return [_Found._make(row) for row in connection.execute(statement)]


def begins_with(column: ColumnElement[str], beginning: str) -> ColumnElement[bool]:
    """Return the condition that `column` begins with `beginning`, as a range of an index.

    INVARIANT: the column is collated by code point (SQLite's default, `C` in PostgreSQL).
    """
    return and_(column >= beginning, column < beginning + _LAST_CHARACTER)


def the_one(found: Sequence[_T], what: str, beginning: str) -> _T:
    """Return the only element of `found`; raises `LookupFault` with a sentence otherwise."""
    if len(found) == 1:
        return found[0]
    count = "no" if not found else "more than one"
    raise LookupFault(f"{count} {what} has an id that begins with `{printable(beginning)}`")


def _matching(wanted: DecisionFilter) -> tuple[Select[*tuple[Any, ...]], _Clock]:
    """Return the statement without order, and the columns that order it.

    An exact actor or rule leads: its terms are indexed in the order wanted.
    """
    source: FromClause = decisions
    clock: _Clock = (decisions.c.time_us, decisions.c.seq, decisions.c.writer)
    conditions = list(_column_conditions(wanted))
    for kind, text in (("actor", wanted.actor), ("rule", wanted.rule)):
        if text is None:
            continue
        term = decision_terms.alias(kind)
        here = and_(term.c.kind == kind, _matches(term.c.value, text))
        if text.endswith("*"):
            key = tuple_(decisions.c.time_us, decisions.c.seq, decisions.c.writer)
            conditions.append(key.in_(select(*_key_of(term)).where(here)))
        else:
            source = source.join(term, _same_record(term))
            conditions.append(here)
            clock = _key_of(term)
    conditions.extend(_within(wanted, clock))
    return _RECORDS.select_from(source).where(*conditions), clock


def _led_by_term(
    wanted: DecisionFilter, kind: str, text: str
) -> tuple[Select[*tuple[Any, ...]], _Clock]:
    """Return the same as `_matching`, in a form that PostgreSQL reads term by term, in order.

    It takes the three columns of the key for independent, expects a join on them to find nothing,
    and would rather read whole months than stop after the first rows.
    """
    term = decision_terms.alias("leading")
    rest = replace(wanted, **{kind: None})
    found = _matching(rest)[0].where(_same_record(term)).limit(1).lateral("found")
    clock = _key_of(term)
    statement = (
        select(*(found.c[name] for name in _Found._fields))
        .select_from(term.join(found, true()))
        .where(term.c.kind == kind, term.c.value == column_text(text))
    )
    return statement.where(*_within(wanted, clock)), clock


def _within(wanted: DecisionFilter, clock: _Clock) -> Iterator[ColumnElement[bool]]:
    if wanted.since is not None:
        yield clock[0] >= unix_us(wanted.since)
    if wanted.until is not None:
        yield clock[0] < unix_us(wanted.until)


def _key_of(term: FromClause) -> _Clock:
    return term.c.time_us, term.c.seq, term.c.writer


def _same_record(term: FromClause) -> ColumnElement[bool]:
    # The time is part of it, so that a shared ledger looks into one partition only.
    return and_(
        term.c.seq == decisions.c.seq,
        term.c.writer == decisions.c.writer,
        term.c.time_us == decisions.c.time_us,
    )


def _column_conditions(wanted: DecisionFilter) -> Iterator[ColumnElement[bool]]:
    for name in ("verdict", "reason", "subject", "principal", "resource", "txn", "bundle"):
        text = getattr(wanted, name)
        if text is not None:
            yield _matches(decisions.c[name], text)


def _matches(column: ColumnElement[str], text: str) -> ColumnElement[bool]:
    if text.endswith("*"):
        return begins_with(column, column_text(text[:-1]))
    return column == column_text(text)


def _stored(row: _Found) -> StoredDecision:
    if row.record is None:
        document: Mapping[str, object] = {"decision_id": row.decision_id, "detail": ERASED}
        return StoredDecision(
            seq=row.seq, decision_id=row.decision_id, document=document, writer=row.writer
        )
    try:
        document = json.loads(row.record)
    except ValueError as error:
        raise LedgerError(f"record {row.seq} is not JSON") from error
    if not isinstance(document, dict):
        raise LedgerError(f"record {row.seq} is not a decision document")
    return StoredDecision(
        seq=row.seq, decision_id=row.decision_id, document=document, writer=row.writer
    )
