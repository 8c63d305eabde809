"""Settling an escalation: an approval turns it into an allow, anything else into a ticket.

The life of an approval, per exact action (`fingerprint`), at most one of them open at a time:

    pending --approve--> approved --first use--> consumed
       |                    '-----deadline-----> expired
       |---reject--> rejected ----deadline-----> expired
       '---------------deadline----------------> expired

Consumed and expired are final; the next escalation of that action asks again, under a new id. The
one deadline is set when the question is asked and is the one the agent was told: approving late
does not extend it. Time is the decision's own, so that settling replays.

Every step is one conditional UPDATE whose row count is looked at. In a ledger of its own file it
happens inside the transaction that also writes the record: an approval is consumed and recorded, or
neither. In a shared ledger the approval is consumed first; see `shared_approvals`.
"""

import json
import secrets
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, NamedTuple

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql, sqlite

from authz_server.core.decision import ApprovalRecord, Decision, TicketRecord, Verdict
from authz_server.core.errors import LedgerError, Reason
from authz_server.ledger.printable import printable
from authz_server.ledger.record import from_unix_us, resource_text, unix_us
from authz_server.ledger.schema import OPEN_STATUSES, approvals

_ID_BYTES: Final = 8
# Losing a race means that another server moved the approval on; it can move on twice at most.
_ATTEMPTS_MAX: Final = 4


class _OpenApproval(NamedTuple):
    """The open approval of one exact action, in the order of `_SELECT_OPEN`."""

    id: str
    status: str
    approver_group: str
    expires_at_us: int
    decided_at_us: int | None
    approver: str | None


_SELECT_OPEN: Final = select(
    approvals.c.id,
    approvals.c.status,
    approvals.c.approver_group,
    approvals.c.expires_at_us,
    approvals.c.decided_at_us,
    approvals.c.approver,
).where(approvals.c.status.in_(OPEN_STATUSES))


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalTerms:
    """How long a question stands, and whether its approval is good for one use or until then."""

    ttl: timedelta
    single_use: bool


def settle(
    connection: Connection, decision: Decision, *, decision_id: str, terms: ApprovalTerms
) -> Decision:
    """Return `decision`, an escalation, as an allow or with its ticket.

    Runs inside the caller's write transaction. A decision of a bundle in shadow mode, and one that
    is bound to no exact action, stays as it is: neither can be approved.
    """
    if not decision.awaits_approval or decision.fingerprint is None:
        return decision
    for _ in range(_ATTEMPTS_MAX):
        found = _open_approval(connection, decision.fingerprint)
        if found is None:
            asked = _ask(connection, decision, decision_id, terms)
            if asked is not None:
                return asked
            continue
        if found.expires_at_us <= unix_us(decision.time):
            if found.status == "approved":
                decision = replace(
                    decision,
                    reason=Reason.APPROVAL_EXPIRED,
                    detail="the approval expired before it was used; a new one was requested",
                )
            _move(connection, found, "expired")
        elif found.status != "approved":
            return replace(decision, ticket=_ticket(found))
        elif not terms.single_use or _consume(connection, found, decision, decision_id):
            return _allowed(decision, found)
    raise LedgerError("approval keeps changing")


def _open_approval(connection: Connection, fingerprint: str) -> _OpenApproval | None:
    statement = _SELECT_OPEN.where(approvals.c.fingerprint == fingerprint)
    row = connection.execute(statement).one_or_none()
    return None if row is None else _OpenApproval._make(row)


def _ask(
    connection: Connection, decision: Decision, decision_id: str, terms: ApprovalTerms
) -> Decision | None:
    """Put a new question to the approver group; None when another server just asked the same."""
    ticket = TicketRecord(
        id=secrets.token_hex(_ID_BYTES),
        status="pending",
        expires_at=decision.time + terms.ttl,
        approver_group=decision.obligation or "",
    )
    principal, chain = decision.principal, decision.chain
    action, resource = decision.action, decision.resource
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    # The open question of an action is unique; that of another server is not an error.
    result = connection.execute(
        insert(approvals)
        .values(
            id=ticket.id,
            fingerprint=decision.fingerprint,
            status=ticket.status,
            approver_group=ticket.approver_group,
            subject=printable(chain.subject) if chain else None,
            principal=printable(principal.spiffe_id) if principal else None,
            actors=json.dumps([printable(actor) for actor in chain.actors] if chain else []),
            purpose=printable(chain.purpose) if chain and chain.purpose else None,
            action=printable(f"{action.protocol} {action.name}") if action else "",
            resource=printable(resource_text(resource)) if resource else "",
            args_sha256=resource.args_sha256 if resource else None,
            bundle=printable(decision.bundle) if decision.bundle else None,
            rules=printable(", ".join(decision.rules)),
            owner=printable(decision.owner) if decision.owner else None,
            requested_at_us=unix_us(decision.time),
            expires_at_us=unix_us(ticket.expires_at),
            first_decision_id=decision_id,
        )
        .on_conflict_do_nothing()
    )
    return replace(decision, ticket=ticket) if result.rowcount == 1 else None


def _move(connection: Connection, found: _OpenApproval, status: str) -> None:
    """Close an approval whose deadline has passed; it may be closed already."""
    connection.execute(
        update(approvals)
        .where(approvals.c.id == found.id, approvals.c.status == found.status)
        .values(status=status)
    )


def _consume(
    connection: Connection, found: _OpenApproval, decision: Decision, decision_id: str
) -> bool:
    """Use the approval up; False when someone else did."""
    # INVARIANT: this is the only statement that sets `consumed`, and it changes one row or none.
    result = connection.execute(
        update(approvals)
        .where(
            approvals.c.id == found.id,
            approvals.c.status == "approved",
            approvals.c.expires_at_us > unix_us(decision.time),
        )
        .values(status="consumed", consumed_by=decision_id)
    )
    return result.rowcount == 1


def _allowed(decision: Decision, found: _OpenApproval) -> Decision:
    if found.approver is None or found.decided_at_us is None:
        raise LedgerError(f"approval {found.id} names no approver")
    return replace(
        decision,
        verdict=Verdict.ALLOW,
        reason=Reason.OK,
        detail="approved by a person",
        fingerprint=None,
        approval=ApprovalRecord(
            id=found.id,
            approver=found.approver,
            approved_at=from_unix_us(found.decided_at_us),
        ),
    )


def _ticket(found: _OpenApproval) -> TicketRecord:
    return TicketRecord(
        id=found.id,
        status=found.status,
        expires_at=from_unix_us(found.expires_at_us),
        approver_group=found.approver_group,
    )
