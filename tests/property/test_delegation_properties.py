"""For every chain: one changed byte denies, one more hop never widens, nothing else raises."""

import base64
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from authz_server.core.chain import Grant, PresentedChain, VerifiedChain
from authz_server.core.chain_cache import ChainCache
from authz_server.core.delegation import bind, check_times, presented_chain
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.request import Headers
from authz_server.core.svid import peer_identity, verify_signer
from authz_server.demo.authority import envoy_certificate
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
    TRUST,
    link_claims,
    link_token,
    reason,
    reason_of,
    root_claims,
    root_token,
    svid,
    three_hops,
    verify,
)

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
CHAIN = three_hops()
POSITIONS = [(token, index) for token in range(3) for index in range(len(CHAIN[token]))]


def altered(token: int, index: int, character: str) -> list[str]:
    tokens = list(CHAIN)
    text = tokens[token]
    tokens[token] = text[:index] + character + text[index + 1 :]
    return tokens


def test_every_character_counts() -> None:
    """Each position of a three-hop chain, replaced by its neighbour in the alphabet."""
    assert reason(*CHAIN) is None
    for token, index in POSITIONS:
        old = CHAIN[token][index]
        new = ALPHABET[(ALPHABET.find(old) + 1) % 64]  # a dot becomes an A
        assert reason(*altered(token, index, new)) is not None, (token, index)


@given(st.sampled_from(POSITIONS), st.sampled_from([*ALPHABET, ".", "=", "+", " ", "\0", "\u00e9"]))
def test_one_other_character_denies(position: tuple[int, int], character: str) -> None:
    if CHAIN[position[0]][position[1]] != character:
        assert reason(*altered(*position, character)) is not None


@given(st.permutations(range(3)), st.integers(0, 3))
def test_only_the_minted_order_verifies(order: Sequence[int], length: int) -> None:
    tokens = [CHAIN[index] for index in order[:length]]
    if tokens:
        assert (reason(*tokens) is None) is (list(order[:length]) == list(range(length)))


SCOPES = ["crm.read", "crm.export", "tickets.read", "admin"]
AUDIENCES = [CRM, MAIL, DOMAIN.uri, "https://other.example"]
LINK_CHANGES = st.fixed_dictionaries(
    {
        "scope": st.lists(st.sampled_from(SCOPES), min_size=1, unique=True).map(" ".join),
        "aud": st.lists(st.sampled_from(AUDIENCES), min_size=1, unique=True),
        "exp": st.integers(SECOND + 1, SECOND + 310),
        "nbf": st.integers(SECOND - 20, SECOND + 20),
        "dlg": st.integers(0, 3),
    }
)


WIDER = {Reason.SCOPE_WIDENED, Reason.LIFETIME_TOO_LONG, Reason.CHAIN_TOO_DEEP}


def narrower(parent: Grant, grant: Grant) -> bool:
    """Tell whether `grant` is within `parent` in every respect."""
    return (
        grant.scope <= parent.scope
        and (parent.kid is not None or grant.audience <= parent.audience)
        and grant.expires_at <= parent.expires_at
        and grant.hops_left < parent.hops_left
        and (grant.subject, grant.txn) == (parent.subject, parent.txn)
        and len(grant.details) <= len(parent.details)
    )


@settings(max_examples=150)
@given(LINK_CHANGES, LINK_CHANGES)
def test_a_longer_chain_never_widens(first: dict[str, Any], second: dict[str, Any]) -> None:
    tokens = [root_token()]
    tokens.append(_link(tokens[-1], first, ASSISTANT, RESEARCH))
    tokens.append(_link(tokens[-1], second, RESEARCH, TOOL))
    for length in (2, 3):
        refused = reason(*tokens[:length])
        if refused is not None:
            assert refused in WIDER
            return
        chain = verify(*tokens[:length])
        assert narrower(chain.grants[-2], chain.grants[-1])
        shorter = verify(*tokens[: length - 1])
        assert chain.grants[:-1] == shorter.grants, "a hop more changes nothing before it"


def _link(parent: str, changes: dict[str, Any], by: Any, to: Any) -> str:
    return link_token(link_claims(parent, by=by, to=to, **changes), svid(by))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.sampled_from([str(ASSISTANT), str(RESEARCH), DOMAIN.uri, CRM, "crm.read", SECOND]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.sampled_from(sorted(root_claims())), JSON)
def test_any_value_in_any_root_claim(name: str, value: object) -> None:
    claims = root_claims()
    claims[name] = value
    _only_faults(root_token(claims))


@given(st.sampled_from(["alg", "typ", "kid", "x5c", "crit"]), JSON)
def test_any_value_in_any_header_member(name: str, value: object) -> None:
    # Signed with the true algorithm and key, whatever the header says.
    from authz_server.agent import signing

    header = {"typ": "txntoken+jwt", "kid": "sts-1", "alg": "ES256", name: value}
    signed = signing.sign({**header, "alg": "ES256"}, root_claims(), svid(ASSISTANT).key)
    encoded = signing._encode(header)
    _only_faults(encoded + signed[signed.index(".") :])


FIRST_CLAIMS = link_claims(
    CHAIN[0], by=ASSISTANT, to=RESEARCH, authorization_details=[{"type": "x"}]
)


@given(st.sampled_from([*sorted(FIRST_CLAIMS), "nbf", "new"]), JSON)
def test_any_value_in_any_link_claim(name: str, value: object) -> None:
    claims = {**link_claims(CHAIN[0], by=ASSISTANT, to=RESEARCH), name: value}
    _only_faults(CHAIN[0], link_token(claims, svid(ASSISTANT)))


@given(JSON)
def test_any_x5c(value: object) -> None:
    call = lambda: verify_signer(  # noqa: E731
        value,  # type: ignore[arg-type]
        bundles=TRUST.bundles,
        delegator_trust_domains=POLICY.delegator_trust_domains,
        at=NOW,
    )
    assert reason_of(call) is not None


@given(st.text(), st.lists(st.text(), max_size=5))
def test_any_text_as_tokens(root: str, links: list[str]) -> None:
    assert reason(root, *links) is not None


@given(
    st.one_of(st.none(), st.binary(), st.sampled_from([CHAIN[0].encode()])),
    st.lists(
        st.binary() | st.sampled_from([b", ".join(t.encode() for t in CHAIN[1:])]), max_size=2
    ),
)
def test_any_bytes_as_headers(root: bytes | None, lines: list[bytes]) -> None:
    fields: dict[str, tuple[bytes, ...]] = {"delegation-chain": tuple(lines)} if lines else {}
    if root is not None:
        fields["txn-token"] = (root,)
    try:
        presented = presented_chain(Headers(fields=fields), POLICY)
    except RequestFault:
        return
    assert (presented is None) is (root is None)
    if presented is not None:
        _only_faults(presented.root, *presented.links)


@given(st.text(st.characters(codec="utf-8")) | st.text("%0A2BFD-MIICERT=", max_size=200))
def test_any_text_as_peer_certificate(text: str) -> None:
    assert reason_of(lambda: peer_identity(text)) in {
        Reason.NO_PRINCIPAL if not text else Reason.MALFORMED_PRINCIPAL
    }


LEAF = svid(ASSISTANT).leaf.public_bytes(Encoding.DER)
TEXT = envoy_certificate(svid(ASSISTANT))


def test_every_byte_of_a_signers_certificate_counts() -> None:
    """Its lowest or highest bit flipped, no byte that an authority signed verifies.

    The signature's own wrapping is signed by nobody and has spare bits; what differs there alone
    is the same certificate. It must still raise nothing but a fault.
    """
    signed = svid(ASSISTANT).leaf.tbs_certificate_bytes
    start = LEAF.index(signed)
    for index in range(len(LEAF)):
        for bit in (0, 7):
            flipped = bytearray(LEAF)
            flipped[index] ^= 1 << bit
            refused = reason(CHAIN[0], _with_x5c([base64.b64encode(flipped).decode()]))
            if start <= index < start + len(signed):
                assert refused is not None, (index, bit)


def _with_x5c(x5c: list[str]) -> str:
    claims = link_claims(CHAIN[0], by=ASSISTANT, to=RESEARCH)
    return link_token(claims, svid(ASSISTANT), x5c=x5c)


@given(st.binary(min_size=1, max_size=8), st.integers(0, len(LEAF) - 1))
def test_a_damaged_peer_certificate_raises_only_faults(patch: bytes, index: int) -> None:
    damaged = LEAF[:index] + patch + LEAF[index + len(patch) :]
    body = base64.b64encode(damaged).decode()
    text = f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"
    for character, escape in (
        ("\n", "%0A"),
        (" ", "%20"),
        ("+", "%2B"),
        ("/", "%2F"),
        ("=", "%3D"),
    ):
        text = text.replace(character, escape)
    assert reason_of(lambda: peer_identity(text)) in {None, Reason.MALFORMED_PRINCIPAL}


@given(st.lists(st.integers(-60, 400), min_size=1, max_size=5))
def test_the_cache_answers_as_the_verifier_does(seconds: list[int]) -> None:
    cache = ChainCache()
    presented = PresentedChain(root=CHAIN[0], links=CHAIN[1:])
    for second in seconds:
        now = NOW + timedelta(seconds=second)

        def cached(now: Any = now) -> VerifiedChain:
            return cache.verify(presented, trust=TRUST, policy=POLICY, trust_domain=DOMAIN, now=now)

        expected = reason(*CHAIN, now=now)
        assert reason_of(cached) is expected
        if expected is None:
            assert cached() == verify(*CHAIN, now=now)


@settings(max_examples=60)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(-100, 400),
)
def test_checking_times_again_is_verifying_again(svid_s: int, link_s: int, second: int) -> None:
    """Whatever ends first, certificate or token: a kept proof ends when a fresh one would."""
    signer = AUTHORITY.issue_svid(
        ASSISTANT, now=NOW, lifetime=timedelta(seconds=svid_s), key=svid(ASSISTANT).key
    )
    claims = link_claims(CHAIN[0], by=ASSISTANT, to=RESEARCH, exp=SECOND + min(link_s, svid_s))
    tokens = (CHAIN[0], link_token(claims, signer))
    now = NOW + timedelta(seconds=second)
    kept = verify(*tokens)
    # At the very second a certificate ends RFC 5280 still accepts it; we stop one instant earlier.
    assert reason_of(lambda: check_times(kept, POLICY, now)) is reason(*tokens, now=now)


@given(
    st.integers(1, 3),
    st.sampled_from([ASSISTANT, RESEARCH, TOOL]),
    st.sampled_from([None, ASSISTANT, RESEARCH, TOOL]),
    st.sampled_from([None, CRM, MAIL, DOMAIN.uri]),
)
def test_whoever_binds_is_the_holder_of_the_authority(
    length: int, caller: Any, workload_id: Any, audience: str | None
) -> None:
    chain = verify(*CHAIN[:length])
    try:
        bound = bind(chain, caller=caller, workload_id=workload_id, audience=audience)
    except RequestFault:
        return
    assert bound.authority.delegate == caller == bound.actors[-1]
    assert bound.authority in chain.grants
    assert (bound.mode == "handoff") is (bound.authority is not chain.grants[-1])


def _only_faults(*tokens: str) -> None:
    reason(*tokens)
