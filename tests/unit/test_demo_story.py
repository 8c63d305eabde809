"""The story covers what it must, and its parts fit together."""

import pytest

from authz_server.core.errors import Reason
from authz_server.demo.cast import plan
from authz_server.demo.run import SHIPPED_BUNDLES
from authz_server.demo.steps import Answer, Ask, EditPolicy, Expected, HandOver
from authz_server.demo.story import STORY

STEPS = [step for steps in STORY.values() for step in steps]
ASKS = [step for step in STEPS if isinstance(step, Ask)]
EXPECTED: list[Expected] = [step.expect for step in ASKS]
for _step in STEPS:
    if isinstance(_step, HandOver):
        EXPECTED += [_step.expect, *_step.then]


def test_every_misuse_has_its_reason() -> None:
    assert {expected.reason for expected in EXPECTED} >= {
        Reason.OK,
        Reason.DELEGATION_REQUIRED,
        Reason.LEAF_MISMATCH,
        Reason.WRONG_AUDIENCE,
        Reason.SCOPE_WIDENED,
        Reason.UNREGISTERED_IDENTITY,
        Reason.MALFORMED_TOKEN,
        Reason.NON_CANONICAL_PATH,
        Reason.ESCALATED_BY_RULE,
        Reason.DENIED_BY_RULE,
    }


@pytest.mark.parametrize("expected", EXPECTED)
def test_only_what_is_allowed_reaches_a_service(expected: Expected) -> None:
    assert expected.reached == (expected.verdict == "allow")


def test_answers_refer_to_an_earlier_escalation() -> None:
    for answer in (step for step in STEPS if isinstance(step, Answer)):
        asked = [ask for ask in ASKS if ask.name == answer.to]
        assert len(asked) == 1
        assert asked[0].expect.verdict == "escalate"
        assert STEPS.index(asked[0]) < STEPS.index(answer)


def test_somebody_is_refused_and_somebody_is_not() -> None:
    assert {step.accepted for step in STEPS if isinstance(step, Answer)} == {True, False}


def test_every_edit_is_taken_back() -> None:
    edited: dict[str, int] = {}
    for edit in (step for step in STEPS if isinstance(step, EditPolicy)):
        edited[edit.bundle] = len(edit.append)
    assert edited
    assert not any(edited.values())


def test_two_decisions_are_explained() -> None:
    assert sum(step.explain for step in STEPS if isinstance(step, Ask | HandOver)) == 2


def test_hosts_names_and_ids_are_unique() -> None:
    mesh = plan(SHIPPED_BUNDLES)
    for values in (
        [service.name for service in mesh.services],
        [service.host for service in mesh.services],
        [party.id for party in mesh.parties],
    ):
        assert len(set(values)) == len(values)
    called = {ask.call.host for ask in ASKS}
    assert called <= {service.host for service in mesh.services}


def test_grants_name_workloads_of_the_trust_domain() -> None:
    mesh = plan(SHIPPED_BUNDLES)
    for ask in ASKS:
        mesh.spiffe_id(ask.actor)
        if ask.grant is not None:
            mesh.spiffe_id(ask.grant.agent)
            assert ask.grant.subject
