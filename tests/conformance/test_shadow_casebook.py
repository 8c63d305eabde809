"""The casebook under bundles in shadow mode: decided as ever, and everything passes but orders."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from authz_server.core import pdp
from authz_server.core.callers import CallerPolicy
from authz_server.core.decision import Decision, Verdict
from authz_server.core.enforcement import OBSERVABLE, Mode
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.snapshot import Revocations
from authz_server.core.spiffe import SpiffeIdPattern
from authz_server.servers import wire
from tests.harness import casebook
from tests.harness.casebook import Case
from tests.harness.world import World, shipped_policies, spiffe_id

ALL: Mapping[str, Mode] = dict.fromkeys(shipped_policies(), Mode.SHADOW)
NOTHING_REVOKED = Revocations()


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def decided(
    case: Case,
    world: World,
    modes: Mapping[str, Mode],
    revocations: Revocations | None = None,
) -> Decision:
    request = casebook.check_request(case, world)
    if revocations is None:
        revocations = casebook.revocations(case, request)
    return pdp.decide(
        wire.access_request(request), world.snapshot(revocations, modes=modes), world.now
    )


def is_readable(case: Case, world: World) -> bool:
    """Tell whether the request can be read at all, and by that its route."""
    try:
        return bool(wire.access_request(casebook.check_request(case, world)))
    except RequestFault:
        return False


@pytest.fixture(scope="module")
def readable(world: World) -> tuple[Case, ...]:
    return tuple(case for case in casebook.cases() if is_readable(case, world))


def test_the_same_is_decided_and_all_passes_but_what_is_always_enforced(
    readable: tuple[Case, ...], world: World
) -> None:
    seen: set[tuple[Reason, bool]] = set()
    for case in readable:
        enforced, observed = decided(case, world, {}), decided(case, world, ALL)
        for part in ("verdict", "reason", "rules", "bundle", "obligation"):
            assert getattr(observed, part) == getattr(enforced, part), (case.name, part)
        routed = observed.bundle in ALL
        passes = observed.verdict is Verdict.ALLOW or (routed and observed.reason in OBSERVABLE)
        assert observed.passes is passes, case.name
        assert observed.mode is (
            Mode.SHADOW if routed and observed.reason in OBSERVABLE else Mode.ENFORCE
        )
        assert enforced.passes is (enforced.verdict is Verdict.ALLOW)
        seen.add((observed.reason, observed.passes))
    assert {Reason.NO_PRINCIPAL, Reason.MALFORMED_BODY, Reason.ESCALATED_BY_RULE} <= {
        reason for reason, passed in seen if passed
    }
    assert {Reason.REVOKED, Reason.UNKNOWN_BUNDLE} <= {r for r, passed in seen if not passed}
    # A route that cannot be read has no bundle, so none in shadow mode either.
    assert (Reason.MALFORMED_REQUEST, False) in seen


@pytest.mark.parametrize("shadowed", sorted(ALL))
def test_one_bundle_in_shadow_changes_nothing_on_the_routes_of_others(
    shadowed: str, readable: tuple[Case, ...], world: World
) -> None:
    others = 0
    for case in readable:
        found = decided(case, world, {shadowed: Mode.SHADOW})
        if found.bundle != shadowed:
            assert found.mode is Mode.ENFORCE, case.name
            assert found.passes is (case.expect["verdict"] == "allow"), case.name
            others += 1
    assert others


def test_a_bundle_that_is_not_loaded_is_in_no_mode(
    readable: tuple[Case, ...], world: World
) -> None:
    """The loader refuses such a configuration; a snapshot that has it all the same enforces."""
    (case,) = (case for case in readable if case.name == "bundle that is not loaded")
    found = decided(case, world, {"nowhere": Mode.SHADOW})
    assert (found.reason, found.mode, found.passes) == (
        Reason.UNKNOWN_BUNDLE,
        Mode.ENFORCE,
        False,
    )
    spoilt = replace(case, spec={**case.spec, "chain": None})
    assert not decided(spoilt, world, {"nowhere": Mode.SHADOW}).passes


def test_a_revoked_caller_does_not_pass_whatever_else_is_wrong(
    readable: tuple[Case, ...], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could spoil its own request ahead of the stage that finds it revoked."""

    def passing() -> list[str]:
        found = []
        for case in readable:
            principal = decided(case, world, ALL, NOTHING_REVOKED).principal
            if principal is None:
                continue
            mine = Revocations(spiffe_id=frozenset({principal.spiffe_id}))
            if decided(case, world, ALL, mine).passes:
                found.append(case.name)
        return found

    assert passing() == []
    monkeypatch.setattr(pdp, "_enforced_anyway", lambda _trace: None)
    assert passing(), "no case spoils its request, so nothing was shown"


def test_a_revoked_client_of_a_proxy_does_not_pass_by_a_request_that_cannot_be_read(
    readable: tuple[Case, ...], world: World
) -> None:
    """Who is behind the proxy stands in the part that cannot be read: then nobody is observed."""
    (case,) = (case for case in readable if case.name == "no rule allows it")
    peer, client = spiffe_id(case.spec["caller"]), spiffe_id("agent/behind-the-proxy")
    callers = CallerPolicy(trusted_proxies=(SpiffeIdPattern.parse(peer),))
    revoked = Revocations(spiffe_id=frozenset({client}))
    snapshot = world.snapshot(revoked, modes=ALL, callers=callers)
    element = f"By={peer};Hash={'ab' * 32};URI={client}".encode()

    def decided_with(*lines: tuple[str, bytes]) -> Decision:
        message = CheckRequest.FromString(casebook.check_request(case, world))
        headers = message.attributes.request.http.header_map.headers
        for name, value in (("x-forwarded-client-cert", element), *lines):
            headers.add(key=name, raw_value=value)
        return pdp.decide(wire.access_request(message.SerializeToString()), snapshot, world.now)

    assert decided_with().reason is Reason.REVOKED
    spoilt = decided_with(("a2a-version", b"1.0"), ("a2a-version", b"1.0"))
    assert (spoilt.reason, spoilt.mode) == (Reason.DUPLICATE_HEADER, Mode.ENFORCE)
    assert not spoilt.passes


def test_a_revoked_transaction_does_not_pass_where_its_chain_is_proved(
    readable: tuple[Case, ...], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever spoils the request, its chain is looked at."""
    proved = []
    for case in readable:
        request = wire.access_request(casebook.check_request(case, world))
        before = pdp.decide(request, world.snapshot(modes=ALL), world.now)
        if before.chain is not None and before.principal is not None:
            proved.append((case, request, Revocations(txn=frozenset({before.chain.txn}))))

    def passing() -> list[str]:
        return [
            case.name
            for case, request, taken in proved
            if pdp.decide(request, world.snapshot(taken, modes=ALL), world.now).passes
        ]

    assert passing() == []
    monkeypatch.setattr(pdp, "_enforced_anyway", lambda _trace: None)
    assert passing(), "no case spoils its request, so nothing was shown"


def test_nothing_passes_by_revocations_or_trust_too_old_to_decide_by(
    readable: tuple[Case, ...], world: World
) -> None:
    stale = Revocations(good_until=world.now - timedelta(seconds=1))
    for case in readable:
        found = decided(case, world, ALL, stale)
        assert not found.passes, case.name
        assert found.mode is Mode.ENFORCE
