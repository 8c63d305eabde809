"""The human answers: who may approve or reject an escalated action, and when.

Separation of duties, checked on every answer: the approver belongs to the request's approver
group, and is neither its subject, nor its caller, nor any actor of its chain. An answer is one
conditional UPDATE, so that of two approvers answering at once exactly one is heard.
"""

import json
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import Final, Self

from sqlalchemy import Connection, RowMapping, select, update

from authz_server.core.errors import AuthzError
from authz_server.ledger.database import (
    Access,
    Store,
    converted,
)
from authz_server.ledger.printable import printable
from authz_server.ledger.query import begins_with, the_one
from authz_server.ledger.record import column_text, from_unix_us, unix_us
from authz_server.ledger.schema import approvals, check

ApproverGroups = Mapping[str, Collection[str]]


class ApprovalStatus(StrEnum):
    """Where an approval stands; see `settlement` for how it moves."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    CONSUMED = "consumed"
    EXPIRED = "expired"


class Refusal(StrEnum):
    """Why an answer was not accepted."""

    NOT_PENDING = "not_pending"
    EXPIRED = "expired"
    UNKNOWN_GROUP = "unknown_group"
    NOT_A_MEMBER = "not_a_member"
    PARTY_TO_REQUEST = "party_to_request"
    SAME_PERSON = "same_person"


class ApprovalRefused(AuthzError):
    """An answer was not accepted; the message is one sentence for the person who gave it."""

    def __init__(self, refusal: Refusal, sentence: str) -> None:
        super().__init__(sentence)
        self.refusal = refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequest:
    """One question and, if there is one, its answer. Texts are printable; actors root first.

    A pending request that has an `approver` waits for a second one; approved by two, both are
    named, joined by a comma.
    """

    id: str
    status: ApprovalStatus
    approver_group: str
    subject: str | None
    principal: str | None
    actors: tuple[str, ...]
    purpose: str | None
    action: str
    resource: str
    args_sha256: str | None
    bundle: str | None
    rules: str
    owner: str | None
    requested_at: datetime
    expires_at: datetime
    decided_at: datetime | None
    approver: str | None
    reject_reason: str | None
    consumed_by: str | None
    first_decision_id: str

    @property
    def parties(self) -> frozenset[str]:
        """Everyone who takes part in the request and so may not answer it."""
        return frozenset(filter(None, (self.subject, self.principal, *self.actors)))


class Approvals:
    """Lists and answers what escalations ask, on the ledger a server writes."""

    def __init__(
        self,
        *,
        reading: Store,
        writing: Store,
        groups: ApproverGroups,
        two_persons: Collection[str] = (),
    ) -> None:
        self._reading = reading
        self._writing = writing
        self._groups = groups
        self._two_persons = frozenset(two_persons)

    @classmethod
    def at(cls, url: str, *, groups: ApproverGroups, two_persons: Collection[str] = ()) -> Self:
        """Return the approvals of the ledger at `url`, which need not answer yet.

        `groups`: approver group to its members; `two_persons`: groups of which two must approve.
        Raises `LedgerError` for a URL that names no ledger.
        """
        return cls(
            reading=Store.open(url, Access.READ),
            writing=Store.open(url, Access.WRITE),
            groups=groups,
            two_persons=two_persons,
        )

    @classmethod
    def open(cls, url: str, *, groups: ApproverGroups, two_persons: Collection[str] = ()) -> Self:
        """Open the ledger at `url` as `at` does; it must exist. Raises `LedgerError`."""
        opened = cls.at(url, groups=groups, two_persons=two_persons)
        with converted("read the ledger"), opened._reading.transaction() as connection:
            check(connection)
        return opened

    def groups_of(self, name: str) -> frozenset[str]:
        """Return the approver groups that `name` belongs to."""
        return frozenset(group for group, members in self._groups.items() if name in members)

    def list(
        self,
        *,
        now: datetime,
        status: ApprovalStatus | None = None,
        of_groups: Collection[str] | None = None,
        limit: int = 100,
    ) -> Sequence[ApprovalRequest]:
        """Return the newest requests, newest first. A passed deadline counts as expired.

        `of_groups` are the only approver groups to look at; None for all.
        """
        statement = _REQUESTS.order_by(approvals.c.requested_at_us.desc(), approvals.c.id)
        if of_groups is not None:
            statement = statement.where(approvals.c.approver_group.in_(sorted(of_groups)))
        if status is not None:
            stored = _STORED_AS.get(status, (status,))
            statement = statement.where(approvals.c.status.in_([one.value for one in stored]))
        with converted("read the ledger"), self._reading.transaction() as connection:
            requests = (request_of(row, now) for row in connection.execute(statement).mappings())
            wanted = (one for one in requests if status is None or one.status is status)
            return list(islice(wanted, limit))

    def show(self, beginning: str, *, now: datetime) -> ApprovalRequest:
        """Return the one request whose id is, or begins with, `beginning`.

        Raises `LookupFault` and `LedgerError`.
        """
        with converted("read the ledger"), self._reading.transaction() as connection:
            return _find(connection, beginning, now)

    def approve(self, beginning: str, *, approver: str, now: datetime) -> ApprovalRequest:
        """Approve a pending request as `approver`; it may now be used until its deadline.

        Where two persons must approve, the first leaves it pending, with the name on record.
        Raises `ApprovalRefused`, `LookupFault` and `LedgerError`.
        """
        return self._answer(beginning, ApprovalStatus.APPROVED, approver, None, now)

    def reject(
        self, beginning: str, *, approver: str, reason: str, now: datetime
    ) -> ApprovalRequest:
        """Reject a pending request as `approver`; nobody is asked again before its deadline.

        Raises `ApprovalRefused`, `LookupFault` and `LedgerError`.
        """
        return self._answer(beginning, ApprovalStatus.REJECTED, approver, reason, now)

    def _answer(
        self,
        beginning: str,
        answer: ApprovalStatus,
        approver: str,
        reject_reason: str | None,
        now: datetime,
    ) -> ApprovalRequest:
        with converted("write the ledger"), self._writing.transaction() as connection:
            request = _find(connection, beginning, now)
            self._check_open(request)
            self._check_entitled(request, approver)
            answer, named = self._counted(request, answer, approver)
            # INVARIANT: the condition repeats what was checked, so that it also holds where two
            # transactions may run at once.
            result = connection.execute(
                update(approvals)
                .where(
                    approvals.c.id == request.id,
                    approvals.c.status == ApprovalStatus.PENDING.value,
                    approvals.c.expires_at_us > unix_us(now),
                    approvals.c.approver.is_not_distinct_from(request.approver),
                )
                .values(
                    status=answer.value,
                    approver=named,
                    decided_at_us=unix_us(now),
                    reject_reason=column_text(reject_reason) if reject_reason else None,
                )
            )
            if result.rowcount != 1:
                raise ApprovalRefused(Refusal.NOT_PENDING, "someone else answered just now")
            return _find(connection, request.id, now)

    def _counted(
        self, request: ApprovalRequest, answer: ApprovalStatus, approver: str
    ) -> tuple[ApprovalStatus, str]:
        """Return what the answer makes of the request, and whom it then names as approver."""
        first = request.approver  # of a pending request: who approved already
        if answer is not ApprovalStatus.APPROVED or request.approver_group not in self._two_persons:
            return answer, approver
        if first is None:
            return ApprovalStatus.PENDING, approver
        # SECURITY: one person under two spellings is still one.
        if _folded(first) == _folded(approver):
            raise ApprovalRefused(
                Refusal.SAME_PERSON, f"`{printable(approver)}` approved already; another must too"
            )
        return ApprovalStatus.APPROVED, f"{first}, {approver}"

    def _check_open(self, request: ApprovalRequest) -> None:
        if request.status is ApprovalStatus.EXPIRED:
            raise ApprovalRefused(
                Refusal.EXPIRED,
                f"approval {request.id} expired; the agent's next attempt asks anew",
            )
        if request.status is not ApprovalStatus.PENDING:
            by = f" by {request.approver}" if request.approver else ""
            raise ApprovalRefused(
                Refusal.NOT_PENDING, f"approval {request.id} is already {request.status}{by}"
            )

    def _check_entitled(self, request: ApprovalRequest, approver: str) -> None:
        """Hold the approver to the group and away from the request's own parties."""
        group = request.approver_group
        if group not in self._groups:
            raise ApprovalRefused(
                Refusal.UNKNOWN_GROUP,
                f"approver group `{group}` is not configured; "
                "name its members under `approvals.groups`",
            )
        if approver not in self._groups[group]:
            raise ApprovalRefused(
                Refusal.NOT_A_MEMBER, f"`{printable(approver)}` is not in approver group `{group}`"
            )
        # SECURITY: an issuer may spell a subject in another case than the group does. A spelling
        # must not let someone approve what is done in their own name.
        if _folded(printable(approver)) in map(_folded, request.parties):
            raise ApprovalRefused(
                Refusal.PARTY_TO_REQUEST,
                f"`{printable(approver)}` takes part in this request; someone else must answer it",
            )


_REQUESTS: Final = select(approvals)

# A passed deadline is written down only when the action is attempted again.
_STORED_AS: Final = {
    ApprovalStatus.EXPIRED: (
        ApprovalStatus.EXPIRED,
        ApprovalStatus.PENDING,
        ApprovalStatus.APPROVED,
    )
}


def _find(connection: Connection, beginning: str, now: datetime) -> ApprovalRequest:
    statement = _REQUESTS.where(begins_with(approvals.c.id, beginning)).limit(2)
    return request_of(
        the_one(connection.execute(statement).mappings().all(), "approval", beginning), now
    )


def request_of(row: RowMapping, now: datetime) -> ApprovalRequest:
    """Return the request in a row of `schema.approvals`, as it stands at `now`."""
    status = ApprovalStatus(row["status"])
    if status in {ApprovalStatus.PENDING, ApprovalStatus.APPROVED} and (
        row["expires_at_us"] <= unix_us(now)
    ):
        status = ApprovalStatus.EXPIRED
    return ApprovalRequest(
        id=row["id"],
        status=status,
        approver_group=row["approver_group"],
        subject=row["subject"],
        principal=row["principal"],
        actors=tuple(json.loads(row["actors"])),
        purpose=row["purpose"],
        action=row["action"],
        resource=row["resource"],
        args_sha256=row["args_sha256"],
        bundle=row["bundle"],
        rules=row["rules"],
        owner=row["owner"],
        requested_at=from_unix_us(row["requested_at_us"]),
        expires_at=from_unix_us(row["expires_at_us"]),
        decided_at=None if row["decided_at_us"] is None else from_unix_us(row["decided_at_us"]),
        approver=row["approver"],
        reject_reason=row["reject_reason"],
        consumed_by=row["consumed_by"],
        first_decision_id=row["first_decision_id"],
    )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()
