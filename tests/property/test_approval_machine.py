"""Approvals against a model of a page: whatever the order of events, none passes unapproved."""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from authz_server.core.decision import Decision, Verdict
from authz_server.core.errors import Reason
from authz_server.ledger.approvals import ApprovalRefused, Approvals
from authz_server.ledger.store import Ledger
from tests.ledger_samples import ALICE, BOB, GROUPS, at, escalation, record

TTL_S = 100
FINGERPRINTS = ("a" * 64, "b" * 64, "c" * 64)

fingerprints = st.sampled_from(FINGERPRINTS)


@dataclass
class Question:
    """The model's open question about one exact action."""

    id: str
    expires_at_s: int
    status: Literal["pending", "approved", "rejected"] = "pending"


class ApprovalMachine(RuleBasedStateMachine):
    """Agents attempt, people answer, time passes, the server restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.url = f"sqlite:///{self.directory}/authz.db"
        self.now_s = 0
        self.questions: dict[str, Question] = {}
        self.approved = self.allowed = 0

    @initialize(single_use=st.booleans())
    def open(self, single_use: bool) -> None:
        self.single_use = single_use
        self.ledger = Ledger.open(self.url, approval_ttl_s=TTL_S, single_use=single_use)
        self.people = Approvals.open(self.url, groups=GROUPS)

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
        shutil.rmtree(self.directory)

    @rule(seconds=st.sampled_from([1, 30, TTL_S]))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.ledger = Ledger.open(self.url, approval_ttl_s=TTL_S, single_use=self.single_use)

    @rule(batch=st.lists(fingerprints, min_size=1, max_size=5))
    def attempt(self, batch: list[str]) -> None:
        records = [
            record(replace(escalation(fingerprint), time=at(self.now_s))) for fingerprint in batch
        ]
        for fingerprint, decision in zip(batch, self.ledger.commit(records), strict=True):
            self.compare(fingerprint, decision)

    def compare(self, fingerprint: str, decision: Decision) -> None:
        """Hold one final decision against what the model expects of it."""
        question, reason = self.questions.get(fingerprint), Reason.ESCALATED_BY_RULE
        if question and question.expires_at_s <= self.now_s:
            if question.status == "approved":
                reason = Reason.APPROVAL_EXPIRED
            question = None
        if question and question.status == "approved":
            assert decision.verdict is Verdict.ALLOW
            assert decision.approval is not None
            assert (decision.approval.id, decision.approval.approver) == (question.id, BOB)
            self.allowed += 1
            if self.single_use:
                del self.questions[fingerprint]
            return
        assert (decision.verdict, decision.reason) == (Verdict.ESCALATE, reason)
        assert decision.ticket is not None
        if question:
            assert (decision.ticket.id, decision.ticket.status) == (question.id, question.status)
        else:
            assert decision.ticket.status == "pending"
            known = {one.id for one in self.questions.values()}
            assert decision.ticket.id not in known
            self.questions[fingerprint] = Question(decision.ticket.id, self.now_s + TTL_S)

    @rule(
        fingerprint=fingerprints,
        answer=st.sampled_from(["approve", "reject"]),
        who=st.sampled_from([BOB, ALICE, "eve@example.org"]),
    )
    def answer(self, fingerprint: str, answer: str, who: str) -> None:
        question = self.questions.get(fingerprint)
        if question is None:
            return
        may = who == BOB and question.status == "pending" and self.now_s < question.expires_at_s
        try:
            if answer == "approve":
                self.people.approve(question.id, approver=who, now=at(self.now_s))
            else:
                self.people.reject(question.id, approver=who, reason="no", now=at(self.now_s))
        except ApprovalRefused:
            assert not may
            return
        assert may
        question.status = "approved" if answer == "approve" else "rejected"
        self.approved += answer == "approve"

    @invariant()
    def never_more_allows_than_approvals(self) -> None:
        assert not getattr(self, "single_use", False) or self.allowed <= self.approved


TestApprovalMachine = ApprovalMachine.TestCase
TestApprovalMachine.settings = settings(
    max_examples=max(40, settings.default.max_examples // 20) if settings.default else 40,
    stateful_step_count=30,
)
