"""What is fuzzed: each reader of bytes from outside, and what must hold for any bytes at all.

A target takes the bytes and raises for anything but success or a refusal of the documented kind.
It is pure, so that a finding is its input alone.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Final

from authz_server.core.chain import DelegationPolicy
from authz_server.core.decision import Decision, Verdict
from authz_server.core.delegation import presented_chain, verify
from authz_server.core.errors import InvalidValueError, RequestFault
from authz_server.core.jose import CompactJws, encode_base64url
from authz_server.core.jwt_svid import verify_jwt_svid
from authz_server.core.pdp import decide
from authz_server.core.request import Headers
from authz_server.core.snapshot import Snapshot
from authz_server.core.spiffe import SpiffeId, SpiffeIdPattern
from authz_server.core.xfcc import parse_xfcc
from authz_server.servers.wire import access_request, check_response
from tests.harness import chains
from tests.harness.world import World

Target = Callable[[bytes], None]
NOW: Final = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
POLICY: Final = DelegationPolicy(
    require=True, delegator_trust_domains=frozenset({chains.DOMAIN, chains.PARTNER})
)


def spiffe_id(data: bytes) -> None:
    """Hold an id to its one spelling, which as a pattern matches it."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        found = SpiffeId.parse(text)
    except InvalidValueError:
        return
    assert str(found) == text
    assert text.isascii()
    assert SpiffeIdPattern.parse(text).matches(found)


def xfcc(data: bytes) -> None:
    """Take no more text out of a value than was in it."""
    text = data.decode("latin-1")
    try:
        elements = parse_xfcc(text)
    except InvalidValueError:
        return
    assert elements
    if not text.startswith("["):
        assert sum(len("".join((*e.by, *e.uris))) for e in elements) <= len(text)


def compact_jws(data: bytes) -> None:
    """Hold a token to its one spelling, and never take one for a JWT-SVID that nobody signed."""
    text = data.decode("latin-1")
    try:
        jws = CompactJws.parse(text)
        assert text == f"{jws.signing_input.decode()}.{encode_base64url(jws.signature)}"
        verify_jwt_svid(
            text,
            audiences=frozenset({"authz"}),
            bundles=chains.TRUST.bundles,
            now=NOW,
            skew_s=30,
        )
    except RequestFault:
        return
    raise AssertionError("a JWT-SVID verified against a bundle without JWT keys")


def chain_header(data: bytes) -> None:
    """Refuse whatever is presented but the one chain that was really signed."""
    root, _, links = data.partition(b"\n")
    fields = {"txn-token": (root,)} | ({"delegation-chain": (links,)} if links else {})
    try:
        presented = presented_chain(Headers(fields=fields), POLICY)
        assert presented is not None
        verify(
            presented, trust=chains.TRUST, policy=POLICY, trust_domain=chains.DOMAIN, now=chains.NOW
        )
    except RequestFault:
        return
    # Signatures differ between runs, so the signed chain is known by its parts.
    genuine = chains.three_hops()
    assert (presented.root, *presented.links) == genuine[: 1 + len(presented.links)]


def check_request(data: bytes) -> None:
    """Decide and answer any request; allow none without a chain."""
    try:
        request = access_request(data)
    except RequestFault:
        return
    decision: Decision = decide(request, _snapshot(), NOW)
    assert decision.verdict is not Verdict.ALLOW or decision.chain is not None
    assert check_response(decision, decision_id="d")


@cache
def _snapshot() -> Snapshot:
    return World(now=NOW).snapshot()


TARGETS: Final[Mapping[str, Target]] = {
    target.__name__: target
    for target in (spiffe_id, xfcc, compact_jws, chain_header, check_request)
}
