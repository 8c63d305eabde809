"""JWT-SVIDs as a caller's credential: the clauses of the specification, each with its reason."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from authz_server.agent.signing import sign
from authz_server.core.callers import CallerPolicy, ProvedCaller, prove_caller
from authz_server.core.decision import Decision, Verdict
from authz_server.core.errors import Reason
from authz_server.core.jose import ALGORITHMS
from authz_server.core.jwt_svid import verify_jwt_svid
from authz_server.core.request import AccessRequest, Headers, HttpRequest
from authz_server.core.revocation import check_caller
from authz_server.core.snapshot import Revocations
from authz_server.core.trust import TrustBundle, TrustMaterial
from authz_server.demo.authority import envoy_certificate
from authz_server.servers.problem import http_status, problem
from tests.harness.chains import (
    AUTHORITY,
    DOMAIN,
    NOW,
    PARTNER,
    PARTNER_AUTHORITY,
    SECOND,
    TRUST,
    reason_of,
    rsa_2048,
    svid,
    workload,
)

KEY, PARTNER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
P384 = ec.generate_private_key(ec.SECP384R1())
AGENT = workload("agent/a")
AUDIENCE = "spiffe://td.example/authz"
ON = CallerPolicy(jwt_svid_audiences=frozenset({AUDIENCE, "authz"}))
BUNDLES = {
    DOMAIN: TrustBundle(
        trust_domain=DOMAIN,
        authorities=AUTHORITY.bundle.authorities,
        jwt_keys={
            "k1": KEY.public_key(),
            "rsa": rsa_2048().public_key(),
            "p384": P384.public_key(),
        },
    ),
    PARTNER: TrustBundle(
        trust_domain=PARTNER,
        authorities=PARTNER_AUTHORITY.bundle.authorities,
        jwt_keys={"k1": PARTNER_KEY.public_key()},
    ),
}
KEYED: TrustMaterial = replace(TRUST, bundles=BUNDLES)


def token(
    header: Mapping[str, Any] | None = None, key: Any = KEY, alg: str = "ES256", **claims: Any
) -> str:
    members = {"sub": str(AGENT), "aud": [AUDIENCE], "exp": SECOND + 300, "iat": SECOND} | claims
    payload = {name: value for name, value in members.items() if value is not None}
    changed = {"alg": alg, "kid": "k1", "typ": "JWT"} | dict(header or {})
    named = {name: value for name, value in changed.items() if value is not None}
    if alg in ALGORITHMS:
        return sign(named, payload, key)
    return jwt.encode(payload, key, algorithm=alg, headers=named)


def refused(text: str, now: datetime = NOW, trust: TrustMaterial = KEYED) -> Reason | None:
    return reason_of(
        lambda: verify_jwt_svid(
            text, audiences=ON.jwt_svid_audiences, bundles=trust.bundles, now=now, skew_s=30
        )
    )


ACCEPTED: Mapping[str, str] = {
    "as SPIRE makes it": token(),
    "type JOSE": token({"typ": "JOSE"}),
    "no type": token({"typ": None}),
    "one audience as text": token(aud="authz"),
    "one of several audiences": token(aud=["other", "authz"]),
    "only what §3 requires": token(iat=None),
    "RS256": token({"kid": "rsa"}, rsa_2048(), "RS256"),
    "PS256": token({"kid": "rsa"}, rsa_2048(), "PS256"),
    "ES384": token({"kid": "p384"}, P384, "ES384"),
    "the partner's own": token(key=PARTNER_KEY, sub=str(workload("agent/p", PARTNER))),
    "an id of its own": token(jti="j1"),
}


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED)
def test_what_the_specification_admits(text: str) -> None:
    assert refused(text) is None


HEADERS: Mapping[str, tuple[str, Reason]] = {
    "no kid": (token({"kid": None}), Reason.BAD_HEADER),
    "jku": (token({"jku": "https://evil.example"}), Reason.BAD_HEADER),
    "jwk": (token({"jwk": {}}), Reason.BAD_HEADER),
    "crit": (token({"crit": ["exp"]}), Reason.BAD_HEADER),
    "another type": (token({"typ": "at+jwt"}), Reason.BAD_HEADER),
    "a transaction token's type": (token({"typ": "txntoken+jwt"}), Reason.BAD_HEADER),
    "HS256": (token(key="secret" * 8, alg="HS256"), Reason.BAD_HEADER),
    "none": (token(key=None, alg="none") + "AA", Reason.BAD_HEADER),
    "none, and no signature": (token(key=None, alg="none"), Reason.MALFORMED_TOKEN),
    "an algorithm for another key": (token({"kid": "rsa"}), Reason.BAD_HEADER),
    "an unknown kid": (token({"kid": "k2"}), Reason.UNKNOWN_KEY),
    "a kid that is a path": (token({"kid": "../k1"}), Reason.UNKNOWN_KEY),
    "a kid that is a number": (token({"kid": 1}), Reason.BAD_HEADER),
}
CLAIMS: Mapping[str, tuple[str, Reason]] = {
    "no sub": (token(sub=None), Reason.MALFORMED_TOKEN),
    "a person": (token(sub="alice@example.org"), Reason.MALFORMED_TOKEN),
    "a trust domain": (token(sub="spiffe://td.example"), Reason.MALFORMED_TOKEN),
    "no aud": (token(aud=None), Reason.MALFORMED_TOKEN),
    "empty aud": (token(aud=[]), Reason.MALFORMED_TOKEN),
    "another aud": (token(aud=["spiffe://td.example/other"]), Reason.WRONG_AUDIENCE),
    "our aud and more": (token(aud=AUDIENCE + "/x"), Reason.WRONG_AUDIENCE),
    "no exp": (token(exp=None), Reason.MALFORMED_TOKEN),
    "exp as text": (token(exp=str(SECOND + 300)), Reason.MALFORMED_TOKEN),
    "expired": (token(exp=SECOND - 30), Reason.EXPIRED),
    "not yet": (token(nbf=SECOND + 31), Reason.NOT_YET_VALID),
    "issued later": (token(iat=SECOND + 31), Reason.NOT_YET_VALID),
    "for a year": (token(exp=SECOND + 365 * 86400), Reason.LIFETIME_TOO_LONG),
    "an unknown domain": (token(sub="spiffe://stranger.example/a"), Reason.UNKNOWN_TRUST_DOMAIN),
    # JWT-SVID §3.1 with SPIFFE Federation §7.3: a key proves ids of its own domain only.
    "our id with the partner's key": (token(key=PARTNER_KEY), Reason.BAD_SIGNATURE),
    "the partner's id with our key": (
        token(sub=str(workload("agent/p", PARTNER))),
        Reason.BAD_SIGNATURE,
    ),
    "a stranger's key": (token(key=ec.generate_private_key(ec.SECP256R1())), Reason.BAD_SIGNATURE),
}


@pytest.mark.parametrize(
    ("text", "expected"), [*HEADERS.values(), *CLAIMS.values()], ids=[*HEADERS, *CLAIMS]
)
def test_what_it_does_not(text: str, expected: Reason) -> None:
    assert refused(text) is expected


def test_an_x509_key_proves_no_token() -> None:
    """`use` keeps the two kinds of key apart: a bundle without JWT keys proves no JWT-SVID."""
    assert refused(token(), trust=TRUST) is Reason.UNKNOWN_KEY


def test_its_time_is_that_of_each_request() -> None:
    text = token()
    assert refused(text, now=NOW + timedelta(seconds=329)) is None
    assert refused(text, now=NOW + timedelta(seconds=330)) is Reason.EXPIRED
    assert refused(text, now=NOW - timedelta(seconds=31)) is Reason.NOT_YET_VALID


@pytest.mark.parametrize("position", range(3))
def test_one_changed_character_denies(position: int) -> None:
    parts = token().split(".")
    middle = len(parts[position]) // 2
    swapped = "A" if parts[position][middle] != "A" else "B"
    parts[position] = parts[position][:middle] + swapped + parts[position][middle + 1 :]
    assert refused(".".join(parts)) is not None


# --- as the caller of a request ----------------------------------------------------------------


def prove(
    *lines: str, certificate: str = "", policy: CallerPolicy = ON, http: bool = True
) -> ProvedCaller:
    headers = Headers(fields={"authorization": tuple(map(str.encode, lines))} if lines else {})
    request = AccessRequest(
        peer_certificate=certificate,
        peer_principal="",
        source_address=None,
        listener=None,
        destination_principal="",
        node=None,
        sni=None,
        http=HttpRequest(method="GET", scheme="https", host="h", path="/", headers=headers)
        if http
        else None,
        extensions={},
    )
    return prove_caller(request, policy, KEYED, NOW)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
def test_a_caller_without_a_certificate(scheme: str) -> None:
    proved = prove(f"{scheme} {token(jti='j1')}")
    assert proved == ProvedCaller(spiffe_id=AGENT, assurance="bearer", jti="j1", kid="k1")


def test_off_by_default() -> None:
    off = CallerPolicy()
    assert reason_of(lambda: prove(f"Bearer {token()}", policy=off)) is Reason.NO_PRINCIPAL


def test_the_certificate_comes_first() -> None:
    """Beside one, `authorization` is the tool's business, whatever it holds."""
    certificate = envoy_certificate(svid(workload("agent/b")))
    proved = prove("Bearer nonsense", certificate=certificate)
    assert (str(proved.spiffe_id), proved.assurance) == ("spiffe://td.example/agent/b", "mtls")
    assert prove(f"Bearer {token()}", certificate=certificate).spiffe_id == proved.spiffe_id


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((), Reason.NO_PRINCIPAL),
        (("Basic YTpi",), Reason.MALFORMED_PRINCIPAL),
        (("Bearer",), Reason.MALFORMED_PRINCIPAL),
        ((f"Bearer {token()} x",), Reason.MALFORMED_PRINCIPAL),
        ((f"Bearer {token()}", f"Bearer {token()}"), Reason.DUPLICATE_HEADER),
        (("Bearer opaque",), Reason.MALFORMED_TOKEN),
        (("Bearer " + "a" * 5000,), Reason.OVERSIZE),
    ],
)
def test_anything_else_is_nobody(lines: tuple[str, ...], expected: Reason) -> None:
    assert reason_of(lambda: prove(*lines)) is expected


def test_a_connection_without_headers_has_no_token() -> None:
    assert reason_of(lambda: prove(http=False)) is Reason.NO_PRINCIPAL


@pytest.mark.parametrize(
    "revocations",
    [
        Revocations(jti=frozenset({"j1"})),
        Revocations(kid=frozenset({"k1"})),
        Revocations(spiffe_id=frozenset({str(AGENT)})),
    ],
)
def test_a_revoked_token_denies(revocations: Revocations) -> None:
    proved = prove(f"Bearer {token(jti='j1')}")
    assert reason_of(lambda: check_caller(proved, revocations)) is Reason.REVOKED


def test_a_caller_whose_token_is_at_fault_is_not_authenticated() -> None:
    decision = Decision(
        verdict=Verdict.DENY, reason=Reason.EXPIRED, detail="late", time=NOW, revision="r"
    )
    assert http_status(decision) == 401
    document = json.loads(json.dumps(problem(decision, "id")))
    assert document["detail"] == "principal: late"
    assert document["type"] == "urn:authz-server:problem:caller-not-authenticated"
