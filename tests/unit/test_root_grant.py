"""Root grants: a valid one, and what one changed fact does to it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from authz_server.agent.signing import sign
from authz_server.core.chain import Grant
from authz_server.core.errors import Reason
from authz_server.core.jose import encode_base64url
from authz_server.core.trust import Issuer, TrustMaterial
from tests.harness import chains
from tests.harness.chains import (
    ASSISTANT,
    DETAIL,
    DOMAIN,
    POLICY,
    SCOPE,
    SECOND,
    STS,
    SUBJECT,
    TRUST,
    TXN,
    reason,
    reason_of,
    root_claims,
    root_token,
    verify,
    workload,
)


def test_a_valid_root() -> None:
    token = root_token()
    chain = verify(token)
    root = chain.root
    assert isinstance(root, Grant)
    assert (root.delegator, root.delegate, root.subject) == (STS, ASSISTANT, SUBJECT)
    assert (root.txn, root.jti, root.kid) == (TXN, "root-1", "sts-1")
    assert root.scope == frozenset(SCOPE.split())
    assert root.audience == {DOMAIN.uri}
    assert (root.issued_at, root.not_before, root.expires_at) == (SECOND, SECOND, SECOND + 300)
    assert root.hops_left == 3
    assert root.proof == "issuer-key sts-1"
    assert root.certificate_sha256 is None
    assert (chain.subject_issuer, chain.purpose, chain.prior_actors) == (STS, "support-case", ())


def test_optional_claims_may_be_absent() -> None:
    absent = {"jti": None, "tctx": None, "dlg": None, "authorization_details": None}
    chain = verify(root_token(root_claims(**absent)))
    assert (chain.root.jti, chain.purpose, chain.root.hops_left) == (None, None, 0)
    assert chain.root.details == ()


def test_details_cannot_be_changed() -> None:
    (detail,) = verify(root_token()).root.details
    assert detail["actions"] == ("tools/call", "tools/list")
    with pytest.raises(TypeError):
        detail["type"] = "x"  # type: ignore[index]
    nested = root_token(root_claims(authorization_details=[{"type": "x", "o": {"a": [1]}}]))
    inner = verify(nested).root.details[0]["o"]
    assert inner == {"a": (1,)}
    assert isinstance(inner, MappingProxyType)


def act(*actors: Mapping[str, object]) -> dict[str, object]:
    """Nest actors, current one first."""
    nested: dict[str, object] = {}
    for actor in reversed(actors):
        nested = {**actor, **({"act": nested} if nested else {})}
    return nested


ME = {"iss": DOMAIN.uri, "sub": str(ASSISTANT)}


def prior(number: int) -> dict[str, object]:
    return {"iss": DOMAIN.uri, "sub": f"{DOMAIN.uri}/agent/prior-{number}"}


ACCEPTED: Mapping[str, Mapping[str, object]] = {
    "audience as a list of one": {"aud": [DOMAIN.uri]},
    "nbf equal to iat": {"nbf": SECOND},
    "iat within the leeway": {"iat": SECOND + 30, "exp": SECOND + 60},
    "the longest lifetime": {"exp": SECOND + 300},
    "actor named by the issuer": {"act": ME | {"iss": STS}},
    "subject is a workload": {"sub": f"{DOMAIN.uri}/service/batch"},
    "subject not ASCII": {"sub": "zo\u00eb@example.org"},
    "unknown claims": {"rctx": {"amr": ["hwk"]}, "acr": 1},
    "four prior actors": {"act": act(ME, *(prior(n) for n in range(4)))},
    "one scope": {"scope": "crm.read"},
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(changes: Mapping[str, object]) -> None:
    assert reason(root_token(root_claims(**changes))) is None


M = Reason.MALFORMED_TOKEN
REFUSED: Mapping[str, tuple[Mapping[str, object], Reason]] = {
    "no iss": ({"iss": None}, M),
    "iss a list": ({"iss": [STS]}, M),
    "unknown issuer": ({"iss": "https://evil.example"}, Reason.UNKNOWN_ISSUER),
    "issuer with a slash": ({"iss": STS + "/"}, Reason.UNKNOWN_ISSUER),
    "issuer in upper case": ({"iss": STS.upper()}, Reason.UNKNOWN_ISSUER),
    "no aud": ({"aud": None}, Reason.WRONG_AUDIENCE),
    "aud empty": ({"aud": []}, Reason.WRONG_AUDIENCE),
    "aud of another domain": ({"aud": "spiffe://partner.example"}, Reason.WRONG_AUDIENCE),
    "aud with a stranger": ({"aud": [DOMAIN.uri, "https://other"]}, Reason.WRONG_AUDIENCE),
    "aud twice": ({"aud": [DOMAIN.uri, DOMAIN.uri]}, Reason.WRONG_AUDIENCE),
    "aud without scheme": ({"aud": "td.example"}, Reason.WRONG_AUDIENCE),
    "aud a number": ({"aud": 1}, Reason.WRONG_AUDIENCE),
    "no exp": ({"exp": None}, M),
    "exp a string": ({"exp": str(SECOND + 60)}, M),
    "exp a float": ({"exp": SECOND + 60.5}, M),
    "exp a whole float": ({"exp": float(SECOND + 60)}, M),
    "exp true": ({"exp": True}, M),
    "exp negative": ({"exp": -1}, M),
    "exp 10^30": ({"exp": 10**30}, M),
    "exp in year 10000": ({"exp": 253_402_300_800}, M),
    "exp in year 9999": ({"exp": 253_402_300_799}, Reason.LIFETIME_TOO_LONG),
    "exp equal to iat": ({"exp": SECOND}, M),
    "exp before iat": ({"exp": SECOND - 1}, M),
    "a second too long": ({"exp": SECOND + 301}, Reason.LIFETIME_TOO_LONG),
    "expired": ({"iat": SECOND - 100, "exp": SECOND - 30}, Reason.EXPIRED),
    "no iat": ({"iat": None}, M),
    "iat a string": ({"iat": "1"}, M),
    "iat false": ({"iat": False}, M),
    "iat beyond the leeway": ({"iat": SECOND + 31}, Reason.NOT_YET_VALID),
    "nbf beyond the leeway": ({"nbf": SECOND + 31}, Reason.NOT_YET_VALID),
    "nbf a string": ({"nbf": "1"}, M),
    "no txn": ({"txn": None}, M),
    "empty txn": ({"txn": ""}, M),
    "txn a number": ({"txn": 1}, M),
    "no sub": ({"sub": None}, M),
    "sub empty": ({"sub": ""}, M),
    "sub with a newline": ({"sub": "alice\nadmin"}, M),
    "sub with an escape sequence": ({"sub": "\x1b[2Jalice"}, M),
    "sub with a direction override": ({"sub": "alice\u202enimda"}, M),
    "sub over 1024 characters": ({"sub": "a" * 1025}, M),
    "sub a list": ({"sub": [SUBJECT]}, M),
    "no scope": ({"scope": None}, M),
    "scope empty": ({"scope": ""}, M),
    "scope a list": ({"scope": ["crm.read"]}, M),
    "scope with two blanks": ({"scope": "a  b"}, M),
    "scope with a leading blank": ({"scope": " a"}, M),
    "scope with a tab": ({"scope": "a\tb"}, M),
    "scope with a quote": ({"scope": 'a"b'}, M),
    "scope with a backslash": ({"scope": "a\\b"}, M),
    "scope not ASCII": ({"scope": "\u00e4"}, M),
    "129 scopes": ({"scope": " ".join(f"s{n}" for n in range(129))}, M),
    "no req_wl": ({"req_wl": None}, M),
    "req_wl of another": ({"req_wl": str(workload("agent/x"))}, Reason.CHAIN_BROKEN),
    "no act": ({"act": None}, M),
    "act a string": ({"act": str(ASSISTANT)}, M),
    "act without iss": ({"act": {"sub": str(ASSISTANT)}}, M),
    "act without sub": ({"act": {"iss": DOMAIN.uri}}, M),
    "act of a person": ({"act": ME | {"sub": "bob@example.org"}}, M),
    "act with a trailing slash": ({"act": ME | {"sub": f"{ASSISTANT}/"}}, M),
    "act from a foreign issuer": ({"act": ME | {"iss": "https://evil"}}, Reason.CHAIN_BROKEN),
    "act with a key to prove": ({"act": ME | {"cnf": {"jkt": "x"}}}, M),
    "a key to prove": ({"cnf": {"x5t#S256": "x"}}, M),
    "five prior actors": (
        {"act": act(ME, *(prior(n) for n in range(5)))},
        Reason.CHAIN_TOO_DEEP,
    ),
    "an actor is its own prior": ({"act": act(ME, ME)}, Reason.CHAIN_CYCLE),
    "a prior actor twice": ({"act": act(ME, prior(1), prior(1))}, Reason.CHAIN_CYCLE),
    "a prior actor without iss": ({"act": act(ME, {"sub": "x"})}, M),
    "a prior actor without sub": ({"act": act(ME, {"iss": "x"})}, M),
    "a prior actor that is a string": ({"act": ME | {"act": "x"}}, M),
    "an empty prior actor": ({"act": ME | {"act": {}}}, M),
    "dlg negative": ({"dlg": -1}, M),
    "dlg true": ({"dlg": True}, M),
    "dlg a string": ({"dlg": "1"}, M),
    "dlg a float": ({"dlg": 1.5}, M),
    "details an object": ({"authorization_details": DETAIL}, M),
    "details empty": ({"authorization_details": []}, M),
    "details with a string": ({"authorization_details": ["mcp_tool"]}, M),
    "details without type": ({"authorization_details": [{"actions": ["x"]}]}, M),
    "details with a type that is a number": ({"authorization_details": [{"type": 1}]}, M),
    "33 details": ({"authorization_details": [{"type": "x"}] * 33}, M),
    "tctx a string": ({"tctx": "support"}, M),
    "purpose a number": ({"tctx": {"purpose": 1}}, M),
    "jti a number": ({"jti": 1}, M),
    "jti empty": ({"jti": ""}, M),
}


@pytest.mark.parametrize(("changes", "expected"), REFUSED.values(), ids=REFUSED)
def test_refused(changes: Mapping[str, object], expected: Reason) -> None:
    assert reason(root_token(root_claims(**changes))) is expected


HEADERS: Mapping[str, tuple[Mapping[str, Any], Reason]] = {
    "no kid": ({"kid": None}, Reason.BAD_HEADER),
    "kid a number": ({"kid": 1}, Reason.BAD_HEADER),
    "kid a list": ({"kid": ["sts-1"]}, Reason.BAD_HEADER),
    "unknown kid": ({"kid": "sts-2"}, Reason.UNKNOWN_KEY),
    "kid as a path": ({"kid": "../../dev/null"}, Reason.UNKNOWN_KEY),
    "kid as SQL": ({"kid": "' OR 1=1"}, Reason.UNKNOWN_KEY),
    "kid empty": ({"kid": ""}, Reason.UNKNOWN_KEY),
    "no typ": ({"typ": None}, Reason.BAD_HEADER),
    "typ of an access token": ({"typ": "at+jwt"}, Reason.BAD_HEADER),
    "typ of a link": ({"typ": "delegation-link+jwt"}, Reason.BAD_HEADER),
    "typ JWT": ({"typ": "JWT"}, Reason.BAD_HEADER),
    "jku": ({"jku": "https://evil.example/jwks.json"}, Reason.BAD_HEADER),
    "jwk": ({"jwk": {"kty": "EC"}}, Reason.BAD_HEADER),
    "x5u": ({"x5u": "https://evil.example/cert.pem"}, Reason.BAD_HEADER),
    "x5c": ({"x5c": ["AAAA"]}, Reason.BAD_HEADER),
    "crit and b64": ({"crit": ["b64"], "b64": False}, Reason.BAD_HEADER),
    "zip": ({"zip": "DEF"}, Reason.BAD_HEADER),
}


@pytest.mark.parametrize(("header", "expected"), HEADERS.values(), ids=HEADERS)
def test_refused_header(header: Mapping[str, Any], expected: Reason) -> None:
    assert reason(root_token(**header)) is expected


def test_another_key_under_a_known_kid() -> None:
    assert reason(root_token(key=ec.generate_private_key(ec.SECP256R1()))) is Reason.BAD_SIGNATURE


def test_an_algorithm_the_issuer_does_not_use() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    assert reason(root_token(key=key)) is Reason.BAD_HEADER


@pytest.mark.parametrize("algorithm", ["none", "HS256"])
def test_unsigned_and_symmetric(algorithm: str) -> None:
    header = {"alg": algorithm, "typ": "txntoken+jwt", "kid": "sts-1"}
    parts = [encode_base64url(json.dumps(part).encode()) for part in (header, root_claims())]
    assert reason(".".join([*parts, "AAAA"])) is Reason.BAD_HEADER
    assert reason(".".join([*parts, ""])) is M


def issuer(name: str, kid: str, key: ec.EllipticCurvePrivateKey, *algorithms: str) -> Issuer:
    return Issuer(
        issuer=name,
        algorithms=frozenset(algorithms),
        max_lifetime_s=300,
        keys={kid: key.public_key()},
    )


def test_a_key_of_one_issuer_does_not_speak_for_another() -> None:
    other_key = ec.generate_private_key(ec.SECP256R1())
    other = issuer("https://other.example", "other-1", other_key, "ES256")
    trust = replace(TRUST, issuers={**TRUST.issuers, other.issuer: other})
    ours_by_other = root_token(key=other_key, kid="other-1")
    assert reason_of(lambda: verify(ours_by_other, trust=trust)) is Reason.UNKNOWN_KEY
    same_kid = replace(
        trust,
        issuers={**trust.issuers, other.issuer: issuer(other.issuer, "sts-1", other_key, "ES256")},
    )
    token = root_token(key=other_key)
    assert reason_of(lambda: verify(token, trust=same_kid)) is Reason.BAD_SIGNATURE
    theirs = root_token(root_claims(iss=other.issuer), key=other_key, kid="other-1")
    assert verify(theirs, trust=trust).subject_issuer == other.issuer


def test_a_key_that_does_not_fit_the_algorithm_named() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    trust = replace(TRUST, issuers={STS: issuer(STS, "sts-1", key, "ES256", "ES384")})
    header = {"alg": "ES384", "typ": "txntoken+jwt", "kid": "sts-1"}
    verify(sign(header, root_claims(), key), trust=trust)
    mixed = sign(header | {"alg": "ES256"}, root_claims(), key)
    assert reason_of(lambda: verify(mixed, trust=trust)) is Reason.BAD_HEADER


@pytest.mark.parametrize("algorithm", ["RS256", "PS256"])
def test_rsa_issuers(algorithm: str) -> None:
    key = chains.rsa_2048()
    keys = {"sts-1": key.public_key()}
    configured = Issuer(
        issuer=STS, algorithms=frozenset({algorithm}), max_lifetime_s=300, keys=keys
    )
    trust = replace(TRUST, issuers={STS: configured})
    token = root_token(key=key, alg=algorithm)
    assert verify(token, trust=trust).root.kid == "sts-1"
    other = {"RS256": "PS256", "PS256": "RS256"}[algorithm]
    assert reason_of(lambda: verify(root_token(key=key, alg=other), trust=trust)) is (
        Reason.BAD_HEADER
    )


def test_no_issuer_at_all() -> None:
    trust = TrustMaterial(revision="r", bundles=TRUST.bundles, issuers={})
    assert reason_of(lambda: verify(root_token(), trust=trust)) is Reason.UNKNOWN_ISSUER


def test_a_lower_bound_on_actors() -> None:
    policy = replace(POLICY, actors_max=1)
    assert reason(root_token(), policy=policy) is None
    nested = root_token(root_claims(act=act(ME, prior(1))))
    assert reason(nested, policy=policy) is Reason.CHAIN_TOO_DEEP


def test_prior_actors_are_oldest_first() -> None:
    chain = verify(root_token(root_claims(act=act(ME, prior(2), prior(1)))))
    assert chain.prior_actors == (prior(1)["sub"], prior(2)["sub"])
    assert chain.root.delegate == ASSISTANT
