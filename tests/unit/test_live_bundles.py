"""Live bundles in a snapshot: which source proves which domain, revisions, and age."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from authz_server.core import pdp
from authz_server.core.errors import InvalidValueError, Reason
from authz_server.core.request import AccessRequest
from authz_server.core.spiffe import TrustDomain
from authz_server.core.trust import TrustBundle
from authz_server.demo.authority import TrustDomainAuthority
from authz_server.identity.der import split_certificates
from authz_server.identity.live_bundles import NEVER, LiveBundles, LiveTrust
from authz_server.identity.spiffe_bundle import parse_document, parse_jwt_keys
from tests.harness.live_trust import DOMAIN, snapshot
from tests.harness.world import World

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
PARTNER = TrustDomain.parse("partner.example")
OURS, OTHERS, THEIRS = (TrustDomainAuthority.create(domain) for domain in (DOMAIN, DOMAIN, PARTNER))


@dataclass(slots=True)
class Source:
    """A source that a test sets."""

    bundles: LiveBundles


def source(*bundles: TrustBundle, good_until: datetime | None = None) -> Source:
    found = MappingProxyType({bundle.trust_domain: bundle for bundle in bundles})
    return Source(LiveBundles(bundles=found, good_until=good_until))


def test_a_file_or_an_earlier_source_has_the_last_word() -> None:
    files = snapshot(OURS.bundle)
    served = LiveTrust([source(THEIRS.bundle), source(OTHERS.bundle)]).apply(files)
    assert served.trust.bundles == {DOMAIN: OURS.bundle, PARTNER: THEIRS.bundle}
    served = LiveTrust([source(OTHERS.bundle), source(OURS.bundle)]).apply(snapshot())
    assert served.trust.bundles == {DOMAIN: OTHERS.bundle}


def test_the_revision_is_the_content_and_nothing_else() -> None:
    live = source(OURS.bundle)
    trust = LiveTrust([live])
    first = trust.apply(snapshot())
    assert trust.apply(snapshot()).revision == first.revision
    live.bundles = LiveBundles(bundles=live.bundles.bundles, good_until=NOW)
    assert trust.apply(snapshot()).revision == first.revision, "age is no content"

    both = TrustBundle(trust_domain=DOMAIN, authorities=(OURS.root, OTHERS.root))
    turned = TrustBundle(trust_domain=DOMAIN, authorities=(OTHERS.root, OURS.root))
    revisions = {LiveTrust([source(b)]).apply(snapshot()).trust.revision for b in (both, turned)}
    assert len(revisions) == 1, "nor is the order"
    assert first.trust.revision not in revisions
    empty = TrustBundle(trust_domain=DOMAIN, authorities=())
    assert LiveTrust([source(empty)]).apply(snapshot()).trust.revision not in revisions
    assert first.revision.endswith(".policies")


def test_the_earliest_end_counts() -> None:
    ends = [NOW + timedelta(hours=1), NOW, None]
    trust = LiveTrust([source(good_until=end) for end in ends])
    assert trust.apply(snapshot()).trust.good_until == NOW
    assert LiveTrust([source()]).apply(snapshot()).trust.good_until is None


@pytest.mark.parametrize(
    ("good_until", "reason"),
    [
        (None, Reason.NO_PRINCIPAL),
        (NOW + timedelta(microseconds=1), Reason.NO_PRINCIPAL),
        (NOW, Reason.NOT_READY),
        (NEVER, Reason.NOT_READY),
    ],
)
def test_trust_that_is_too_old_denies_before_anything_else(
    good_until: datetime | None, reason: Reason
) -> None:
    served = LiveTrust([source(good_until=good_until)]).apply(World().snapshot())
    decision = pdp.decide(_nobody(), served, NOW)
    assert decision.reason is reason


def _nobody() -> AccessRequest:
    from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest
    from authz_server.servers import wire

    request = CheckRequest()
    request.attributes.request.http.method = "GET"
    request.attributes.request.http.path = "/x"
    request.attributes.request.http.host = "x.example"
    request.attributes.request.http.headers[":path"] = "/x"
    return wire.access_request(request.SerializeToString())


def _der(*authorities: TrustDomainAuthority) -> bytes:
    return b"".join(a.root.public_bytes(Encoding.DER) for a in authorities)


def test_certificates_stand_end_to_end() -> None:
    assert split_certificates(_der(OURS, OTHERS, THEIRS)) == (OURS.root, OTHERS.root, THEIRS.root)
    assert split_certificates(b"") == ()


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"\x30",
        b"\x30\x80",
        b"\x30\x85\1\1\1\1\1",
        b"\x31\0",
        b"\x30\0",
        _der(OURS)[:-1],
        _der(OURS) + b"\0",
        b"\0" + _der(OURS),
        OURS.bundle_pem,
        _der(OURS) * 257,
    ],
)
def test_what_is_not_certificates_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidValueError):
        split_certificates(data)


def test_entries_of_another_use_are_ignored() -> None:
    key = json.loads(World().jwks())["keys"][0]
    keys = [
        key | {"use": "jwt-svid", "kid": "a"},
        key | {"use": "sig", "kid": "b"},
        key | {"use": "wit-svid", "kid": "c"},
        {name: value for name, value in key.items() if name != "use"} | {"kid": "d"},
        {"use": "x", "kty": "unknown"},
    ]
    data = json.dumps({"keys": keys, "spiffe_sequence": 3}).encode()
    found = parse_document(data, DOMAIN)
    assert [*found.bundle.jwt_keys] == ["a"]
    assert found.bundle.authorities == ()
    assert (found.sequence, found.refresh_hint_s) == (3, None)
    # The Workload API's key set has no `use`, and is of JWT-SVID keys alone.
    assert [*parse_jwt_keys(data)] == ["a", "d"]


def test_a_repeated_kid_is_refused() -> None:
    key = json.loads(World().jwks())["keys"][0] | {"use": "jwt-svid"}
    data = json.dumps({"keys": [key | {"kid": "a"}, key | {"kid": "a"}]}).encode()
    with pytest.raises(InvalidValueError, match="repeats"):
        parse_document(data, DOMAIN)
