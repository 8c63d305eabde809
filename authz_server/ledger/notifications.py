"""The queue of messages about pending approvals, in the database that holds the approvals.

One row for each approval and receiver. A row is made when an open question is found that has none,
and is done when its receiver took the message, or when nobody can answer the question any more. So
nothing is lost with a process, and nothing here is on the way of a request.

A message is claimed by moving its next attempt into the future, in one conditional UPDATE: of
several servers one sends it. One that dies between sending and noting it sends it again, under the
same id: receivers see a message once or more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    and_,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from authz_server.ledger.approvals import ApprovalRequest, ApprovalStatus, request_of
from authz_server.ledger.database import Access, Store, converted
from authz_server.ledger.record import from_unix_us, unix_us
from authz_server.ledger.schema import approvals

# Attempts are this far apart: twice as far after each, up to the last. The first is longer than an
# attempt may take, so that a message is not claimed while it is being sent.
RETRY_FIRST: Final = timedelta(seconds=10)
RETRY_LAST: Final = timedelta(minutes=5)
_DOUBLINGS_MAX: Final = 6
# INVARIANT: longer than any question stands open (a week), or it would be told again.
_KEPT: Final = timedelta(days=30)

METADATA: Final = MetaData()

notifications: Final = Table(
    "notifications",
    METADATA,
    Column("approval_id", Text, primary_key=True),
    Column("target", Text, primary_key=True),  # digest of the receiver's address
    Column("attempts", Integer, nullable=False),
    Column("next_at_us", BigInteger, nullable=False),
    Column("done_at_us", BigInteger),  # taken by the receiver
)
Index(
    "notifications_due",
    notifications.c.target,
    notifications.c.next_at_us,
    sqlite_where=notifications.c.done_at_us.is_(None),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message that is due. `id` is the same at every attempt; `attempts` have failed so far."""

    approval: ApprovalRequest
    target: str
    attempts: int

    @property
    def id(self) -> str:
        """What a receiver tells repetitions by."""
        return f"{self.approval.id}.pending"


class Notifications:
    """The queue of one database. Used by one thread at a time; other processes may use it too."""

    def __init__(self, reading: Store, writing: Store) -> None:
        self._reading = reading
        self._store = writing

    @classmethod
    def open(cls, url: str) -> Self:
        """Return the queue in the ledger at `url`, its table made if a file lacks it.

        A shared ledger gets its table by `ledger migrate`. Raises `LedgerError`.
        """
        store = Store.open(url, Access.WRITE)
        if store.path is not None:
            with converted("prepare notifications"), store.transaction() as connection:
                METADATA.create_all(connection)
        return cls(Store.open(url, Access.READ), store)

    def is_idle(self, targets: Sequence[str], now: datetime) -> bool:
        """Tell whether there is nothing to queue or to send; takes no lock that a commit needs."""
        rows = select(notifications.c.approval_id, notifications.c.target).where(
            notifications.c.target.in_(targets),
            or_(notifications.c.done_at_us.is_not(None), notifications.c.next_at_us > unix_us(now)),
        )
        settled = rows.subquery()
        waiting = (
            select(approvals.c.id)
            .outerjoin(settled, settled.c.approval_id == approvals.c.id)
            .where(*_open(now))
            .group_by(approvals.c.id)
            .having(func.count(settled.c.target) < len(targets))
            .limit(1)
        )
        with converted("read notifications"), self._reading.transaction() as connection:
            return connection.execute(waiting).first() is None

    def enqueue(self, targets: Sequence[str], now: datetime) -> int:
        """Make a row for each open question and target that has none; return how many.

        Rows that nobody can need any more are removed on the way.
        """
        made = 0
        with converted("queue notifications"), self._store.transaction() as connection:
            past = notifications.c.next_at_us < unix_us(now - _KEPT)
            connection.execute(delete(notifications).where(past))
            for target in targets:
                here = and_(
                    notifications.c.approval_id == approvals.c.id,
                    notifications.c.target == target,
                )
                unknown = (
                    select(approvals.c.id, literal(target), literal(0), literal(unix_us(now)))
                    .outerjoin(notifications, here)
                    .where(*_open(now), notifications.c.approval_id.is_(None))
                )
                columns = ["approval_id", "target", "attempts", "next_at_us"]
                made += connection.execute(
                    insert(notifications).from_select(columns, unknown)
                ).rowcount
        return made

    def claim(self, targets: Sequence[str], now: datetime) -> Message | None:
        """Return a message that is due, or None; until its next attempt nobody else gets it."""
        due = (
            select(approvals, notifications.c.target, notifications.c.attempts)
            .join(notifications, notifications.c.approval_id == approvals.c.id)
            .where(
                notifications.c.target.in_(targets),
                notifications.c.done_at_us.is_(None),
                notifications.c.next_at_us <= unix_us(now),
                *_open(now),
            )
            .order_by(notifications.c.next_at_us)
            .limit(1)
        )
        with converted("claim notifications"), self._store.transaction() as connection:
            row = connection.execute(due).mappings().first()
            if row is None:
                return None
            result = connection.execute(
                update(notifications)
                .where(
                    notifications.c.approval_id == row["id"],
                    notifications.c.target == row["target"],
                    notifications.c.attempts == row["attempts"],
                    notifications.c.done_at_us.is_(None),
                )
                .values(
                    attempts=row["attempts"] + 1,
                    next_at_us=unix_us(now + retry_after(row["attempts"])),
                )
            )
            if result.rowcount != 1:  # another server was faster; the next round looks again
                return None
            return Message(
                approval=request_of(row, now), target=row["target"], attempts=row["attempts"]
            )

    def done(self, message: Message, now: datetime) -> None:
        """Note that the receiver took `message`."""
        with converted("note a notification"), self._store.transaction() as connection:
            connection.execute(
                update(notifications)
                .where(
                    notifications.c.approval_id == message.approval.id,
                    notifications.c.target == message.target,
                )
                .values(done_at_us=unix_us(now))
            )

    def delivered_at(self, approval_id: str, target: str) -> datetime | None:
        """Return when `target` took the message about `approval_id`, or None."""
        statement = select(notifications.c.done_at_us).where(
            notifications.c.approval_id == approval_id, notifications.c.target == target
        )
        with converted("read notifications"), self._reading.transaction() as connection:
            found = connection.execute(statement).scalar()
        return None if found is None else from_unix_us(found)


def _open(now: datetime) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions that a question can still be answered."""
    return (
        approvals.c.status == ApprovalStatus.PENDING.value,
        approvals.c.expires_at_us > unix_us(now),
    )


def retry_after(attempts: int) -> timedelta:
    """Return how long after an attempt the next one is made, `attempts` having failed before."""
    return min(RETRY_FIRST * (1 << min(attempts, _DOUBLINGS_MAX)), RETRY_LAST)
