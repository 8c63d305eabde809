"""The casebook through `decide`: bytes of a CheckRequest in, verdict, reason and rules out."""

from dataclasses import replace
from datetime import timedelta

import pytest

from authz_server.core.decision import Decision, Verdict
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.pdp import decide
from authz_server.core.record import decision_json
from authz_server.core.snapshot import Snapshot
from authz_server.servers import wire
from tests.harness import casebook
from tests.harness.casebook import Case
from tests.harness.world import World

# Reasons that no single request can bring about: they belong to the server and the ledger, whose
# suites show them (tests/faults, tests/unit/test_settlement.py).
OUTSIDE_DECIDE = {
    Reason.APPROVAL_EXPIRED,
    Reason.INTERNAL_ERROR,
    Reason.LEDGER_UNAVAILABLE,
    Reason.NOT_READY,
}


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def outcome(request: bytes, snapshot: Snapshot, world: World) -> tuple[str, str, Decision | None]:
    try:
        decision = decide(wire.access_request(request), snapshot, world.now)
    except RequestFault as fault:
        return "deny", fault.reason, None
    return decision.verdict, decision.reason, decision


@pytest.mark.parametrize("case", casebook.cases(), ids=str)
def test_case(case: Case, world: World) -> None:
    request = casebook.check_request(case, world)
    snapshot = world.snapshot(casebook.revocations(case, request))
    verdict, reason, decision = outcome(request, snapshot, world)
    detail = decision.detail if decision else ""
    assert (verdict, reason) == (case.expect["verdict"], case.expect["reason"]), detail
    if "rules" in case.expect:
        assert decision is not None
        assert list(decision.rules) == case.expect["rules"]


@pytest.mark.parametrize("case", casebook.cases(), ids=str)
def test_replayed_decision_is_the_same(case: Case, world: World) -> None:
    """The same three arguments give the same decision, whatever the chain cache remembers."""
    request = casebook.check_request(case, world)
    snapshot = world.snapshot(casebook.revocations(case, request))
    first = outcome(request, snapshot, world)
    assert outcome(request, snapshot, world) == first
    again = world.snapshot(casebook.revocations(case, request))
    assert outcome(request, again, world) == first


def test_a_request_that_cannot_be_read_is_recorded_with_its_sender(world: World) -> None:
    (case,) = (case for case in casebook.cases() if case.name == "the root twice")
    decision = outcome(casebook.check_request(case, world), world.snapshot(), world)[2]
    assert decision is not None
    assert decision.principal is not None
    assert decision.principal.spiffe_id == "spiffe://cases.example.org/agent/assistant"
    assert decision.resource is not None
    assert decision.resource.resource == "customers"


def test_every_reason_has_a_case() -> None:
    covered = {Reason(case.expect["reason"]) for case in casebook.cases()}
    assert covered == set(Reason) - OUTSIDE_DECIDE


@pytest.mark.parametrize("case", casebook.cases(), ids=str)
def test_document_holds_no_secret(case: Case, world: World) -> None:
    """No token, certificate, body, argument value or query reaches the decision document."""
    call = casebook.http_call(case, world)
    request = casebook.check_request(case, world)
    decision = outcome(request, world.snapshot(), world)[2]
    if decision is None:
        return
    text = str(decision_json(decision, decision_id="d", duration_us=1))
    for name, value in call.headers:
        if name in {"txn-token", "delegation-chain"}:
            for part in value.decode("latin-1").replace(",", ".").split("."):
                assert len(part) < 12 or part.strip() not in text
    assert "BEGIN CERTIFICATE" not in text
    if len(call.body) > 3:
        assert call.body.decode() not in text


@pytest.mark.parametrize("case", [c for c in casebook.cases() if c.spec["chain"]], ids=str)
def test_no_allow_after_expiry(case: Case, world: World) -> None:
    """Whatever was allowed now is denied once every token has run out, cached or not."""
    request = casebook.check_request(case, world)
    snapshot = world.snapshot()
    outcome(request, snapshot, world)
    later = replace(world, now=world.now + timedelta(hours=2))
    assert outcome(request, snapshot, later)[0] == Verdict.DENY
