"""What came back from a live Envoy, in the same words whatever the protocol."""

from dataclasses import dataclass
from typing import Final

from authz_server.agent.answers import Answer
from authz_server.core.decision import Verdict
from authz_server.core.errors import AuthzError

DECISION_ID: Final = "x-authz-decision-id"
TIMEOUT_S: Final = 15.0  # of one call, its connection included
UNKNOWN: Final = "-"


class LiveCallError(AuthzError):
    """A request of a scenario cannot be made as a real one, or nobody answered it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """How one request was answered.

    `verdict` is None when Envoy answered without asking the decision point, or could not ask;
    `reason` is then what it said instead. A TCP connection tells no reason and no decision id.
    `ticket` is the id of the approval that an escalation waits for.

    SECURITY: a workload can write the same headers and documents. What was really decided, the
    ledger says.
    """

    verdict: Verdict | None
    reason: str = UNKNOWN
    decision_id: str | None = None
    ticket: str | None = None


def allowed(decision_id: str | None) -> Observed:
    """Return what an answer of the workload itself says: it was let through by `decision_id`."""
    return Observed(verdict=Verdict.ALLOW, reason="OK", decision_id=decision_id)


def refused(answer: Answer) -> Observed:
    """Return what a problem document says."""
    ticket = answer.access_request
    return Observed(
        verdict=Verdict(answer.verdict),
        reason=answer.reason,
        decision_id=answer.decision_id,
        ticket=ticket.id if ticket else None,
    )
