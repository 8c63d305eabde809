"""What the ledger saw of identities: who called or acted, how often, when last, and for whom."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from sqlalchemy import ColumnElement, and_, case, distinct, exists, func, select

from authz_server.core.decision import Verdict
from authz_server.core.errors import Reason
from authz_server.ledger.database import Access, Store, converted
from authz_server.ledger.query import DecisionFilter, LedgerReader
from authz_server.ledger.record import from_unix_us, unix_us
from authz_server.ledger.schema import check, decision_terms, decisions


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One identity as the ledger saw it. Decisions in which it called and acted count once each."""

    id: str
    last_seen: datetime
    as_principal: int
    as_actor: int
    as_subject: int
    denied: int  # of those in which it called

    def joined(self, other: "Usage") -> "Usage":
        """Return both together."""
        return Usage(
            id=self.id,
            last_seen=max(self.last_seen, other.last_seen),
            as_principal=self.as_principal + other.as_principal,
            as_actor=self.as_actor + other.as_actor,
            as_subject=self.as_subject + other.as_subject,
            denied=self.denied + other.denied,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ActedFor:
    """A caller, and how many subjects it acted for."""

    principal: str
    subjects: int
    decisions: int
    last_seen: datetime


class IdentityUsage:
    """Counts what the ledger holds. Each question reads every record since the time it names."""

    def __init__(self, store: Store, reader: LedgerReader) -> None:
        self._store = store
        self._reader = reader

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the ledger at `url`, which must exist. Raises `LedgerError`."""
        opened = cls(Store.open(url, Access.READ), LedgerReader.open(url))
        with converted("read the ledger"), opened._store.transaction() as connection:
            check(connection)
        return opened

    def by_id(self, since: datetime) -> Mapping[str, Usage]:
        """Return everyone who called, acted or was acted for since then, by id."""
        found: dict[str, Usage] = {}
        for usage in (*self._of_column("principal", since), *self._of_column("subject", since)):
            found[usage.id] = found[usage.id].joined(usage) if usage.id in found else usage
        for usage in self._actors(since):
            found[usage.id] = found[usage.id].joined(usage) if usage.id in found else usage
        return found

    def acted_for(self, since: datetime) -> Sequence[ActedFor]:
        """Return how many subjects each caller acted for in what was allowed; most first."""
        subjects = func.count(distinct(decisions.c.subject))
        statement = (
            select(decisions.c.principal, subjects, func.count(), func.max(decisions.c.time_us))
            .where(_seen(since), decisions.c.subject.is_not(None), _PROVED)
            .group_by(decisions.c.principal)
            .order_by(subjects.desc(), decisions.c.principal)
        )
        with converted("read the ledger"), self._store.transaction() as connection:
            return [
                ActedFor(
                    principal=principal, subjects=count, decisions=all_, last_seen=from_unix_us(at)
                )
                for principal, count, all_, at in connection.execute(statement)
                if principal is not None
            ]

    def alone_for(self, since: datetime) -> Iterator[tuple[str, str, int, datetime]]:
        """Yield caller, subject, decisions and last time where the caller is the only actor.

        So the root grant was made out to the caller itself: nobody handed anything on.
        """
        other = decision_terms.alias("other")
        handed_on = exists().where(
            and_(
                other.c.kind == "actor",
                other.c.seq == decisions.c.seq,
                other.c.writer == decisions.c.writer,
                other.c.time_us == decisions.c.time_us,
                other.c.value != decisions.c.principal,
            )
        )
        statement = (
            select(
                decisions.c.principal,
                decisions.c.subject,
                func.count(),
                func.max(decisions.c.time_us),
            )
            .where(_seen(since), decisions.c.subject.is_not(None), _PROVED, ~handed_on)
            .group_by(decisions.c.principal, decisions.c.subject)
            .order_by(decisions.c.principal, decisions.c.subject)
        )
        with converted("read the ledger"), self._store.transaction() as connection:
            rows = connection.execute(statement).all()
        for principal, subject, count, at in rows:
            if principal is not None and principal != subject:
                yield principal, subject, count, from_unix_us(at)

    def denied_with(
        self, reason: Reason, detail: str, since: datetime
    ) -> Iterator[Mapping[str, object]]:
        """Yield the records of denials with exactly this detail, newest first."""
        wanted = DecisionFilter(since=since, verdict=Verdict.DENY, reason=reason)
        for stored in self._reader.list(wanted):
            if stored.document.get("detail") == detail:
                yield stored.document

    def _of_column(self, name: str, since: datetime) -> Iterator[Usage]:
        column = decisions.c[name]
        denied = func.sum(case((decisions.c.verdict == Verdict.DENY.value, 1), else_=0))
        statement = (
            select(column, func.count(), func.max(decisions.c.time_us), denied)
            .where(_seen(since), column.is_not(None))
            .group_by(column)
        )
        with converted("read the ledger"), self._store.transaction() as connection:
            rows = connection.execute(statement).all()
        called = name == "principal"
        for id_, count, at, refused in rows:
            yield Usage(
                id=id_,
                last_seen=from_unix_us(at),
                as_principal=count if called else 0,
                as_actor=0,
                as_subject=0 if called else count,
                denied=int(refused) if called else 0,
            )

    def _actors(self, since: datetime) -> Iterator[Usage]:
        term = decision_terms
        statement = (
            select(term.c.value, func.count(), func.max(term.c.time_us))
            .where(term.c.kind == "actor", term.c.time_us >= unix_us(since))
            .group_by(term.c.value)
        )
        with converted("read the ledger"), self._store.transaction() as connection:
            rows = connection.execute(statement).all()
        for id_, count, at in rows:
            yield Usage(
                id=id_,
                last_seen=from_unix_us(at),
                as_principal=0,
                as_actor=count,
                as_subject=0,
                denied=0,
            )


def _seen(since: datetime) -> ColumnElement[bool]:
    return decisions.c.time_us >= unix_us(since)


_PROVED: Final = decisions.c.verdict != Verdict.DENY.value
