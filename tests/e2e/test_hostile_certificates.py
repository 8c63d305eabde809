"""Peer certificates that the mesh's own authority signed and that name nobody, or somebody else.

Each is shown to the PDP as Envoy would show it, and to both Envoys at a real handshake. `hardened`
validates SPIFFE at the handshake; `default` admits whatever the authority signed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import pytest
from cryptography import x509

from tests.e2e.attack_mesh import PROFILES, Mesh
from tests.e2e.check_requests import PdpClient, check_request
from tests.e2e.forge import TRUST_DOMAIN, Authority, Svid, spiffe
from tests.e2e.raw_http import NoAnswerError, exchange

REQUEST = b"GET /public/x HTTP/1.1\r\nHost: tool.example\r\n\r\n"
WIDE = spiffe("agent/wide")

Issue = Callable[[Authority], Svid]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Outcome at each place; `alone` None where the PDP is not shown what is wrong."""

    alone: str | None
    hardened: str
    default: str


MALFORMED = "deny MALFORMED_PRINCIPAL"
# Nothing but our own parser stands between these names and a principal.
NOBODY = Expected(alone=MALFORMED, hardened="refuse", default=MALFORMED)
ADMITTED = Expected(alone=MALFORMED, hardened=MALFORMED, default=MALFORMED)

UNTRUSTED = "deny UNKNOWN_TRUST_DOMAIN"
STRANGERS = Expected(alone=UNTRUSTED, hardened="refuse", default=UNTRUSTED)
UNKNOWN = "deny UNREGISTERED_IDENTITY"
UNREGISTERED = Expected(alone=UNKNOWN, hardened=UNKNOWN, default=UNKNOWN)
ALLOWED = Expected(alone="allow", hardened="allow", default="allow")


def named(*names: x509.GeneralName | str, common_name: str = "") -> Issue:
    return lambda authority: authority.issue(*names, common_name=common_name)


CASES: dict[str, tuple[Expected, Issue]] = {
    "spiffe-01 common name only": (NOBODY, named(common_name="agent-wide")),
    "spiffe-02 scheme in upper case": (NOBODY, named(f"SPIFFE://{TRUST_DOMAIN}/agent/wide")),
    "spiffe-03 trust domain in upper case": (NOBODY, named("spiffe://MESH.example/agent/wide")),
    "spiffe-04 trailing slash": (ADMITTED, named(WIDE + "/")),
    "spiffe-05 empty segment": (ADMITTED, named(spiffe("agent//wide"))),
    "spiffe-05b double slash first": (ADMITTED, named(spiffe("/agent/wide"))),
    "spiffe-06 percent-encoding": (ADMITTED, named(spiffe("agent/%77ide"))),
    "spiffe-07 dot segments": (ADMITTED, named(spiffe("agent/narrow/../wide"))),
    "spiffe-07b single dot segment": (ADMITTED, named(spiffe("agent/./wide"))),
    "spiffe-08 port": (NOBODY, named(f"spiffe://{TRUST_DOMAIN}:8080/agent/wide")),
    "spiffe-09 user information": (NOBODY, named(f"spiffe://x@{TRUST_DOMAIN}/agent/wide")),
    "spiffe-10 query": (ADMITTED, named(WIDE + "?x=1")),
    "spiffe-10b fragment": (ADMITTED, named(WIDE + "#x")),
    "spiffe-11 empty trust domain": (NOBODY, named("spiffe:///agent/wide")),
    "spiffe-12 over 2048 bytes": (ADMITTED, named(spiffe("agent/" + "w" * 3000))),
    "spiffe-13 trailing newline": (ADMITTED, named(WIDE + "\n")),
    "spiffe-13b newline in the trust domain": (
        NOBODY,
        named(f"spiffe://{TRUST_DOMAIN}\n/agent/wide"),
    ),
    "spiffe-14 NUL": (ADMITTED, named(WIDE + "\0")),
    "spiffe-15 trust domain alone": (NOBODY, named(f"spiffe://{TRUST_DOMAIN}")),
    "spiffe-15b trust domain and a slash": (ADMITTED, named(f"spiffe://{TRUST_DOMAIN}/")),
    "spiffe-16 two names": (ADMITTED, named(WIDE, spiffe("agent/narrow"))),
    "spiffe-16b another URI beside it": (NOBODY, named("https://mesh.example/", WIDE)),
    "spiffe-16c the same name twice": (ADMITTED, named(WIDE, WIDE)),
    "spiffe-17 look-alike trust domain": (
        STRANGERS,
        named("spiffe://mesh.examp1e/agent/wide"),
    ),
    "spiffe-17b Cyrillic letter": (ADMITTED, named(spiffe("agent/wid\u0435"))),
    "spiffe-18 DNS name": (NOBODY, named(x509.DNSName(WIDE))),
    "spiffe-18b common name and DNS name": (
        NOBODY,
        named(x509.DNSName(WIDE), common_name=WIDE[:60]),
    ),
    "spiffe-18c mail address": (NOBODY, named(x509.RFC822Name("wide@mesh.example"))),
    "spiffe-19 another trust domain": (
        STRANGERS,
        named("spiffe://other.example/agent/wide"),
    ),
    "spiffe-19b longer trust domain": (
        STRANGERS,
        named("spiffe://mesh.example.evil.example/agent/wide"),
    ),
    "spiffe-20 https": (NOBODY, named("https://mesh.example/agent/wide")),
    "spiffe-21 no scheme": (NOBODY, named(f"{TRUST_DOMAIN}/agent/wide")),
    "spiffe-22 semicolon": (ADMITTED, named(spiffe("agent/narrow") + f";URI={WIDE}")),
    "spiffe-23 comma": (ADMITTED, named(spiffe("agent/narrow") + f",URI={WIDE}")),
    "spiffe-23b quote": (ADMITTED, named(spiffe('agent/narrow"'))),
    "spiffe-24 expired": (
        Expected(alone=None, hardened="refuse", default="refuse"),
        lambda authority: authority.issue(WIDE, not_after=timedelta(minutes=-1)),
    ),
    "spiffe-25 not yet valid": (
        Expected(alone=None, hardened="refuse", default="refuse"),
        lambda authority: authority.issue(
            WIDE, not_before=timedelta(hours=1), not_after=timedelta(hours=2)
        ),
    ),
    "spiffe-26 signing certificate": (
        NOBODY,
        lambda authority: authority.issue(WIDE, is_authority=True),
    ),
    "spiffe-27 key not for signatures": (
        Expected(alone=MALFORMED, hardened="refuse", default="refuse"),
        lambda authority: authority.issue(WIDE, signs=False),
    ),
    "spiffe-28 another authority": (
        Expected(alone=None, hardened="refuse", default="refuse"),
        lambda _: Authority().issue(WIDE),
    ),
    "spiffe-29 unregistered": (
        UNREGISTERED,
        named(spiffe("agent/stranger")),
    ),
    "spiffe-29b longer than a registered one": (
        UNREGISTERED,
        named(WIDE + "/x"),
    ),
    "control": (ALLOWED, named(WIDE)),
    "control, with a DNS name beside it": (
        ALLOWED,
        named(WIDE, x509.DNSName("wide.mesh.example")),
    ),
}

PARAMS = [
    pytest.param(expected, issue, id=name.replace(" ", "-"))
    for name, (expected, issue) in CASES.items()
]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("expected", "issue"), PARAMS)
def test_at_the_handshake(mesh: Mesh, expected: Expected, issue: Issue, profile: str) -> None:
    seq, hits = mesh.ledger.last(), len(mesh.workload.hits)
    tls = mesh.tls_with(issue(mesh.forge.authority), "hostile")
    try:
        answer = exchange(mesh.envoys[profile].ports["tool"], REQUEST, tls=tls)
    except NoAnswerError:
        answer = None
    records = mesh.ledger.since(seq)
    outcome = records[0].outcome if records else "refuse"
    assert outcome == getattr(expected, profile)
    assert (answer is None) == (outcome == "refuse")
    assert len(mesh.workload.hits) - hits == (1 if outcome == "allow" else 0)


@pytest.mark.parametrize(("expected", "issue"), PARAMS)
def test_as_envoy_shows_it(mesh: Mesh, pdp: PdpClient, expected: Expected, issue: Issue) -> None:
    if expected.alone is not None:
        assert pdp.outcome(check_request(issue(mesh.forge.authority))) == expected.alone
