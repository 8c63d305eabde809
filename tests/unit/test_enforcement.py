"""What passes and what does not: every verdict, mode and reason, and the answer built from them."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from authz_server.core.attributes import Protocol
from authz_server.core.decision import Decision, Verdict
from authz_server.core.enforcement import OBSERVABLE, Mode, applied_mode
from authz_server.core.errors import Reason
from authz_server.servers import answer
from authz_server.servers.answer import check_response
from authz_server.servers.check_service import denial, unrecorded

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
# Spelt out a second time on purpose: a reason changes sides here and there, or not at all.
ALWAYS_ENFORCED = {
    Reason.REVOKED,
    Reason.UNKNOWN_BUNDLE,
    Reason.APPROVAL_EXPIRED,
    Reason.LEDGER_UNAVAILABLE,
    Reason.NOT_READY,
    Reason.INTERNAL_ERROR,
}
COMBINATIONS = list(itertools.product(Verdict, Mode, Reason))


def decision(verdict: Verdict, mode: Mode, reason: Reason) -> Decision:
    return Decision(
        verdict=verdict, mode=mode, reason=reason, detail="", time=NOW, revision="r1", bundle="data"
    )


def possible(verdict: Verdict, mode: Mode, reason: Reason) -> bool:
    if (verdict is Verdict.ALLOW) != (reason is Reason.OK):
        return False
    return mode is Mode.ENFORCE or reason not in ALWAYS_ENFORCED


def test_every_reason_is_on_one_side() -> None:
    assert set(Reason) - OBSERVABLE == ALWAYS_ENFORCED


@pytest.mark.parametrize("reason", Reason)
def test_what_is_always_enforced_says_so_in_any_bundle(reason: Reason) -> None:
    assert applied_mode(Mode.ENFORCE, reason) is Mode.ENFORCE
    expected = Mode.ENFORCE if reason in ALWAYS_ENFORCED else Mode.SHADOW
    assert applied_mode(Mode.SHADOW, reason) is expected


def test_contradictions_are_no_decisions() -> None:
    for combination in COMBINATIONS:
        if not possible(*combination):
            with pytest.raises(ValueError, match="contradicts"):
                decision(*combination)


@pytest.mark.parametrize("protocol", Protocol)
def test_a_request_passes_by_an_allow_or_in_shadow_and_by_nothing_else(protocol: Protocol) -> None:
    """The answer agrees with the decision for every combination that there can be."""
    passed = set()
    for verdict, mode, reason in filter(lambda one: possible(*one), COMBINATIONS):
        made = replace(decision(verdict, mode, reason), protocol=protocol)
        expected = verdict is Verdict.ALLOW or mode is Mode.SHADOW
        assert made.passes is expected
        response = CheckResponse.FromString(check_response(made, decision_id="d"))
        assert (response.status.code == 0) is expected
        form = {True: "ok_response", False: "denied_response"}[expected]
        assert response.WhichOneof("http_response") == (None if protocol == "tcp" else form)
        metadata = dict(response.dynamic_metadata)
        assert (metadata["verdict"], metadata["mode"]) == (verdict, mode)
        if expected:
            passed.add((verdict, mode, reason))
    assert {reason for _, mode, reason in passed if mode is Mode.SHADOW} == OBSERVABLE
    assert {reason for _, mode, reason in passed if mode is Mode.ENFORCE} == {Reason.OK}


def test_the_answer_of_a_request_in_shadow_says_what_would_have_been() -> None:
    made = decision(Verdict.DENY, Mode.SHADOW, Reason.DENIED_BY_RULE)
    ok = CheckResponse.FromString(check_response(made, decision_id="d")).ok_response
    shown = {option.header.key: option.header.value for option in ok.response_headers_to_add}
    assert shown == {
        "x-authz-decision-id": "d",
        "x-authz-verdict": "deny",
        "x-authz-mode": "shadow",
    }
    # The workload is not told: it could come to rely on it.
    assert [option.header.key for option in ok.headers] == ["x-authz-decision-id"]
    assert list(ok.headers_to_remove) == ["x-authz-verdict", "x-authz-mode"]
    stripped = replace(made, strip_delegation=True)
    ok = CheckResponse.FromString(check_response(stripped, decision_id="d")).ok_response
    assert list(ok.headers_to_remove)[2:] == ["txn-token", "delegation-chain"]


@pytest.mark.parametrize("mode", Mode)
def test_an_answer_that_contradicts_the_decision_does_not_leave(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As strict in shadow: an answer built for another decision is caught either way."""
    denied = decision(Verdict.DENY, Mode.ENFORCE, Reason.DENIED_BY_RULE)
    observed = replace(denied, mode=Mode.SHADOW)
    given, built_for = (denied, observed) if mode is Mode.ENFORCE else (observed, denied)
    build = answer._build
    monkeypatch.setattr(answer, "_build", lambda _, decision_id: build(built_for, decision_id))
    with pytest.raises(AssertionError, match="contradicts"):
        check_response(given, decision_id="d")


def test_what_cannot_be_recorded_does_not_pass() -> None:
    """Keeping the mode, as the plain way to write it would, is no decision at all."""
    observed = decision(Verdict.DENY, Mode.SHADOW, Reason.NO_MATCHING_RULE)
    assert observed.passes
    with pytest.raises(ValueError, match="contradicts"):
        replace(observed, reason=Reason.LEDGER_UNAVAILABLE)
    refused = unrecorded(observed)
    assert (refused.passes, refused.mode, refused.bundle) == (False, Mode.ENFORCE, "data")


def test_nobody_is_asked_about_what_is_only_observed() -> None:
    escalated = decision(Verdict.ESCALATE, Mode.ENFORCE, Reason.ESCALATED_BY_RULE)
    assert not escalated.awaits_approval  # of no exact action
    assert replace(escalated, fingerprint="f").awaits_approval
    assert not replace(escalated, fingerprint="f", mode=Mode.SHADOW).awaits_approval
    assert not denial(Reason.REVOKED, "", NOW, "r1").awaits_approval
