"""Who may call the listener: proof, allow-list, age; and what a change of the bundles changes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from authz_server.agent.svid import Svid
from authz_server.core.snapshot import Revocations
from authz_server.core.spiffe import SpiffeIdPattern
from authz_server.demo.authority import LeafProfile, TrustDomainAuthority
from authz_server.servers.admission import Admission, NotAdmittedError
from tests.harness.live_trust import snapshot

NOW = datetime.now(UTC)
AGE_S = 100
OURS = TrustDomainAuthority.create("prod.example.org")
NESTED = TrustDomainAuthority.create("prod.example.org", intermediates=2)
THEIRS = TrustDomainAuthority.create("partner.example")
ENVOY = "spiffe://prod.example.org/envoy/crm"


def _peer(svid: Svid) -> dict[str, list[bytes]]:
    """Return what gRPC says about a client with `svid`."""
    leaf, *rest = (c.public_bytes(Encoding.PEM) for c in svid.certificates)
    return {"x509_pem_cert": [leaf]} | ({"x509_pem_cert_chain": [b"".join(rest)]} if rest else {})


@pytest.fixture
def admission() -> Admission:
    allowed = ["spiffe://prod.example.org/envoy/*", "spiffe://partner.example/gateway"]
    return Admission([SpiffeIdPattern.parse(text) for text in allowed], max_connection_age_s=AGE_S)


@pytest.mark.parametrize("authority", [OURS, NESTED])
def test_a_configured_envoy_is_admitted(
    admission: Admission, authority: TrustDomainAuthority
) -> None:
    peer, serving = _peer(authority.issue_svid(ENVOY, now=NOW)), snapshot(authority.bundle)
    assert str(admission.check(peer, serving, NOW)) == ENVOY
    assert str(admission.check(peer, serving, NOW)) == ENVOY, "from memory"


@pytest.mark.parametrize(
    ("svid", "why"),
    [
        (OURS.issue_svid("/agent/crm", now=NOW), "is not among"),
        (OURS.issue_svid("/envoy/crm/deeper", now=NOW), "is not among"),
        (OURS.issue_svid("/envoy", now=NOW), "is not among"),
        (THEIRS.issue_svid("/envoy/crm", now=NOW), "is not among"),
        # An authority of the pool, and an id of another domain in the pool.
        (THEIRS.issue_svid(ENVOY, now=NOW), "no path"),
        (OURS.issue_svid("spiffe://partner.example/gateway", now=NOW), "no path"),
        (TrustDomainAuthority.create("prod.example.org").issue_svid(ENVOY, now=NOW), "no path"),
        (
            TrustDomainAuthority.create("other.example").issue_svid("/envoy/x", now=NOW),
            "has no bundle",
        ),
        (OURS.issue_leaf((), now=NOW), "not proved"),
        (OURS.issue_leaf((ENVOY, ENVOY), now=NOW), "not proved"),
        (OURS.issue_svid(ENVOY + "\n", now=NOW), "not proved"),
        (OURS.issue_svid(ENVOY, profile=LeafProfile(is_ca=True), now=NOW), "not proved"),
        (OURS.issue_svid(ENVOY, profile=LeafProfile(key_usage=None), now=NOW), "not proved"),
    ],
)
def test_everyone_else_is_not(admission: Admission, svid: Svid, why: str) -> None:
    with pytest.raises(NotAdmittedError, match=why):
        admission.check(_peer(svid), snapshot(OURS.bundle, THEIRS.bundle), NOW)


def test_a_client_of_a_federated_domain_may_be_configured(admission: Admission) -> None:
    peer = _peer(THEIRS.issue_svid("/gateway", now=NOW))
    admission.check(peer, snapshot(OURS.bundle, THEIRS.bundle), NOW)
    with pytest.raises(NotAdmittedError, match="has no bundle"):
        admission.check(peer, snapshot(OURS.bundle, revision="without them"), NOW)


@pytest.mark.parametrize(
    "peer", [{}, {"x509_pem_cert": []}, {"x509_pem_cert": [b"x"]}, {"x509_pem_cert": [b""]}]
)
def test_no_certificate_is_nobody(admission: Admission, peer: dict[str, list[bytes]]) -> None:
    with pytest.raises(NotAdmittedError, match="no certificate"):
        admission.check(peer, snapshot(OURS.bundle), NOW)


def test_an_authority_that_is_taken_back_ends_open_connections(admission: Admission) -> None:
    peer = _peer(OURS.issue_svid(ENVOY, now=NOW))
    admission.check(peer, snapshot(OURS.bundle), NOW)
    with pytest.raises(NotAdmittedError, match="no path"):
        admission.check(peer, snapshot(NESTED.bundle, revision="rotated"), NOW)


def test_nothing_is_admitted_before_there_is_trust(admission: Admission) -> None:
    with pytest.raises(NotAdmittedError, match="no trust bundle"):
        admission.check(_peer(OURS.issue_svid(ENVOY, now=NOW)), None, NOW)


def test_an_svid_may_end_while_its_connection_lasts_but_no_longer(admission: Admission) -> None:
    """A resumed session has the certificate of the first handshake, however long ago."""
    peer = _peer(OURS.issue_svid(ENVOY, now=NOW, lifetime=timedelta(seconds=10)))
    serving = snapshot(OURS.bundle)
    admission.check(peer, serving, NOW + timedelta(seconds=10 + AGE_S))
    with pytest.raises(NotAdmittedError, match="has ended"):
        admission.check(peer, serving, NOW + timedelta(seconds=10 + 2 * AGE_S))


def test_a_revoked_envoy_is_refused_on_the_connection_it_has(admission: Admission) -> None:
    peer, serving = _peer(OURS.issue_svid(ENVOY, now=NOW)), snapshot(OURS.bundle)
    admission.check(peer, serving, NOW)
    revoked = replace(serving, revocations=Revocations(spiffe_id=frozenset({ENVOY})))
    with pytest.raises(NotAdmittedError, match="is revoked"):
        admission.check(peer, revoked, NOW)
