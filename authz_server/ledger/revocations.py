"""What people take back, written down: who revoked what, when, why and for how long.

Servers read it through `revocation_feed`. Nothing is ever deleted here: a revocation that expired
or was removed stays as a record of both.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, insert, select, text, update

from authz_server.core.errors import AuthzError, InvalidValueError, LedgerError
from authz_server.core.revocation import RevocationKind
from authz_server.core.spiffe import SpiffeId
from authz_server.ledger.database import Access, Store, converted
from authz_server.ledger.printable import printable
from authz_server.ledger.query import begins_with, the_one
from authz_server.ledger.record import column_text, from_unix_us, unix_us
from authz_server.ledger.schema import check, revocation_state, revocations

# A frozen set of so many handles takes some 20 MB and 0.2 s to build, at every change.
REVOCATIONS_MAX: Final = 100_000
CHANNEL: Final = "authz_revocations"  # of PostgreSQL's NOTIFY
VALUE_CHARS_MAX: Final = 2048  # the longest SPIFFE ID (§2.3)
_ID_BYTES: Final = 8


class RevocationRefused(AuthzError):
    """The request changes nothing; the message is one sentence for whoever made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """One thing to take back: made by `parse`."""

    kind: RevocationKind
    value: str

    @classmethod
    def parse(cls, kind: RevocationKind, value: str) -> Self:
        """Return the handle that `value` spells; it is compared character by character.

        Raises `InvalidValueError` for what no token could carry, since it would revoke nothing.
        """
        if not value or len(value) > VALUE_CHARS_MAX or not value.isprintable():
            raise InvalidValueError(f"a {kind} is printable text of 1 to {VALUE_CHARS_MAX} letters")
        if kind is RevocationKind.SPIFFE_ID:
            SpiffeId.parse(value)
        return cls(kind=kind, value=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """One revocation. `expires_at` None: in force until removed."""

    id: str
    kind: RevocationKind
    value: str
    reason: str | None
    revoked_by: str
    revoked_at: datetime
    expires_at: datetime | None
    removed_by: str | None
    removed_at: datetime | None

    def in_force(self, now: datetime) -> bool:
        """Tell whether it denies at `now`."""
        return self.removed_at is None and (self.expires_at is None or now < self.expires_at)


class RevocationStore:
    """Adds, lists and removes revocations in the ledger that servers read them from."""

    def __init__(self, *, reading: Store, writing: Store) -> None:
        self._reading = reading
        self._writing = writing

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the ledger at `url`, which must exist. Raises `LedgerError`."""
        opened = cls(reading=Store.open(url, Access.READ), writing=Store.open(url, Access.WRITE))
        with converted("read the ledger"), opened._reading.transaction() as connection:
            check(connection)
        return opened

    def add(
        self,
        handle: Handle,
        *,
        by: str,
        now: datetime,
        reason: str | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[Revocation, int]:
        """Revoke `handle`; return the revocation, and the revision from which it is in force.

        Revoking again adds another one, and the handle stays revoked while any of them is in force.
        Raises `RevocationRefused` and `LedgerError`.
        """
        if expires_at is not None and expires_at <= now:
            raise RevocationRefused("a revocation cannot end before it begins")
        with converted("write the ledger"), self._writing.transaction() as connection:
            revision = _next_revision(connection)
            if connection.execute(_COUNT.where(_in_force(now))).scalar_one() >= REVOCATIONS_MAX:
                raise RevocationRefused(
                    f"{REVOCATIONS_MAX} revocations are in force already; let them expire"
                )
            id_ = secrets.token_hex(_ID_BYTES)
            connection.execute(
                insert(revocations).values(
                    id=id_,
                    kind=handle.kind.value,
                    value=handle.value,
                    reason=column_text(reason) if reason else None,
                    revoked_by=column_text(by),
                    revoked_at_us=unix_us(now),
                    expires_at_us=None if expires_at is None else unix_us(expires_at),
                )
            )
            return _find(connection, revocations.c.id == id_)[0], revision

    def list(self, *, now: datetime | None = None) -> tuple[Sequence[Revocation], int]:
        """Return the revocations in force at `now`, newest first, and the present revision.

        Without `now`, all there ever were.
        """
        with converted("read the ledger"), self._reading.transaction() as connection:
            revision = connection.execute(select(revocation_state.c.revision)).scalar_one()
            return _find(connection, _in_force(now) if now is not None else None), revision

    def remove(
        self, wanted: str | Handle, *, by: str, now: datetime
    ) -> tuple[Sequence[Revocation], int]:
        """End the revocation whose id begins with `wanted`, or all those of a handle.

        Returns what was ended, and the revision from which it is. Raises `RevocationRefused` when
        nothing in force fits, `LookupFault` when an id is not unique, and `LedgerError`.
        """
        with converted("write the ledger"), self._writing.transaction() as connection:
            revision = _next_revision(connection)
            found = _find(connection, and_(_in_force(now), _named(wanted)))
            if isinstance(wanted, str) and found:
                found = [the_one(found, "revocation in force", wanted)]
            if not found:
                raise RevocationRefused(f"no revocation in force is {_spelled(wanted)}")
            ids = [revocation.id for revocation in found]
            connection.execute(
                update(revocations)
                .where(revocations.c.id.in_(ids))
                .values(removed_by=column_text(by), removed_at_us=unix_us(now))
            )
            return _find(connection, revocations.c.id.in_(ids)), revision


_COUNT: Final = select(text("count(*)")).select_from(revocations)


def _next_revision(connection: Connection) -> int:
    """Count one change, and have every server of a shared ledger told once it is committed."""
    # The row's lock makes changes follow one another (see `schema.revocation_state`).
    connection.execute(update(revocation_state).values(revision=revocation_state.c.revision + 1))
    if connection.dialect.name == "postgresql":
        connection.execute(select(text(f"pg_notify('{CHANNEL}', '')")))
    revision = connection.execute(select(revocation_state.c.revision)).scalar_one_or_none()
    if revision is None:
        raise LedgerError("table `revocation_state` is empty; restore the ledger from a backup")
    return int(revision)


def _in_force(now: datetime) -> ColumnElement[bool]:
    expires = revocations.c.expires_at_us
    ahead = expires.is_(None) | (expires > unix_us(now))
    return and_(revocations.c.removed_at_us.is_(None), ahead)


def _named(wanted: str | Handle) -> ColumnElement[bool]:
    if isinstance(wanted, Handle):
        same_kind = revocations.c.kind == wanted.kind.value
        return and_(same_kind, revocations.c.value == wanted.value)
    return begins_with(revocations.c.id, wanted)


def _spelled(wanted: str | Handle) -> str:
    if isinstance(wanted, Handle):
        return f"of {wanted.kind} `{printable(wanted.value)}`"
    return f"called `{printable(wanted)}`"


def _find(connection: Connection, condition: ColumnElement[bool] | None) -> Sequence[Revocation]:
    statement = select(revocations).order_by(revocations.c.revoked_at_us.desc(), revocations.c.id)
    if condition is not None:
        statement = statement.where(condition)
    return [_revocation(row) for row in connection.execute(statement).mappings()]


def _revocation(row: RowMapping) -> Revocation:
    return Revocation(
        id=row["id"],
        kind=RevocationKind(row["kind"]),
        value=row["value"],
        reason=row["reason"],
        revoked_by=row["revoked_by"],
        revoked_at=from_unix_us(row["revoked_at_us"]),
        expires_at=_moment(row["expires_at_us"]),
        removed_by=row["removed_by"],
        removed_at=_moment(row["removed_at_us"]),
    )


def _moment(value: int | None) -> datetime | None:
    return None if value is None else from_unix_us(value)
