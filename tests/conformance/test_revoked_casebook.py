"""What the casebook lets pass or asks people about, a revocation denies: above every protocol."""

from datetime import UTC, datetime, timedelta

import pytest

from authz_server.core.decision import Decision
from authz_server.core.errors import Reason
from authz_server.core.pdp import decide
from authz_server.core.snapshot import Revocations
from authz_server.servers import wire
from tests.harness import casebook
from tests.harness.casebook import Case
from tests.harness.world import World

PASSING = [case for case in casebook.cases() if case.expect["verdict"] != "deny"]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def decided(case: Case, world: World, revocations: Revocations) -> Decision:
    request = wire.access_request(casebook.check_request(case, world))
    return decide(request, world.snapshot(revocations), world.now)


@pytest.mark.parametrize("case", PASSING, ids=str)
def test_the_caller(case: Case, world: World) -> None:
    passed = decided(case, world, Revocations())
    assert passed.principal is not None
    mine = frozenset({passed.principal.spiffe_id})
    assert decided(case, world, Revocations(spiffe_id=mine)).reason is Reason.REVOKED


@pytest.mark.parametrize("case", PASSING, ids=str)
def test_anyone_in_its_chain(case: Case, world: World) -> None:
    chain = decided(case, world, Revocations()).chain
    if chain is None:
        pytest.skip("acts for itself")
    for revocations in (
        Revocations(subject=frozenset({chain.subject})),
        *(Revocations(spiffe_id=frozenset({actor})) for actor in chain.actors),
    ):
        assert decided(case, world, revocations).reason is Reason.REVOKED


@pytest.mark.parametrize("case", PASSING, ids=str)
def test_revocations_too_old_to_go_by(case: Case, world: World) -> None:
    good_until = world.now + timedelta(seconds=1)
    assert decided(case, world, Revocations(good_until=good_until)).verdict != "deny"
    too_old = Revocations(good_until=world.now)
    assert decided(case, world, too_old).reason is Reason.NOT_READY
    unheard = Revocations(good_until=datetime.min.replace(tzinfo=UTC))
    assert decided(case, world, unheard).reason is Reason.NOT_READY


def test_there_is_a_case_for_every_protocol() -> None:
    assert {case.extensions.get("protocol", "http") for case in PASSING} >= {"http", "grpc", "mcp"}
