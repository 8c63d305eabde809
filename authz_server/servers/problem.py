"""What a denied client is told: an RFC 9457 problem document, the same for every protocol.

SECURITY: it names the stage and the reason, never policy text, a token or another party.
"""

from typing import Final

from authz_server.core import limits
from authz_server.core.decision import Decision, Verdict
from authz_server.core.errors import Reason
from authz_server.core.record import ticket_json

# SECURITY: what of a decision's detail may come from a policy, or from inside the server, is
# replaced by a sentence that says no more than the reason.
_SENTENCES: Final = {
    Reason.NO_MATCHING_RULE: "no rule allows this",
    Reason.DENIED_BY_RULE: "a rule forbids this",
    Reason.ESCALATED_BY_RULE: "this needs the approval of a person",
    Reason.APPROVAL_EXPIRED: "the approval expired before it was used",
    Reason.POLICY_ERROR: "the policy could not be evaluated",
    Reason.LEDGER_UNAVAILABLE: "the decision could not be recorded",
    Reason.NOT_READY: "no valid policy is loaded",
    Reason.INTERNAL_ERROR: "the decision failed",
}

STAGES: Final = {
    "principal": (
        Reason.NO_PRINCIPAL,
        Reason.MALFORMED_PRINCIPAL,
        Reason.UNKNOWN_TRUST_DOMAIN,
        Reason.UNREGISTERED_IDENTITY,
    ),
    "request": (
        Reason.MALFORMED_REQUEST,
        Reason.NON_CANONICAL_PATH,
        Reason.BODY_TRUNCATED,
        Reason.MALFORMED_BODY,
        Reason.UNSUPPORTED_METHOD,
        Reason.HEADER_BODY_MISMATCH,
        Reason.DUPLICATE_HEADER,
        Reason.OVERSIZE,
    ),
    "delegation": (
        Reason.DELEGATION_REQUIRED,
        Reason.MALFORMED_TOKEN,
        Reason.BAD_HEADER,
        Reason.UNKNOWN_ISSUER,
        Reason.UNKNOWN_KEY,
        Reason.BAD_SIGNATURE,
        Reason.EXPIRED,
        Reason.NOT_YET_VALID,
        Reason.LIFETIME_TOO_LONG,
        Reason.WRONG_AUDIENCE,
        Reason.CHAIN_BROKEN,
        Reason.CHAIN_TOO_DEEP,
        Reason.CHAIN_CYCLE,
        Reason.SCOPE_WIDENED,
        Reason.LEAF_MISMATCH,
    ),
    "revocation": (Reason.REVOKED,),
    "policy": (
        Reason.UNKNOWN_BUNDLE,
        Reason.NO_MATCHING_RULE,
        Reason.DENIED_BY_RULE,
        Reason.ESCALATED_BY_RULE,
        Reason.POLICY_ERROR,
    ),
    "approval": (Reason.APPROVAL_EXPIRED,),
    "server": (Reason.LEDGER_UNAVAILABLE, Reason.NOT_READY, Reason.INTERNAL_ERROR),
}
_STAGE_OF: Final = {reason: stage for stage, reasons in STAGES.items() for reason in reasons}

_GROUP_CHARS_MAX: Final = 100  # the one text in the document that a policy's author chooses

Problem = dict[str, object]


def problem(decision: Decision, decision_id: str) -> Problem:
    """Return the members of interface section 7: RFC 9457's and ours, `access_request` last.

    All strings are short, and printable ASCII except for the approver group.
    """
    if decision.verdict is Verdict.ESCALATE:
        kind, title = "approval-required", "Approval required"
    elif is_authenticated(decision):
        kind, title = "access-denied", "Access denied"
    else:
        kind, title = "caller-not-authenticated", "Caller not authenticated"
    document: Problem = {
        "type": f"urn:authz-server:problem:{kind}",
        "title": title,
        "status": http_status(decision),
        "detail": _detail(decision),
        "decision_id": decision_id,
        "verdict": decision.verdict.value,
        "reason": decision.reason.value,
    }
    ticket = ticket_json(decision.ticket)
    if decision.verdict is Verdict.ESCALATE and ticket is not None:
        ticket["approver_group"] = str(ticket["approver_group"])[:_GROUP_CHARS_MAX]
        document["access_request"] = ticket
    return document


def _detail(decision: Decision) -> str:
    sentence = _SENTENCES.get(decision.reason, decision.detail)
    # Printable ASCII: it becomes a header value for gRPC, and no escape can lengthen it.
    clean = "".join(char if " " <= char <= "~" else "?" for char in sentence)
    return f"{_stage(decision)}: {clean}"[: limits.DETAIL_CHARS_MAX]


def _stage(decision: Decision) -> str:
    stage = _STAGE_OF[decision.reason]
    # A token at fault before anybody was identified is the caller's own credential, a JWT-SVID.
    return "principal" if stage == "delegation" and decision.principal is None else stage


def is_authenticated(decision: Decision) -> bool:
    """Tell whether the caller was established, whatever became of the request."""
    return decision.principal is not None or _stage(decision) != "principal"


def http_status(decision: Decision) -> int:
    """Return the HTTP status of the denial `decision`: 401 without a usable principal, else 403."""
    return 403 if is_authenticated(decision) else 401
