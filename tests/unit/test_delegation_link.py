"""Links: a valid one, and what one changed fact does to it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from authz_server.core.errors import Reason
from authz_server.demo.authority import TrustDomainAuthority
from tests.harness import chains
from tests.harness.chains import (
    ASSISTANT,
    AUTHORITY,
    CRM,
    DETAIL,
    DOMAIN,
    MAIL,
    NOW,
    PARTNER,
    PARTNER_AUTHORITY,
    POLICY,
    RESEARCH,
    SECOND,
    STRANGER,
    SUBJECT,
    TOOL,
    TRUST,
    TXN,
    link,
    link_claims,
    link_token,
    reason,
    reason_of,
    root_claims,
    root_token,
    svid,
    three_hops,
    verify,
    workload,
)

ROOT = root_token()
FIRST = link(ROOT, by=ASSISTANT, to=RESEARCH, dlg=2, aud=[CRM, MAIL], scope="crm.read tickets.read")


def test_a_valid_link() -> None:
    grant = verify(ROOT, FIRST).grants[1]
    assert (grant.delegator, grant.delegate) == (str(ASSISTANT), RESEARCH)
    assert (grant.subject, grant.txn) == (SUBJECT, TXN)
    assert grant.scope == {"crm.read", "tickets.read"}
    assert grant.audience == {CRM, MAIL}
    assert (grant.issued_at, grant.not_before, grant.expires_at) == (SECOND, SECOND, SECOND + 240)
    assert grant.hops_left == 2
    assert grant.kid is None
    assert grant.proof == f"x509-svid {grant.certificate_sha256}"


def test_details_not_mentioned_are_inherited() -> None:
    root, first = verify(ROOT, FIRST).grants
    assert first.details == root.details != ()


def test_three_hops() -> None:
    grants = verify(*three_hops()).grants
    assert [grant.delegate for grant in grants] == [ASSISTANT, RESEARCH, TOOL]
    assert [grant.hops_left for grant in grants] == [3, 1, 0]


LESS = {**DETAIL, "actions": ["tools/call"]}
M = Reason.MALFORMED_TOKEN
W = Reason.SCOPE_WIDENED

ACCEPTED: Mapping[str, Mapping[str, object]] = {
    "nbf": {"nbf": SECOND},
    "the same scope": {"scope": chains.SCOPE},
    "any audience after a root": {"aud": ["https://anything.example"]},
    "as long as the root": {"exp": SECOND + 300},
    "all hops but one": {"dlg": 2},
    "no dlg": {"dlg": None},
    "the same details": {"authorization_details": [DETAIL]},
    "fewer actions": {"authorization_details": [LESS]},
    "two parts of one detail": {"authorization_details": [DETAIL, LESS]},
    "delegate with its issuer": {"may_act": {"sub": str(RESEARCH), "iss": DOMAIN.uri}},
    "delegate of a partner": {"may_act": {"sub": str(workload("agent/p", PARTNER))}},
    "delegate of a stranger": {"may_act": {"sub": str(workload("agent/s", STRANGER))}},
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted_after_a_root(changes: Mapping[str, object]) -> None:
    assert reason(ROOT, link(ROOT, by=ASSISTANT, to=RESEARCH, **changes)) is None


REFUSED: Mapping[str, tuple[Mapping[str, object], Reason]] = {
    "no iss": ({"iss": None}, M),
    "iss of another": ({"iss": str(RESEARCH)}, Reason.CHAIN_BROKEN),
    "iss in upper case": ({"iss": str(ASSISTANT).upper()}, Reason.CHAIN_BROKEN),
    "no sub": ({"sub": None}, M),
    "another subject": ({"sub": "bob@example.org"}, Reason.CHAIN_BROKEN),
    "no txn": ({"txn": None}, M),
    "another transaction": ({"txn": "other"}, Reason.CHAIN_BROKEN),
    "no prh": ({"prh": None}, M),
    "prh of nothing": ({"prh": "AAAA"}, Reason.CHAIN_BROKEN),
    "no may_act": ({"may_act": None}, M),
    "may_act a string": ({"may_act": str(RESEARCH)}, M),
    "may_act without sub": ({"may_act": {"sub_profile": "ai_agent"}}, M),
    "may_act of a person": ({"may_act": {"sub": "bob@example.org"}}, M),
    "may_act with a restriction": ({"may_act": {"sub": str(RESEARCH), "client_id": "x"}}, M),
    "may_act from elsewhere": (
        {"may_act": {"sub": str(RESEARCH), "iss": PARTNER.uri}},
        Reason.CHAIN_BROKEN,
    ),
    "to itself": ({"may_act": {"sub": str(ASSISTANT)}}, Reason.CHAIN_CYCLE),
    "no aud": ({"aud": None}, M),
    "aud a string": ({"aud": CRM}, M),
    "aud empty": ({"aud": []}, M),
    "aud with a number": ({"aud": [CRM, 1]}, M),
    "aud with an empty string": ({"aud": [""]}, M),
    "aud repeated": ({"aud": [CRM, CRM]}, M),
    "33 audiences": ({"aud": [f"https://{n}" for n in range(33)]}, M),
    "no scope": ({"scope": None}, M),
    "scope empty": ({"scope": ""}, M),
    "another scope": ({"scope": "crm.read admin"}, W),
    "scope in upper case": ({"scope": "CRM.READ"}, W),
    "no exp": ({"exp": None}, M),
    "exp a string": ({"exp": str(SECOND + 60)}, M),
    "exp a float": ({"exp": SECOND + 60.0}, M),
    "exp before iat": ({"exp": SECOND - 1}, M),
    "outlives the root": ({"exp": SECOND + 301}, Reason.LIFETIME_TOO_LONG),
    "lives over 15 minutes": ({"iat": SECOND - 700}, Reason.LIFETIME_TOO_LONG),
    "no iat": ({"iat": None}, M),
    "iat true": ({"iat": True}, M),
    "issued in the future": ({"iat": SECOND + 31}, Reason.NOT_YET_VALID),
    "counts in the future": ({"nbf": SECOND + 31}, Reason.NOT_YET_VALID),
    "expired": ({"iat": SECOND - 90, "exp": SECOND - 30}, Reason.EXPIRED),
    "no jti": ({"jti": None}, M),
    "all hops": ({"dlg": 3}, Reason.CHAIN_TOO_DEEP),
    "dlg true": ({"dlg": True}, M),
    "dlg negative": ({"dlg": -1}, M),
    "details empty": ({"authorization_details": []}, M),
    "another action": (
        {"authorization_details": [{**DETAIL, "actions": ["tools/call", "admin"]}]},
        W,
    ),
    "another type": ({"authorization_details": [{**DETAIL, "type": "mcp_resource"}]}, W),
    "an unknown claim": ({"only_on": "weekdays"}, M),
    "a key to prove": ({"cnf": {"jkt": "x"}}, M),
    "a root's claims": ({"act": {"sub": str(ASSISTANT)}}, M),
}


@pytest.mark.parametrize(("changes", "expected"), REFUSED.values(), ids=REFUSED)
def test_refused_after_a_root(changes: Mapping[str, object], expected: Reason) -> None:
    claims = link_claims(ROOT, by=ASSISTANT, to=RESEARCH, **changes)
    with_lifetime = replace(POLICY, link_lifetime_s_max=900)
    token = link_token(claims, svid(ASSISTANT))
    assert reason(ROOT, token, policy=with_lifetime) is expected


# After a link, what was free after a root is bounded too.
AFTER_LINK: Mapping[str, tuple[Mapping[str, object], Reason | None]] = {
    "one of two audiences": ({"aud": [MAIL]}, None),
    "an audience more": ({"aud": [CRM, "https://other.example"]}, W),
    "the trust domain as audience": ({"aud": [DOMAIN.uri]}, W),
    "a scope the root has, the link has not": ({"scope": "crm.export"}, W),
    "outlives the link, not the root": ({"exp": SECOND + 241}, Reason.LIFETIME_TOO_LONG),
    "as many hops as the link": ({"dlg": 2}, Reason.CHAIN_TOO_DEEP),
    "one hop less": ({"dlg": 1}, None),
    "back to the first agent": ({"may_act": {"sub": str(ASSISTANT)}}, Reason.CHAIN_CYCLE),
    "to itself": ({"may_act": {"sub": str(RESEARCH)}}, Reason.CHAIN_CYCLE),
}


@pytest.mark.parametrize(("changes", "expected"), AFTER_LINK.values(), ids=AFTER_LINK)
def test_after_a_link(changes: Mapping[str, object], expected: Reason | None) -> None:
    assert reason(ROOT, FIRST, link(FIRST, by=RESEARCH, to=TOOL, **changes)) is expected


HEADERS: Mapping[str, tuple[Mapping[str, Any], Reason]] = {
    "no x5c": ({"x5c": None}, Reason.BAD_HEADER),
    "x5c empty": ({"x5c": []}, Reason.BAD_HEADER),
    "x5c a string": ({"x5c": "AAAA"}, Reason.BAD_HEADER),
    "kid beside x5c": ({"kid": "sts-1"}, Reason.BAD_HEADER),
    "kid instead of x5c": ({"kid": "sts-1", "x5c": None}, Reason.BAD_HEADER),
    "typ of a root": ({"typ": "txntoken+jwt"}, Reason.BAD_HEADER),
    "no typ": ({"typ": None}, Reason.BAD_HEADER),
    "jku": ({"jku": "https://evil.example"}, Reason.BAD_HEADER),
    "crit": ({"crit": ["exp"]}, Reason.BAD_HEADER),
}


@pytest.mark.parametrize(("header", "expected"), HEADERS.values(), ids=HEADERS)
def test_refused_header(header: Mapping[str, Any], expected: Reason) -> None:
    claims = link_claims(ROOT, by=ASSISTANT, to=RESEARCH)
    assert reason(ROOT, link_token(claims, svid(ASSISTANT), **header)) is expected


CLAIMS = link_claims(ROOT, by=ASSISTANT, to=RESEARCH)


def test_signed_by_another_workload() -> None:
    assert reason(ROOT, link_token(CLAIMS, svid(RESEARCH))) is Reason.CHAIN_BROKEN


def test_certificate_of_one_key_of_another() -> None:
    mixed = replace(svid(ASSISTANT), key=svid(RESEARCH).key)
    assert reason(ROOT, link_token(CLAIMS, mixed)) is Reason.BAD_SIGNATURE


def test_a_partners_authority_for_our_id() -> None:
    forged = PARTNER_AUTHORITY.issue_svid(ASSISTANT, now=NOW)
    assert reason(ROOT, link_token(CLAIMS, forged)) is Reason.UNKNOWN_KEY


def test_a_partner_delegates_for_itself() -> None:
    partner = workload("agent/p", PARTNER)
    act = {"iss": PARTNER.uri, "sub": str(partner)}
    root = root_token(root_claims(act=act, req_wl=str(partner)))
    token = link(root, by=partner, to=RESEARCH)
    assert verify(root, token).grants[1].delegator == str(partner)
    ours_only = replace(POLICY, delegator_trust_domains=frozenset({DOMAIN}))
    assert reason(root, token, policy=ours_only) is Reason.UNKNOWN_TRUST_DOMAIN
    without_bundle = replace(TRUST, bundles={DOMAIN: AUTHORITY.bundle})
    assert reason_of(lambda: verify(root, token, trust=without_bundle)) is (
        Reason.UNKNOWN_TRUST_DOMAIN
    )


def test_a_renewed_svid_of_the_same_workload() -> None:
    renewed = AUTHORITY.issue_svid(ASSISTANT, now=NOW, key=ec.generate_private_key(ec.SECP384R1()))
    assert reason(ROOT, link_token(CLAIMS, renewed)) is None
    with_rsa = AUTHORITY.issue_svid(ASSISTANT, now=NOW, key=chains.rsa_2048())
    assert reason(ROOT, link_token(CLAIMS, with_rsa)) is None
    assert reason(ROOT, link_token(CLAIMS, with_rsa, alg="RS256")) is Reason.BAD_HEADER


def test_through_an_intermediate() -> None:
    authority = TrustDomainAuthority.create(DOMAIN, intermediates=1, now=NOW)
    trust = replace(TRUST, bundles={DOMAIN: authority.bundle})
    token = link_token(CLAIMS, authority.issue_svid(ASSISTANT, now=NOW))
    assert len(verify(ROOT, token, trust=trust).grants) == 2


def test_a_link_may_not_outlive_its_signers_certificate() -> None:
    short = AUTHORITY.issue_svid(ASSISTANT, now=NOW, lifetime=timedelta(seconds=100))
    fitting = link_claims(ROOT, by=ASSISTANT, to=RESEARCH, exp=SECOND + 100)
    assert reason(ROOT, link_token(fitting, short)) is None
    longer = link_claims(ROOT, by=ASSISTANT, to=RESEARCH, exp=SECOND + 101)
    assert reason(ROOT, link_token(longer, short)) is Reason.LIFETIME_TOO_LONG


def test_an_expired_signer() -> None:
    old = AUTHORITY.issue_svid(ASSISTANT, now=NOW - timedelta(hours=2), lifetime=timedelta(hours=1))
    assert reason(ROOT, link_token(CLAIMS, old)) is Reason.EXPIRED


OTHER_ROOT = root_token(root_claims(jti="root-2"))
OTHER_FIRST = link(OTHER_ROOT, by=ASSISTANT, to=RESEARCH, dlg=2)
SECOND_LINK = link(FIRST, by=RESEARCH, to=TOOL, dlg=1)
THIRD_LINK = link(SECOND_LINK, by=TOOL, to=workload("service/data"))

# Delegation graphs: which tokens are presented in which order, and what becomes of it.
GRAPHS: Mapping[str, tuple[Sequence[str], Reason | None]] = {
    "as minted": ([ROOT, FIRST, SECOND_LINK, THIRD_LINK], None),
    "last links stripped": ([ROOT, FIRST], None),  # bind refuses the caller
    "a link cut out": ([ROOT, SECOND_LINK], Reason.CHAIN_BROKEN),
    "a middle link cut out": ([ROOT, FIRST, THIRD_LINK], Reason.CHAIN_BROKEN),
    "two links swapped": ([ROOT, SECOND_LINK, FIRST], Reason.CHAIN_BROKEN),
    "a link twice": ([ROOT, FIRST, FIRST], Reason.CHAIN_BROKEN),
    "spliced from another chain": ([ROOT, OTHER_FIRST], Reason.CHAIN_BROKEN),
    "spliced below a link": ([OTHER_ROOT, OTHER_FIRST, SECOND_LINK], Reason.CHAIN_BROKEN),
    "moved under another root": ([OTHER_ROOT, FIRST], Reason.CHAIN_BROKEN),
    "a root as a link": ([ROOT, ROOT], Reason.BAD_HEADER),
    "a link as the root": ([FIRST], Reason.UNKNOWN_ISSUER),
    "root renewed, links kept": (
        [root_token(root_claims(exp=SECOND + 299)), FIRST],
        Reason.CHAIN_BROKEN,
    ),
}


@pytest.mark.parametrize(("tokens", "expected"), GRAPHS.values(), ids=GRAPHS)
def test_graphs(tokens: Sequence[str], expected: Reason | None) -> None:
    assert reason(*tokens) is expected


def test_no_hops_means_no_links() -> None:
    for dlg in (None, 0):
        root = root_token(root_claims(dlg=dlg))
        assert reason(root, link(root, by=ASSISTANT, to=RESEARCH)) is Reason.CHAIN_TOO_DEEP


def test_five_actors_and_no_more() -> None:
    root = root_token(root_claims(dlg=9))
    tokens, holder = [root], ASSISTANT
    for number in range(4):
        delegate = workload(f"agent/n{number}")
        tokens.append(link(tokens[-1], by=holder, to=delegate, dlg=8 - number))
        holder = delegate
    assert reason(*tokens) is None
    tokens.append(link(tokens[-1], by=holder, to=TOOL, dlg=0))
    assert reason(*tokens) is Reason.CHAIN_TOO_DEEP


def test_prior_actors_count_and_may_not_return() -> None:
    before = {"iss": DOMAIN.uri, "sub": str(RESEARCH)}
    act = {"iss": DOMAIN.uri, "sub": str(ASSISTANT), "act": before}
    root = root_token(root_claims(act=act))
    assert reason(root, link(root, by=ASSISTANT, to=TOOL)) is None
    assert reason(root, link(root, by=ASSISTANT, to=RESEARCH)) is Reason.CHAIN_CYCLE
    narrow = replace(POLICY, actors_max=2)
    assert reason(root, policy=narrow) is None
    assert reason(root, link(root, by=ASSISTANT, to=TOOL), policy=narrow) is Reason.CHAIN_TOO_DEEP


def test_an_operator_may_shorten_links() -> None:
    short = replace(POLICY, link_lifetime_s_max=239)
    assert reason(ROOT, FIRST, policy=short) is Reason.LIFETIME_TOO_LONG
