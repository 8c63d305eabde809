"""Who may present a chain where, until when, and what that proves."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

import pytest

from authz_server.core.chain import BoundChain, VerifiedChain
from authz_server.core.delegation import bind, check_times
from authz_server.core.errors import Reason
from authz_server.core.spiffe import SpiffeId
from tests.harness.chains import (
    ASSISTANT,
    AUTHORITY,
    CRM,
    DOMAIN,
    MAIL,
    NOW,
    POLICY,
    RESEARCH,
    SECOND,
    TOOL,
    link_claims,
    link_token,
    reason,
    reason_of,
    root_claims,
    root_token,
    three_hops,
    verify,
    workload,
)

STRANGER = workload("agent/stranger")
ROOT, FIRST, SECOND_LINK = three_hops()
CHAINS = {1: verify(ROOT), 2: verify(ROOT, FIRST), 3: verify(ROOT, FIRST, SECOND_LINK)}


def bound(
    tokens: int, caller: SpiffeId, workload_id: SpiffeId | None = None, audience: str | None = None
) -> BoundChain:
    return bind(CHAINS[tokens], caller=caller, workload_id=workload_id, audience=audience)


ALLOWED: Mapping[str, tuple[int, SpiffeId, SpiffeId | None, str | None, str, int]] = {
    # tokens, caller, workload behind the route, its audience -> mode, index of the authority
    "first agent": (1, ASSISTANT, None, None, "exercise", 0),
    "first agent at any audience": (1, ASSISTANT, TOOL, MAIL, "exercise", 0),
    "second agent": (2, RESEARCH, None, CRM, "exercise", 1),
    "second agent elsewhere": (2, RESEARCH, TOOL, MAIL, "exercise", 1),
    "tool that calls on": (3, TOOL, None, CRM, "exercise", 2),
    "first agent hands to the second": (2, ASSISTANT, RESEARCH, None, "handoff", 0),
    "second agent hands to the tool": (3, RESEARCH, TOOL, CRM, "handoff", 1),
    "handoff at an audience the last link lacks": (3, RESEARCH, TOOL, MAIL, "handoff", 1),
}


@pytest.mark.parametrize(
    ("tokens", "caller", "workload_id", "audience", "mode", "authority"),
    ALLOWED.values(),
    ids=ALLOWED,
)
def test_presentations(
    tokens: int,
    caller: SpiffeId,
    workload_id: SpiffeId | None,
    audience: str | None,
    mode: str,
    authority: int,
) -> None:
    found = bound(tokens, caller, workload_id, audience)
    assert found.mode == mode
    assert found.authority is CHAINS[tokens].grants[authority]
    assert found.actors == (ASSISTANT, RESEARCH, TOOL)[: authority + 1]
    assert found.actors[-1] == caller
    assert found.assurance == "hop_signed"


REFUSED: Mapping[str, tuple[int, SpiffeId, SpiffeId | None, str | None, Reason]] = {
    "a thief with a root": (1, STRANGER, None, CRM, Reason.LEAF_MISMATCH),
    "a thief with a chain": (3, STRANGER, TOOL, CRM, Reason.LEAF_MISMATCH),
    "a tool that forwards its caller's chain": (2, TOOL, None, CRM, Reason.LEAF_MISMATCH),
    "a link stripped by its delegate": (1, RESEARCH, None, CRM, Reason.LEAF_MISMATCH),
    "two links stripped": (1, TOOL, None, CRM, Reason.LEAF_MISMATCH),
    "an earlier actor with the whole chain": (3, ASSISTANT, TOOL, CRM, Reason.LEAF_MISMATCH),
    "handoff to another workload": (2, ASSISTANT, TOOL, CRM, Reason.LEAF_MISMATCH),
    "handoff where nothing is said to be behind": (2, ASSISTANT, None, CRM, Reason.LEAF_MISMATCH),
    "the delegate of a root is no handoff": (1, STRANGER, ASSISTANT, CRM, Reason.LEAF_MISMATCH),
    "a link at another audience": (3, TOOL, None, MAIL, Reason.WRONG_AUDIENCE),
    "a link where no audience is set": (2, RESEARCH, None, None, Reason.WRONG_AUDIENCE),
    "a link at the trust domain": (2, RESEARCH, None, DOMAIN.uri, Reason.WRONG_AUDIENCE),
    "an audience with a slash more": (2, RESEARCH, None, CRM + "/", Reason.WRONG_AUDIENCE),
    "handoff of a link elsewhere": (3, RESEARCH, TOOL, "https://x", Reason.WRONG_AUDIENCE),
    "handoff of a link where no audience is set": (3, RESEARCH, TOOL, None, Reason.WRONG_AUDIENCE),
}


@pytest.mark.parametrize(
    ("tokens", "caller", "workload_id", "audience", "expected"), REFUSED.values(), ids=REFUSED
)
def test_what_is_no_presentation(
    tokens: int,
    caller: SpiffeId,
    workload_id: SpiffeId | None,
    audience: str | None,
    expected: Reason,
) -> None:
    assert reason_of(lambda: bound(tokens, caller, workload_id, audience)) is expected


@pytest.mark.parametrize("links", [(), (FIRST,)])
def test_a_prior_actor_lowers_the_assurance(links: Sequence[str]) -> None:
    before = {"iss": DOMAIN.uri, "sub": str(STRANGER)}
    act = {"iss": DOMAIN.uri, "sub": str(ASSISTANT), "act": before}
    root = root_token(root_claims(act=act))
    tokens = [root]
    caller = ASSISTANT
    if links:
        claims = link_claims(root, by=ASSISTANT, to=RESEARCH)
        tokens.append(link_token(claims, AUTHORITY.issue_svid(ASSISTANT, now=NOW)))
        caller = RESEARCH
    found = bind(verify(*tokens), caller=caller, workload_id=None, audience=CRM)
    assert found.assurance == "sts"
    assert found.actors[0] == ASSISTANT, "prior actors are told, not counted"
    assert found.chain.prior_actors == (str(STRANGER),)


def at(second: float, chain: VerifiedChain = CHAINS[3]) -> Reason | None:
    """Return what becomes of a chain at a second after it was issued."""
    now = NOW + timedelta(seconds=second)
    return reason_of(lambda: check_times(chain, POLICY, now))


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (-31, Reason.NOT_YET_VALID),
        (-30.001, Reason.NOT_YET_VALID),
        (-30, None),
        (0, None),
        (269.999, None),
        (270, Reason.EXPIRED),  # the links end at 240, and the leeway is 30
        (300, Reason.EXPIRED),
        (10**9, Reason.EXPIRED),
    ],
)
def test_times_again(second: float, expected: Reason | None) -> None:
    assert at(second) is expected
    assert reason(ROOT, FIRST, SECOND_LINK, now=NOW + timedelta(seconds=second)) is expected


def test_the_leeway_does_not_extend_a_certificate() -> None:
    short = AUTHORITY.issue_svid(ASSISTANT, now=NOW, lifetime=timedelta(seconds=100))
    claims = link_claims(ROOT, by=ASSISTANT, to=RESEARCH, exp=SECOND + 100)
    chain = verify(ROOT, link_token(claims, short))
    for second, expected in ((99, None), (100, Reason.EXPIRED), (129, Reason.EXPIRED)):
        assert at(second, chain) is expected


def test_a_certificate_that_starts_later_cannot_be_used_before() -> None:
    fresh = AUTHORITY.issue_svid(ASSISTANT, now=NOW + timedelta(seconds=50))  # starts at -10
    claims = link_claims(ROOT, by=ASSISTANT, to=RESEARCH)
    chain = verify(ROOT, link_token(claims, fresh))
    for second, expected in ((-10, None), (-11, Reason.NOT_YET_VALID)):
        assert at(second, chain) is expected
