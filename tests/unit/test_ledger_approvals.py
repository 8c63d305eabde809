"""An escalation passes once it is approved: by the right person, in time, for this action, once."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from authz_server.core.decision import Decision, Verdict
from authz_server.core.enforcement import Mode
from authz_server.core.errors import LedgerError, Reason
from authz_server.ledger.approvals import (
    ApprovalRefused,
    ApprovalRequest,
    Approvals,
    ApprovalStatus,
    Refusal,
)
from authz_server.ledger.query import LookupFault
from authz_server.ledger.store import Ledger
from tests.ledger_samples import (
    ALICE,
    ASSISTANT,
    BOB,
    GROUPS,
    NOON,
    RESEARCHER,
    TTL_S,
    allow,
    at,
    chain,
    escalation,
    record,
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/authz.db"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    ledger = Ledger.open(url, approval_ttl_s=TTL_S)
    yield ledger
    ledger.close()


@pytest.fixture
def approvals(url: str, ledger: Ledger) -> Approvals:
    return Approvals.open(url, groups=GROUPS)


def attempt(ledger: Ledger, decision: Decision | None = None, after_s: float = 0) -> Decision:
    """Commit one escalation, `after_s` seconds past noon."""
    (final,) = ledger.commit([record(replace(decision or escalation(), time=at(after_s)))])
    return final


def ticket_id(decision: Decision) -> str:
    assert decision.ticket is not None
    return decision.ticket.id


def test_the_first_attempt_asks_and_names_the_question(
    ledger: Ledger, approvals: Approvals
) -> None:
    asked = attempt(ledger)
    assert (asked.verdict, asked.reason) == (Verdict.ESCALATE, Reason.ESCALATED_BY_RULE)
    assert asked.ticket is not None
    assert asked.ticket.status == "pending"
    assert asked.ticket.expires_at == at(TTL_S)
    assert asked.ticket.approver_group == "finance-oncall"
    (request,) = approvals.list(now=NOON)
    assert request == ApprovalRequest(
        id=asked.ticket.id,
        status=ApprovalStatus.PENDING,
        approver_group="finance-oncall",
        subject=ALICE,
        principal=RESEARCHER,
        actors=(ASSISTANT, RESEARCHER),
        purpose="support case 4711",
        action="mcp tools/call",
        resource="crm lookup_customer",
        args_sha256="ef" * 32,
        bundle="tools",
        rules="export-needs-approval",
        owner="team-research",
        requested_at=NOON,
        expires_at=at(TTL_S),
        decided_at=None,
        approver=None,
        reject_reason=None,
        consumed_by=None,
        first_decision_id=request.first_decision_id,
    )
    assert ledger.get(request.first_decision_id) is not None


def test_repeating_the_attempt_asks_nothing_new(ledger: Ledger, approvals: Approvals) -> None:
    first, second = attempt(ledger), attempt(ledger, after_s=60)
    assert first.ticket == second.ticket
    assert len(approvals.list(now=NOON)) == 1


def test_an_approval_passes_once_and_then_asks_again(ledger: Ledger, approvals: Approvals) -> None:
    """Case approval-01."""
    asked = attempt(ledger)
    approvals.approve(ticket_id(asked), approver=BOB, now=at(60))
    passed = attempt(ledger, after_s=61)
    assert (passed.verdict, passed.reason, passed.ticket) == (Verdict.ALLOW, Reason.OK, None)
    assert passed.rules == ("export-needs-approval",)
    assert passed.approval is not None
    assert (passed.approval.id, passed.approval.approver) == (ticket_id(asked), BOB)
    assert passed.approval.approved_at == at(60)
    again = attempt(ledger, after_s=62)
    assert again.verdict is Verdict.ESCALATE
    assert again.reason is Reason.ESCALATED_BY_RULE
    assert ticket_id(again) != ticket_id(asked)


def test_the_record_says_who_approved(ledger: Ledger, approvals: Approvals) -> None:
    approvals.approve(ticket_id(attempt(ledger)), approver=BOB, now=at(1))
    one = record(escalation(time=at(2)))
    ledger.commit([one])
    stored = ledger.get(one.decision_id)
    assert stored is not None
    assert stored.document["verdict"] == "allow"
    approval = stored.document["approval"]
    assert isinstance(approval, dict)
    assert approval["approver"] == BOB
    request = approvals.show(approval["id"], now=at(2))
    assert (request.status, request.consumed_by) == (ApprovalStatus.CONSUMED, one.decision_id)


def test_of_fifty_in_one_batch_exactly_one_passes(ledger: Ledger, approvals: Approvals) -> None:
    """Case approval-07, within one transaction; across processes see the fault tests."""
    approvals.approve(ticket_id(attempt(ledger)), approver=BOB, now=at(1))
    final = ledger.commit([record(escalation(time=at(2))) for _ in range(50)])
    assert [one.verdict for one in final].count(Verdict.ALLOW) == 1
    assert len({ticket_id(one) for one in final if one.verdict is Verdict.ESCALATE}) == 1


def test_other_arguments_need_another_approval(ledger: Ledger, approvals: Approvals) -> None:
    """Case approval-09: what was approved is one canonical form, not whatever looks like it."""
    asked = attempt(ledger, escalation("a" * 64))
    approvals.approve(ticket_id(asked), approver=BOB, now=at(1))
    other = attempt(ledger, escalation("b" * 64), after_s=2)
    assert other.verdict is Verdict.ESCALATE
    assert ticket_id(other) != ticket_id(asked)
    assert attempt(ledger, escalation("a" * 64), after_s=3).verdict is Verdict.ALLOW


def test_what_shadow_mode_lets_pass_uses_no_approval_up(
    ledger: Ledger, approvals: Approvals
) -> None:
    """The same action, once under a bundle that is only observed and once enforced."""
    approvals.approve(ticket_id(attempt(ledger)), approver=BOB, now=at(1))
    observed = attempt(ledger, escalation(mode=Mode.SHADOW), 2)
    assert (observed.verdict, observed.approval, observed.ticket) == ("escalate", None, None)
    assert attempt(ledger, after_s=3).approval is not None


def test_an_approval_never_helps_a_denial(ledger: Ledger, approvals: Approvals) -> None:
    approvals.approve(ticket_id(attempt(ledger)), approver=BOB, now=at(1))
    denied = allow(verdict=Verdict.DENY, reason=Reason.DENIED_BY_RULE, fingerprint="f" * 64)
    assert ledger.commit([record(denied)]) == [denied]


def test_a_rejection_holds_until_its_deadline(ledger: Ledger, approvals: Approvals) -> None:
    asked = attempt(ledger)
    answered = approvals.reject(ticket_id(asked), approver=BOB, reason="no need", now=at(1))
    assert (answered.status, answered.reject_reason) == (ApprovalStatus.REJECTED, "no need")
    refused = attempt(ledger, after_s=TTL_S - 1)
    assert refused.ticket is not None
    assert (refused.ticket.id, refused.ticket.status) == (ticket_id(asked), "rejected")
    anew = attempt(ledger, after_s=TTL_S)
    assert anew.reason is Reason.ESCALATED_BY_RULE
    assert ticket_id(anew) != ticket_id(asked)


def test_an_approval_that_expired_unused_is_named_and_asked_for_again(
    ledger: Ledger, approvals: Approvals
) -> None:
    asked = attempt(ledger)
    approvals.approve(ticket_id(asked), approver=BOB, now=at(1))
    late = attempt(ledger, after_s=TTL_S)  # the deadline itself is too late
    assert (late.verdict, late.reason) == (Verdict.ESCALATE, Reason.APPROVAL_EXPIRED)
    assert late.ticket is not None
    assert (late.ticket.status, late.ticket.expires_at) == ("pending", at(2 * TTL_S))
    assert approvals.show(ticket_id(asked), now=at(TTL_S)).status is ApprovalStatus.EXPIRED
    assert attempt(ledger, after_s=TTL_S + 1).reason is Reason.ESCALATED_BY_RULE


def test_an_unanswered_question_is_asked_anew_after_its_deadline(ledger: Ledger) -> None:
    asked, anew = attempt(ledger), attempt(ledger, after_s=TTL_S)
    assert anew.reason is Reason.ESCALATED_BY_RULE
    assert ticket_id(anew) != ticket_id(asked)


def test_an_approval_for_repeated_use_holds_until_its_deadline(url: str) -> None:
    ledger = Ledger.open(url, approval_ttl_s=TTL_S, single_use=False)
    asked = attempt(ledger)
    Approvals.open(url, groups=GROUPS).approve(ticket_id(asked), approver=BOB, now=at(1))
    for after_s in (2, 3, TTL_S - 1):
        assert attempt(ledger, after_s=after_s).verdict is Verdict.ALLOW
    assert attempt(ledger, after_s=TTL_S).reason is Reason.APPROVAL_EXPIRED
    ledger.close()


@pytest.mark.parametrize(
    ("approver", "refusal"),
    [
        ("eve@example.org", Refusal.NOT_A_MEMBER),
        ("Bob@example.org", Refusal.NOT_A_MEMBER),
        ("", Refusal.NOT_A_MEMBER),
        (ALICE, Refusal.PARTY_TO_REQUEST),
    ],
)
@pytest.mark.parametrize("answer", ["approve", "reject"])
def test_who_may_not_answer(
    ledger: Ledger, approvals: Approvals, approver: str, refusal: Refusal, answer: str
) -> None:
    asked = attempt(ledger)
    answers = {
        "approve": partial(approvals.approve, approver=approver, now=at(1)),
        "reject": partial(approvals.reject, approver=approver, reason="no", now=at(1)),
    }
    with pytest.raises(ApprovalRefused) as refused:
        answers[answer](ticket_id(asked))
    assert refused.value.refusal is refusal
    assert attempt(ledger, after_s=2).ticket == asked.ticket


@pytest.mark.parametrize(
    ("subject", "actors", "approver"),
    [
        ("Alice@Example.org", (ASSISTANT, RESEARCHER), ALICE),
        ("\uff41lice@example.org", (ASSISTANT, RESEARCHER), ALICE),  # full-width a
        ("bob@example.org", (ASSISTANT, RESEARCHER), ASSISTANT),
        ("bob@example.org", (ASSISTANT, RESEARCHER), RESEARCHER),
        ("bob@example.org", (ASSISTANT,), RESEARCHER),  # the caller alone
        ("CORP\\alice", (ASSISTANT,), "corp\\alice"),
    ],
)
def test_no_party_answers_for_itself_however_it_is_spelled(
    ledger: Ledger, url: str, subject: str, actors: tuple[str, ...], approver: str
) -> None:
    asked = attempt(ledger, escalation(chain=chain(*actors, subject=subject)))
    approvals = Approvals.open(url, groups={"finance-oncall": (approver,)})
    with pytest.raises(ApprovalRefused) as refused:
        approvals.approve(ticket_id(asked), approver=approver, now=at(1))
    assert refused.value.refusal is Refusal.PARTY_TO_REQUEST


@pytest.mark.parametrize("group", ["legal", None])
def test_a_group_nobody_configured_approves_nothing(
    ledger: Ledger, approvals: Approvals, group: str | None
) -> None:
    asked = attempt(ledger, escalation(obligation=group))
    with pytest.raises(ApprovalRefused) as refused:
        approvals.approve(ticket_id(asked), approver=BOB, now=at(1))
    assert refused.value.refusal is Refusal.UNKNOWN_GROUP


@pytest.mark.parametrize("first", ["approve", "reject"])
def test_only_the_first_answer_counts(ledger: Ledger, approvals: Approvals, first: str) -> None:
    asked = attempt(ledger)
    if first == "approve":
        approvals.approve(ticket_id(asked), approver=BOB, now=at(1))
    else:
        approvals.reject(ticket_id(asked), approver=BOB, reason="no", now=at(1))
    with pytest.raises(ApprovalRefused, match=f"already {first}.* by {BOB}") as refused:
        approvals.approve(ticket_id(asked), approver="carol@example.org", now=at(2))
    assert refused.value.refusal is Refusal.NOT_PENDING


def test_nobody_answers_after_the_deadline(ledger: Ledger, approvals: Approvals) -> None:
    asked = attempt(ledger)
    with pytest.raises(ApprovalRefused) as refused:
        approvals.approve(ticket_id(asked), approver=BOB, now=at(TTL_S))
    assert refused.value.refusal is Refusal.EXPIRED


def test_a_used_approval_cannot_be_approved_again(ledger: Ledger, approvals: Approvals) -> None:
    """Case approval-01, by way of the approver."""
    asked = attempt(ledger)
    approvals.approve(ticket_id(asked), approver=BOB, now=at(1))
    attempt(ledger, after_s=2)
    with pytest.raises(ApprovalRefused) as refused:
        approvals.approve(ticket_id(asked), approver=BOB, now=at(3))
    assert refused.value.refusal is Refusal.NOT_PENDING


def test_the_beginning_of_an_id_is_enough_if_it_is_the_only_one(
    ledger: Ledger, approvals: Approvals
) -> None:
    asked = attempt(ledger)
    assert approvals.show(ticket_id(asked)[:6], now=NOON).id == ticket_id(asked)
    attempt(ledger, escalation("b" * 64))
    with pytest.raises(LookupFault, match="more than one approval"):
        approvals.approve("", approver=BOB, now=NOON)
    with pytest.raises(LookupFault, match="no approval"):
        approvals.show("xyz", now=NOON)
    with pytest.raises(LookupFault, match=r"no approval .* `\\x1b\[2J`"):
        approvals.show("\x1b[2J", now=NOON)


def test_lists_by_status_newest_first(ledger: Ledger, approvals: Approvals) -> None:
    old = attempt(ledger, escalation("a" * 64))
    new = attempt(ledger, escalation("b" * 64), after_s=60)
    approvals.approve(ticket_id(old), approver=BOB, now=at(61))
    listed = [(one.id, one.status.value) for one in approvals.list(now=at(62))]
    assert listed == [(ticket_id(new), "pending"), (ticket_id(old), "approved")]
    (pending,) = approvals.list(now=at(62), status=ApprovalStatus.PENDING)
    assert pending.id == ticket_id(new)
    expired = approvals.list(now=at(2 * TTL_S), status=ApprovalStatus.EXPIRED)
    assert len(expired) == 2
    assert len(approvals.list(now=at(62), limit=1)) == 1


def test_shows_hostile_words_escaped(ledger: Ledger, approvals: Approvals) -> None:
    """Case audit-01, as the approver meets it."""
    resource = allow().resource
    assert resource is not None
    hostile = replace(resource, tool="delete\n\x1b[2Jlookup")
    attempt(ledger, escalation(resource=hostile, chain=chain(subject="eve\r\nadmin\u202e")))
    (request,) = approvals.list(now=NOON)
    assert request.resource == r"crm delete\n\x1b[2Jlookup"
    assert request.subject == r"eve\r\nadmin\u202e"


def test_needs_an_existing_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="does not exist"):
        Approvals.open(f"sqlite:///{tmp_path}/none.db", groups=GROUPS)
    assert list(tmp_path.iterdir()) == []
