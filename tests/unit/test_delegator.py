"""What an agent mints: links the server accepts, and clear refusals where it would not."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from authz_server.agent.delegator import Delegator
from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.agent.signing import algorithm_for
from authz_server.agent.svid import PemSvid, Svid
from authz_server.core.errors import InvalidValueError
from authz_server.core.jose import CompactJws, parse_jwks
from authz_server.demo.authority import TrustDomainAuthority, rsa_key, write_svid
from tests.harness import chains
from tests.harness.chains import (
    ASSISTANT,
    AUTHORITY,
    CRM,
    DETAIL,
    DOMAIN,
    ISSUER,
    MAIL,
    NOW,
    RESEARCH,
    SECOND,
    STS,
    SUBJECT,
    TOOL,
    svid,
    verify,
)


def clock() -> float:
    return NOW.timestamp()


def delegator(source: Svid) -> Delegator:
    return Delegator(source, clock=clock)


def root(**changes: Any) -> str:
    given: dict[str, Any] = {
        "subject": SUBJECT,
        "actor": ASSISTANT,
        "scope": ["crm.read", "crm.export"],
        "hops": 2,
        "details": [DETAIL],
        "purpose": "support-case",
        "now": clock(),
    }
    return ISSUER.issue_root(**{**given, **changes})


def hand_on(received: Sequence[str], by: Svid, **changes: Any) -> str:
    given: dict[str, Any] = {"to": RESEARCH, "audience": [CRM], "scope": ["crm.read"]}
    return delegator(by).link(received[0], received[1:], **{**given, **changes})


def test_a_chain_made_by_agents_verifies() -> None:
    tokens = [root()]
    tokens.append(hand_on(tokens, svid(ASSISTANT), audience=[CRM, MAIL], hops=1))
    less = {**DETAIL, "actions": ["tools/call"]}
    tokens.append(hand_on(tokens, svid(RESEARCH), to=TOOL, details=[less], lifetime_s=60))
    chain = verify(*tokens)
    assert [grant.delegate for grant in chain.grants] == [ASSISTANT, RESEARCH, TOOL]
    assert chain.purpose == "support-case"
    last = chain.grants[-1]
    assert last.details[0]["actions"] == ("tools/call",)
    assert last.expires_at == SECOND + 60
    assert len({grant.jti for grant in chain.grants}) == 3


@pytest.mark.parametrize(
    "key",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        chains.rsa_2048,
    ],
)
def test_every_kind_of_key(key: Callable[[], Any]) -> None:
    token = root()
    signer = AUTHORITY.issue_svid(ASSISTANT, now=NOW, key=key())
    assert len(verify(token, hand_on([token], signer)).grants) == 2


@pytest.mark.parametrize("intermediates", [0, 1])
def test_intermediates_travel_along(intermediates: int) -> None:
    authority = TrustDomainAuthority.create(DOMAIN, intermediates=intermediates, now=NOW)
    token = hand_on([root()], authority.issue_svid(ASSISTANT, now=NOW))
    x5c = CompactJws.parse(token).header["x5c"]
    assert isinstance(x5c, list)
    assert len(x5c) == 1 + intermediates


def test_a_link_ends_with_whatever_ends_first() -> None:
    def expiry(token: str) -> object:
        return CompactJws.parse(token).payload["exp"]

    assert expiry(hand_on([root()], svid(ASSISTANT), lifetime_s=10)) == SECOND + 10
    assert expiry(hand_on([root(lifetime_s=20)], svid(ASSISTANT))) == SECOND + 20
    short = AUTHORITY.issue_svid(ASSISTANT, now=NOW, lifetime=timedelta(seconds=30))
    assert expiry(hand_on([root()], short)) == SECOND + 30


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a scope not received": ({"scope": ["admin"]}, "scope"),
    "no scope": ({"scope": []}, "scope"),
    "no audience": ({"audience": []}, "audience"),
    "to itself": ({"to": ASSISTANT}, "earlier actor"),
    "too many hops": ({"hops": 2}, "hops"),
    "negative hops": ({"hops": -1}, "hops"),
    "no lifetime": ({"lifetime_s": 0}, "end"),
    "details not received": ({"details": [{**DETAIL, "identifier": "x"}]}, "details"),
    "details wider": ({"details": [{**DETAIL, "actions": ["admin"]}]}, "details"),
    "no details": ({"details": []}, "authorization_details"),
    "too much": ({"audience": [f"https://{'a' * 200}{n}" for n in range(20)]}, "4096"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_handed_on(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        hand_on([root()], svid(ASSISTANT), **changes)


def test_an_audience_bounds_the_next_one() -> None:
    tokens = [root()]
    tokens.append(hand_on(tokens, svid(ASSISTANT), hops=1))
    with pytest.raises(InvalidValueError, match="audience"):
        hand_on(tokens, svid(RESEARCH), to=TOOL, audience=[MAIL])


def test_details_of_an_earlier_token_bound_later_ones() -> None:
    tokens = [root(details=None)]
    with pytest.raises(InvalidValueError, match="details"):
        hand_on(tokens, svid(ASSISTANT), details=[DETAIL])


@pytest.mark.parametrize("received", [["x"], ["a.b.c"], ["é"], [""]])
def test_what_is_no_delegation(received: list[str]) -> None:
    with pytest.raises(InvalidValueError, match="received delegation"):
        hand_on(received, svid(ASSISTANT))


def test_a_delegation_to_someone_else() -> None:
    with pytest.raises(InvalidValueError, match="last delegate"):
        hand_on([root()], svid(RESEARCH), to=TOOL)


def test_an_expired_delegation() -> None:
    with pytest.raises(InvalidValueError, match="end"):
        hand_on([root(now=clock() - 400)], svid(ASSISTANT))


def test_prior_actors_of_the_development_issuer() -> None:
    chain = verify(root(prior_actors=[TOOL, RESEARCH]))
    assert chain.prior_actors == (str(TOOL), str(RESEARCH))


@pytest.mark.parametrize("bits", [None, 2048])
def test_the_key_set_of_the_development_issuer(bits: int | None) -> None:
    key = ec.generate_private_key(ec.SECP384R1()) if bits is None else chains.rsa_2048()
    issuer = DevelopmentIssuer(issuer=STS, trust_domain=DOMAIN, key=key, kid="k")
    assert parse_jwks(issuer.jwks().encode()) == {"k": key.public_key()}
    (jwk,) = json.loads(issuer.jwks())["keys"]
    assert "d" not in jwk
    assert jwk["use"] == "sig"
    again = DevelopmentIssuer.parse(issuer.key_pem, issuer=STS, trust_domain=DOMAIN, kid="k")
    assert again.jwks() == issuer.jwks()


def test_keys_an_issuer_cannot_use() -> None:
    key = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    for pem in (b"", b"hello", key):
        with pytest.raises(InvalidValueError):
            DevelopmentIssuer.parse(pem, issuer=STS, trust_domain=DOMAIN)
    for unusable in (ec.generate_private_key(ec.SECP521R1()), rsa_key(1024)):
        with pytest.raises(InvalidValueError):
            algorithm_for(unusable)


def test_an_svid_from_files(tmp_path: Path) -> None:
    paths = write_svid(svid(ASSISTANT), tmp_path)
    assert paths[1].stat().st_mode & 0o777 == 0o600
    source = PemSvid(*paths)
    assert source.svid().spiffe_id == ASSISTANT
    assert source.svid() is source.svid()


def test_renewed_files_are_read_again(tmp_path: Path) -> None:
    source = PemSvid(*write_svid(svid(ASSISTANT), tmp_path))
    before = source.svid()
    renewed = AUTHORITY.issue_svid(ASSISTANT, now=NOW)
    certificates, key = write_svid(renewed, tmp_path, "renewed")
    certificates.replace(tmp_path / "svid.pem")
    assert source.svid() is before, "the key has not followed yet"
    key.replace(tmp_path / "svid.key.pem")
    assert source.svid().leaf == renewed.leaf
    (tmp_path / "svid.pem").unlink()
    assert source.svid().leaf == renewed.leaf, "the last good one serves"


def test_files_that_never_were_an_svid(tmp_path: Path) -> None:
    absent = PemSvid(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InvalidValueError):
        absent.svid()
    ours, theirs = svid(ASSISTANT), svid(RESEARCH)
    for chain_pem, key_pem in (
        (b"", ours.key_pem),
        (ours.cert_chain_pem, b""),
        (ours.cert_chain_pem, theirs.key_pem),
        (ours.key_pem, ours.cert_chain_pem),
    ):
        with pytest.raises(InvalidValueError):
            Svid.parse(chain_pem, key_pem)


def test_a_key_is_never_shown() -> None:
    shown = repr(svid(ASSISTANT)) + str(svid(ASSISTANT))
    assert "key" not in shown.lower()


def test_the_default_clock_is_the_systems() -> None:
    authority = TrustDomainAuthority.create(DOMAIN)
    token = root(now=None)
    link = Delegator(authority.issue_svid(ASSISTANT)).link(
        token, to=RESEARCH, audience=[CRM], scope=["crm.read"]
    )
    trust = replace(chains.TRUST, bundles={DOMAIN: authority.bundle})
    assert len(verify(token, link, now=datetime.now(UTC), trust=trust).grants) == 2
