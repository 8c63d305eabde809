"""The months a shared ledger is divided into: made before they are written, dropped when too old.

A month is one table of `decisions` and one of `decision_terms`. Dropping it is instant, and what
is found by time looks into few of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from sqlalchemy import Connection, text

from authz_server.ledger.record import from_unix_us, unix_us

TABLES: Final = ("decisions", "decision_terms")
# Whoever makes or drops a month holds this lock, so that two servers do not both try.
_LOCK: Final = 0x617574687B


@dataclass(frozen=True, slots=True, order=True)
class Month:
    """A calendar month in UTC."""

    year: int
    month: int  # 1..12

    @classmethod
    def of_us(cls, time_us: int) -> Self:
        """Return the month that `time_us` Unix microseconds fall into."""
        moment = from_unix_us(time_us)
        return cls(moment.year, moment.month)

    @property
    def next(self) -> "Month":
        """The month after."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)

    @property
    def first_us(self) -> int:
        """Its first moment, in Unix microseconds."""
        return unix_us(datetime(self.year, self.month, 1, tzinfo=UTC))

    @property
    def suffix(self) -> str:
        """What its tables are called after their parent's name."""
        return f"y{self.year:04d}m{self.month:02d}"


def ensure(connection: Connection, months: Iterable[Month]) -> None:
    """Make the tables of `months` that are not there. Runs inside the caller's transaction."""
    existing = set(existing_months(connection))
    missing = sorted(set(months) - existing)
    if not missing:
        return
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    existing = set(existing_months(connection))
    for month in missing:
        if month not in existing:
            for table in TABLES:
                _make(connection, table, month)


def existing_months(connection: Connection) -> Iterator[Month]:
    """Yield the months that have tables."""
    names = connection.execute(
        text(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = to_regclass('decisions')"
        )
    ).scalars()
    for name in names:
        _, _, suffix = name.rpartition("_y")
        year, _, month = suffix.partition("m")
        if year.isdigit() and month.isdigit():
            yield Month(int(year), int(month))


def drop(connection: Connection, month: Month) -> None:
    """Drop the tables of `month`. Runs inside the caller's transaction."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    for table in TABLES:
        connection.execute(text(f"DROP TABLE IF EXISTS {table}_{month.suffix}"))


def _make(connection: Connection, table: str, month: Month) -> None:
    # Attaching a finished table locks the parent against other changes of its shape, and not, as
    # `PARTITION OF` does, against every reader and writer.
    name = f"{table}_{month.suffix}"
    connection.execute(text(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)"))
    connection.execute(
        text(
            f"ALTER TABLE {table} ATTACH PARTITION {name} "
            f"FOR VALUES FROM ({month.first_us}) TO ({month.next.first_us})"
        )
    )
