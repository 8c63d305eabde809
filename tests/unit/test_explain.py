"""An explanation names everyone and everything a decision rests on, for any document at all."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from authz_server.cli.explain import explain_tree
from authz_server.cli.reasons import SENTENCES, in_words
from authz_server.core.decision import ApprovalRecord, Decision, TicketRecord
from authz_server.core.enforcement import Mode
from authz_server.core.errors import Reason
from authz_server.core.record import decision_json
from tests.ledger_samples import ALICE, ASSISTANT, BOB, ISSUER, NOON, RESEARCHER, allow, chain, deny


def explained(document: dict[str, object]) -> str:
    output = io.StringIO()
    Console(file=output, width=1000, color_system=None).print(explain_tree(document))
    return "\n".join(line.rstrip() for line in output.getvalue().split("\n"))


def of(decision: Decision) -> str:
    return explained(decision_json(decision, decision_id="d1", duration_us=5))


def test_every_reason_is_put_in_words() -> None:
    assert set(SENTENCES) == set(Reason)
    for sentence in SENTENCES.values():
        assert re.fullmatch(r"[a-z].*[^.]", sentence)
    assert len(set(SENTENCES.values())) == len(SENTENCES)


def test_a_reason_of_a_later_version_stands_for_itself() -> None:
    assert in_words("SOMETHING_NEW") == "SOMETHING_NEW"
    assert in_words(None) == "no reason was recorded"


def test_leads_from_the_subject_through_each_actor_to_the_action() -> None:
    text = of(allow())
    order = [ALICE, ISSUER, ASSISTANT, RESEARCHER, "mcp tools/call", "crm lookup_customer"]
    positions = [text.index(part) for part in order]
    assert positions == sorted(positions)
    depths = [
        text[: text.index(f" {part}")].rpartition("\n")[2].count("   ")
        for part in (f"on behalf of {ALICE}", f"acts {ASSISTANT}", f"acts {RESEARCHER}", "asks mcp")
    ]
    assert depths == [0, 1, 2, 3]


def test_a_verdict_that_was_only_observed_is_not_taken_for_an_enforced_one() -> None:
    observed = of(deny(mode=Mode.SHADOW))
    assert observed.startswith("DENY not enforced decision d1")
    assert "in shadow mode: the request passed, whatever the verdict" in observed
    assert "shadow" not in of(deny())


def test_names_owner_proof_lifetime_and_scope_of_each_hop() -> None:
    text = of(allow())
    for part in (
        "owner: owner of assistant",
        "proved by: issuer-key k1",
        "owner: owner of research-1",
        f"proved by: x509-svid {'ab' * 32}",
        "valid: 2026-07-01 12:00:00 UTC until 2026-07-01 12:05:00 UTC, 300 s",
        "scope: crm:read",
        "transaction: txn-1",
        "purpose: support case 4711",
    ):
        assert part in text


def test_names_verdict_reason_rules_and_revision() -> None:
    text = of(deny(Reason.DENIED_BY_RULE))
    assert "deny because a rule of the policy forbids it (DENIED_BY_RULE)" in text
    assert "rules: support-read" in text
    assert "policy bundle: tools" in text
    assert "revision: r1" in text


def test_names_who_approved() -> None:
    text = of(allow(approval=ApprovalRecord(id="a1", approver=BOB, approved_at=NOON)))
    assert "allow because a person approved it (OK)" in text
    assert f"approved by {BOB}" in text
    assert "at: 2026-07-01T12:00:00.123456Z" in text


def test_names_what_is_still_asked() -> None:
    ticket = TicketRecord(id="a1", status="pending", expires_at=NOON, approver_group="finance")
    text = of(deny(ticket=ticket))
    assert "approval pending" in text
    assert "asked of: finance" in text


def test_tells_the_thief_of_a_chain_from_its_actors() -> None:
    caller = allow().principal
    assert caller is not None
    thief = "spiffe://prod.example.org/agent/thief"
    text = of(deny(Reason.LEAF_MISMATCH, principal=replace(caller, spiffe_id=thief)))
    assert f"asked by {thief} the caller" in text
    assert f"{RESEARCHER} the caller" not in text
    assert f"acts {RESEARCHER}" in text


def test_a_chain_without_proved_hops_still_names_its_actors() -> None:
    text = of(allow(chain=replace(chain(), hops=())))
    assert text.index(f"acts {ASSISTANT}") < text.index(f"acts {RESEARCHER}")


def test_explains_a_denial_before_anybody_was_identified() -> None:
    nothing = deny(
        Reason.NO_PRINCIPAL, principal=None, chain=None, action=None, resource=None,
        environment=None, owner=None, bundle=None, rules=(),
    )  # fmt: skip
    text = of(nothing)
    assert "asked by nobody who was identified" in text
    assert "asks nothing readable" in text


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"verdict": 7, "chain": [], "principal": "x", "rules": {}, "time": None},
        {"chain": {"subject": "a", "hops": [1, {"issued_at": 10**30, "expires_at": "x"}]}},
        {"chain": {"subject": "a", "hops": [{"issued_at": 10**30, "expires_at": 10**31}]}},
        {"chain": {"subject": "a", "actors": [1, None]}, "access_request": {"id": 1}},
        {"verdict": "[bold]", "reason": "\x1b[2J"},
    ],
)
def test_explains_any_document_at_all(document: dict[str, object]) -> None:
    text = explained(document)
    assert text.replace("\n", "").isprintable()
