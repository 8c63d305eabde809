"""What the ledger keeps of one decision, and how it is spelled in a row.

INVARIANT: every string a request can choose is storable. Nothing a client sends may make a row
unwritable, because a batch holds the decisions of many clients.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from authz_server.core import limits
from authz_server.core.decision import Decision, ResourceRecord
from authz_server.core.errors import AuthzError
from authz_server.core.record import decision_json
from authz_server.ledger.chain import Link, hash_of, leaf_of
from authz_server.ledger.printable import printable

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# An index of PostgreSQL takes entries of up to 2,704 bytes: a third of a page.
_COLUMN_BYTES_MAX: Final = 2_048

# Sorted members, no blanks, UTF-8 unescaped: for documents of strings, integers, booleans and
# nulls with ASCII member names this is byte for byte the canonical form of RFC 8785, at a seventh
# of the cost of the `rfc8785` package (10 against 75 µs). A test holds the two equal.
_CANONICAL: Final = json.JSONEncoder(
    sort_keys=True,
    ensure_ascii=False,
    separators=(",", ":"),
    check_circular=False,
    allow_nan=False,
)


Columns = tuple[str | int | None, ...]
# The values of one row, in the order of the table's columns.
Row = tuple[str | int | bytes | None, ...]


class RecordFault(AuthzError):
    """One record of a batch, not the ledger, is at fault: its decision id is already taken.

    Not a `LedgerError`, so that a caller can commit the rest of the batch without it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One decision on its way into the ledger. `decision_id` is unique, minted by the server."""

    decision_id: str
    decision: Decision
    duration_us: int


def unix_us(moment: datetime) -> int:
    """Return an aware `moment` as Unix microseconds, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


def from_unix_us(value: int) -> datetime:
    """Return the moment `value` Unix microseconds stand for, in UTC."""
    return _EPOCH + timedelta(microseconds=value)


def canonical_document(decision: Decision, *, decision_id: str, duration_us: int) -> str:
    """Return the decision document as canonical JSON text (RFC 8785).

    A lone surrogate, which that form does not admit, is kept as its JSON escape.
    """
    document = decision_json(decision, decision_id=decision_id, duration_us=duration_us)
    text = _CANONICAL.encode(document)
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def resource_text(resource: ResourceRecord) -> str:
    """Return the resource in one line: its name on the route or its host, then what in it."""
    name = resource.resource or resource.host or resource.type
    part = resource.tool or resource.uri or resource.path
    return f"{name} {part}" if part else name


def column_text(text: str) -> str:
    """Return `text` as an indexed column holds it: printable, at most 1024 characters.

    SECURITY: and at most `_COLUMN_BYTES_MAX`, or a caller's long text would be a row that a shared
    ledger refuses, and hold up every record behind it.
    """
    cut = printable(text)[: limits.RECORD_FIELD_CHARS_MAX]
    if cut.isascii():
        return cut
    return cut.encode()[:_COLUMN_BYTES_MAX].decode(errors="ignore")


def committed_columns(record: Record, decision: Decision) -> Columns:
    """Return the values of `schema.COMMITTED` for a settled `decision`."""
    chain, principal = decision.chain, decision.principal
    resource, action = decision.resource, decision.action
    asked = decision.approval or decision.ticket
    return (
        record.decision_id,
        unix_us(decision.time),
        decision.verdict.value,
        decision.reason.value,
        column_text(chain.subject) if chain else None,
        column_text(principal.spiffe_id) if principal else None,
        column_text(resource_text(resource)) if resource else None,
        column_text(f"{action.protocol} {action.name}") if action else None,
        column_text(decision.bundle) if decision.bundle else None,
        decision.revision,
        column_text(", ".join(decision.rules)),
        column_text(chain.txn) if chain else None,
        asked.id if asked else None,
    )


def decision_row(
    writer: str, previous: Link, salt: bytes, record: Record, decision: Decision
) -> tuple[Row, Link]:
    """Return the row of `schema.decisions` that follows `previous`, and its link of the chain.

    `decision` is the settled one; `salt` is `SALT_BYTES` of randomness used for nothing else.
    """
    columns = committed_columns(record, decision)
    text = canonical_document(
        decision, decision_id=record.decision_id, duration_us=record.duration_us
    )
    seq = previous.seq + 1
    link = Link(seq, hash_of(writer, seq, previous.hash, leaf_of(salt, columns, text)))
    return (seq, *columns, text, salt, None, link.hash, writer), link


def term_rows(link: Link, writer: str, decision: Decision) -> Iterator[Row]:
    """Yield the rows of `schema.decision_terms`: each actor and each rule once."""
    time_us = unix_us(decision.time)
    actors = decision.chain.actors if decision.chain else ()
    for kind, values in (("actor", actors), ("rule", decision.rules)):
        for value in dict.fromkeys(values):
            yield kind, column_text(value), time_us, link.seq, writer


def document_terms(document: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield what `term_rows` says of a recorded document: kind and value of each term."""
    chain = document.get("chain")
    actors = chain.get("actors") if isinstance(chain, Mapping) else None
    for kind, values in (("actor", actors), ("rule", document.get("rules"))):
        for value in dict.fromkeys(values if isinstance(values, list) else ()):
            yield kind, column_text(value)
