"""Attacks on tokens and identities, each at the layer that must stop it.

Every attack starts from a chain that verifies, so that what refuses it is the attack alone.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from authz_server.core.chain import PresentedChain
from authz_server.core.delegation import bind, presented_chain
from authz_server.core.errors import Reason
from authz_server.core.jose import encode_base64url
from authz_server.core.request import Headers
from authz_server.core.svid import peer_identity
from authz_server.demo.authority import envoy_certificate
from tests.harness.chains import (
    ASSISTANT,
    AUTHORITY,
    CRM,
    DOMAIN,
    NOW,
    POLICY,
    RESEARCH,
    ROOT_KEY,
    SECOND,
    link,
    reason_of,
    root_claims,
    root_token,
    three_hops,
    verify,
)


def compact(header: Mapping[str, object], claims: Mapping[str, object], signature: bytes) -> str:
    parts = [json.dumps(part).encode() for part in (header, claims)]
    return ".".join(encode_base64url(part) for part in (*parts, signature))


def hmac_over_the_public_key() -> str:
    header = {"alg": "HS256", "typ": "txntoken+jwt", "kid": "sts-1"}
    pem = ROOT_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    unsigned = compact(header, root_claims(), b"x").rpartition(".")[0]
    signature = hmac.digest(pem, unsigned.encode(), hashlib.sha256)
    return f"{unsigned}.{encode_base64url(signature)}"


def embedded_key() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    numbers = key.public_key().public_numbers()
    x, y = (encode_base64url(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
    return root_token(key=key, jwk={"kty": "EC", "crv": "P-256", "x": x, "y": y})


def with_claim_text(text: str) -> str:
    """Return a truly signed root with `text` written into its claims."""
    header = json.dumps({"alg": "ES256", "typ": "txntoken+jwt", "kid": "sts-1"})
    claims = json.dumps(root_claims())[:-1] + text + "}"
    signing_input = ".".join(encode_base64url(part.encode()) for part in (header, claims))
    from jwt.algorithms import ECAlgorithm

    signature = ECAlgorithm(ECAlgorithm.SHA256).sign(signing_input.encode(), ROOT_KEY)
    return f"{signing_input}.{encode_base64url(signature)}"


def huge() -> str:
    return root_token(root_claims(rctx={"padding": "x" * 64 * 1024}))


ROOT, FIRST, SECOND_LINK = three_hops()
OTHER = root_token(root_claims(txn="another", jti="another"))
M = Reason.MALFORMED_TOKEN

TOKENS: Mapping[str, tuple[Callable[[], tuple[str, ...]], Reason]] = {
    "jwt-01 none": (
        lambda: (
            compact({"alg": "none", "typ": "txntoken+jwt", "kid": "sts-1"}, {"iss": "x"}, b""),
        ),
        M,
    ),
    "jwt-02 HS256 with the public key": (lambda: (hmac_over_the_public_key(),), Reason.BAD_HEADER),
    "jwt-04 kid as a path": (lambda: (root_token(kid="../../dev/null"),), Reason.UNKNOWN_KEY),
    "jwt-04 kid as SQL": (lambda: (root_token(kid="' OR 1=1"),), Reason.UNKNOWN_KEY),
    "jwt-05 jku": (lambda: (root_token(jku="https://evil.example/jwks"),), Reason.BAD_HEADER),
    "jwt-05 x5u": (lambda: (root_token(x5u="https://evil.example/c"),), Reason.BAD_HEADER),
    "jwt-05 embedded jwk": (lambda: (embedded_key(),), Reason.BAD_HEADER),
    "jwt-07 b64 false": (lambda: (root_token(crit=["b64"], b64=False),), Reason.BAD_HEADER),
    "jwt-10 exp 10^30": (lambda: (root_token(root_claims(exp=10**30)),), M),
    "jwt-10 exp in the far future": (
        lambda: (root_token(root_claims(exp=SECOND + 10**9)),),
        Reason.LIFETIME_TOO_LONG,
    ),
    "jwt-11 exp as a string": (lambda: (root_token(root_claims(exp="9999999999")),), M),
    "jwt-14 a stranger in aud": (
        lambda: (root_token(root_claims(aud=["other", DOMAIN.uri])),),
        Reason.WRONG_AUDIENCE,
    ),
    "jwt-17 an access token as a root": (lambda: (root_token(typ="at+jwt"),), Reason.BAD_HEADER),
    "jwt-17 a link as a root": (lambda: (FIRST,), Reason.UNKNOWN_ISSUER),
    "jwt-17 a root as a link": (lambda: (ROOT, ROOT), Reason.BAD_HEADER),
    "jwt-20 a claim of 5000 digits": (
        lambda: (with_claim_text(f', "x": {"9" * 2000}'),),
        M,
    ),
    "a duplicate claim": (lambda: (with_claim_text(', "sub": "mallory"'),), M),
    "a duplicate claim, escaped": (lambda: (with_claim_text(', "s\\u0075b": "mallory"'),), M),
    "NaN": (lambda: (with_claim_text(', "x": NaN'),), M),
    "act nested deep": (lambda: (with_claim_text(f', "x": {"[" * 100}{"]" * 100}'),), M),
    "jwt-26 a hop of another chain": (
        lambda: (ROOT, link(OTHER, by=ASSISTANT, to=RESEARCH, txn="another", dlg=1)),
        Reason.CHAIN_BROKEN,
    ),
    "jwt-26 a hop of another chain, below": (
        lambda: (ROOT, link(ROOT, by=ASSISTANT, to=RESEARCH, dlg=1), SECOND_LINK),
        Reason.CHAIN_BROKEN,
    ),
    "jwt-30 a token of 64 kB": (lambda: (huge(),), Reason.OVERSIZE),
}


@pytest.mark.parametrize(("mint", "expected"), TOKENS.values(), ids=TOKENS)
def test_tokens(mint: Callable[[], tuple[str, ...]], expected: Reason) -> None:
    tokens = mint()
    assert reason_of(lambda: verify(*tokens)) is expected
    # The same through the door of a request.
    root, *links = (token.encode() for token in tokens)
    fields = {"txn-token": (root,), "delegation-chain": (b", ".join(links),)}
    found: list[PresentedChain] = []

    def ask() -> None:
        presented = presented_chain(Headers(fields=fields), POLICY)
        assert presented is not None
        found.append(presented)
        verify(presented.root, *presented.links)

    assert reason_of(ask) is expected
    assert bool(found) is (expected is not Reason.OVERSIZE and not tokens[0].endswith("."))


def test_the_attacks_start_from_what_verifies() -> None:
    assert reason_of(lambda: verify(with_claim_text(', "x": 9'))) is None
    assert reason_of(lambda: verify(ROOT, FIRST, SECOND_LINK)) is None


# A hop header altered on its way: Envoy removes a bare CR and turns obs-fold into a blank.
HEADERS: Mapping[str, tuple[bytes, Reason | None]] = {
    "header-09 a bare CR": (ROOT.encode()[:10] + b"\r" + ROOT.encode()[10:], M),
    "header-09 a bare CR, removed by Envoy": (ROOT.encode(), None),
    "header-11 obs-fold": (ROOT.encode()[:10] + b"\r\n " + ROOT.encode()[10:], M),
    "header-11 obs-fold, made a blank by Envoy": (
        ROOT.encode()[:10] + b" " + ROOT.encode()[10:],
        M,
    ),
}


@pytest.mark.parametrize(("line", "expected"), HEADERS.values(), ids=HEADERS)
def test_headers(line: bytes, expected: Reason | None) -> None:
    def ask() -> None:
        presented = presented_chain(Headers(fields={"txn-token": (line,)}), POLICY)
        assert presented is not None
        verify(presented.root)

    assert reason_of(ask) is expected


def test_header_15_a_root_removed_on_the_way_widens_nothing() -> None:
    # `Connection: txn-token` makes Envoy drop the header: no chain, or links without a root.
    assert presented_chain(Headers(fields={}), POLICY) is None
    links = Headers(fields={"delegation-chain": (FIRST.encode(),)})
    assert reason_of(lambda: presented_chain(links, POLICY)) is Reason.CHAIN_BROKEN


IDENTITIES: Mapping[str, tuple[str, ...]] = {
    "spiffe-04 trailing slash": ("spiffe://td.example/agent/a/",),
    "spiffe-06 percent-encoding": ("spiffe://td.example/agent/%61",),
    "spiffe-08 port": ("spiffe://td.example:8080/a",),
    "spiffe-11 empty trust domain": ("spiffe:///a",),
    "spiffe-12 over 2048 bytes": ("spiffe://td.example/" + "a" * 3000,),
    "spiffe-20 https": ("https://td.example/agent/a",),
    "spiffe-22 semicolon": ("spiffe://td.example/agent/a;URI=spiffe://td.example/agent/admin",),
    "two names": ("spiffe://td.example/agent/a", "spiffe://td.example/agent/admin"),
    "no name": (),
}


@pytest.mark.parametrize("uris", IDENTITIES.values(), ids=IDENTITIES)
def test_identities(uris: tuple[str, ...]) -> None:
    text = envoy_certificate(AUTHORITY.issue_leaf(uris, now=NOW))
    assert reason_of(lambda: peer_identity(text)) is Reason.MALFORMED_PRINCIPAL


def test_spiffe_17_a_look_alike_is_someone_else() -> None:
    look_alike = AUTHORITY.issue_leaf(["spiffe://td.examp1e/agent/assistant"], now=NOW)
    caller = peer_identity(envoy_certificate(look_alike)).spiffe_id
    call = lambda: bind(verify(ROOT), caller=caller, workload_id=None, audience=CRM)  # noqa: E731
    assert reason_of(call) is Reason.LEAF_MISMATCH


def test_spoof_01_no_certificate_no_identity() -> None:
    assert reason_of(lambda: peer_identity("")) is Reason.NO_PRINCIPAL
