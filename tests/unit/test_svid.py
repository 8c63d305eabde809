"""Who a certificate names, and which bundle may stand behind it."""

import base64
import hashlib
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from authz_server.agent.svid import Svid
from authz_server.core.errors import InvalidValueError, Reason
from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.core.strict_json import JsonValue
from authz_server.core.svid import (
    PeerIdentity,
    Signer,
    leaf_spiffe_id,
    parse_authorities,
    peer_identity,
    verify_signer,
)
from authz_server.core.trust import TrustBundle
from authz_server.demo.authority import LeafProfile, TrustDomainAuthority, envoy_certificate
from tests.harness import chains
from tests.harness.chains import (
    ASSISTANT,
    AUTHORITY,
    DOMAIN,
    NOW,
    PARTNER,
    PARTNER_AUTHORITY,
    STRANGER,
    reason_of,
)

HOUR = timedelta(hours=1)
A = str(ASSISTANT)


def leaf(*uris: str, profile: LeafProfile | None = None) -> Svid:
    return AUTHORITY.issue_leaf(uris, now=NOW, profile=profile or LeafProfile())


def peer(svid: Svid) -> PeerIdentity:
    return peer_identity(envoy_certificate(svid))


def test_the_identity_of_a_peer() -> None:
    svid = leaf(A)
    identity = peer(svid)
    assert identity.spiffe_id == ASSISTANT
    der = svid.leaf.public_bytes(Encoding.DER)
    assert identity.certificate_sha256 == hashlib.sha256(der).hexdigest()


def test_no_certificate_is_no_principal() -> None:
    assert reason_of(lambda: peer_identity("")) is Reason.NO_PRINCIPAL


def test_other_names_mean_nothing() -> None:
    names = LeafProfile(dns_names=("admin.td.example",), ip_addresses=("10.0.0.1", "::1"))
    assert peer(leaf(A, profile=names)).spiffe_id == ASSISTANT


def test_an_expired_peer_certificate_is_left_to_envoy() -> None:
    svid = AUTHORITY.issue_svid(A, now=NOW - 9 * HOUR, lifetime=HOUR)
    assert peer(svid).spiffe_id == ASSISTANT


BAD_PEERS: Mapping[str, Svid] = {
    "no URI name": leaf(profile=LeafProfile(dns_names=("td.example",))),
    "no names at all": leaf(),
    "two URI names": leaf(A, "spiffe://td.example/agent/admin"),
    "one URI name twice": leaf(A, A),
    "a foreign URI beside": leaf(A, "https://td.example/agent/a"),
    "https": leaf("https://td.example/agent/a"),
    "trailing slash": leaf("spiffe://td.example/agent/a/"),
    "percent-encoding": leaf("spiffe://td.example/agent/%61"),
    "port": leaf("spiffe://td.example:8080/a"),
    "empty trust domain": leaf("spiffe:///a"),
    "over 2048 bytes": leaf("spiffe://td.example/" + "a" * 3000),
    "semicolon": leaf("spiffe://td.example/agent/a;URI=spiffe://td.example/agent/admin"),
    "comma": leaf("spiffe://td.example/agent/a,spiffe://td.example/agent/admin"),
    "NUL": leaf("spiffe://td.example/agent/a\x00"),
    "newline": leaf("spiffe://td.example/agent/a\n"),
    "upper-case trust domain": leaf("spiffe://TD.example/agent/a"),
    "dot segment": leaf("spiffe://td.example/agent/../admin"),
    "trust domain only": leaf("spiffe://td.example"),
    "empty URI": leaf(""),
    "signing certificate": leaf(A, profile=LeafProfile(is_ca=True)),
    "no key usage": leaf(A, profile=LeafProfile(key_usage=None)),
    "key usage not critical": leaf(A, profile=LeafProfile(key_usage_critical=False)),
    "no digitalSignature": leaf(A, profile=LeafProfile(key_usage=frozenset({"key_agreement"}))),
    "keyCertSign": leaf(
        A, profile=LeafProfile(key_usage=frozenset({"digital_signature", "key_cert_sign"}))
    ),
    "cRLSign": leaf(A, profile=LeafProfile(key_usage=frozenset({"digital_signature", "crl_sign"}))),
    "for servers only": leaf(A, profile=LeafProfile(purposes=[ExtendedKeyUsageOID.SERVER_AUTH])),
    "for clients only": leaf(A, profile=LeafProfile(purposes=[ExtendedKeyUsageOID.CLIENT_AUTH])),
    "for code signing": leaf(A, profile=LeafProfile(purposes=[ExtendedKeyUsageOID.CODE_SIGNING])),
}


@pytest.mark.parametrize("svid", BAD_PEERS.values(), ids=BAD_PEERS)
def test_a_peer_that_is_no_svid(svid: Svid) -> None:
    assert reason_of(lambda: peer(svid)) is Reason.MALFORMED_PRINCIPAL


GOOD_PROFILES: Mapping[str, LeafProfile] = {
    "no extended key usage": LeafProfile(purposes=()),
    "a third purpose": LeafProfile(
        purposes=[*LeafProfile().purposes, ExtendedKeyUsageOID.CODE_SIGNING]
    ),
    "key agreement too": LeafProfile(key_usage=frozenset({"digital_signature", "key_agreement"})),
    "key encipherment too": LeafProfile(
        key_usage=frozenset({"digital_signature", "key_encipherment"})
    ),
    "DNS names": LeafProfile(dns_names=("a.td.example", "spiffe---td.example")),
}


@pytest.mark.parametrize("profile", GOOD_PROFILES.values(), ids=GOOD_PROFILES)
def test_what_svids_may_vary_in(profile: LeafProfile) -> None:
    svid = leaf(A, profile=profile)
    assert peer(svid).spiffe_id == ASSISTANT
    assert signer(svid).spiffe_id == ASSISTANT


def test_look_alikes_are_other_identities() -> None:
    assert peer(leaf("spiffe://td.examp1e/a")).spiffe_id.trust_domain != DOMAIN


def test_any_percent_encoding_of_one_certificate_is_taken() -> None:
    """Proxies differ in what they escape; the certificate is the same."""
    spellings = {
        GOOD,
        urllib.parse.quote(PEM),
        urllib.parse.quote(PEM, safe=""),
        GOOD.replace("%2B", "%2b").replace("%0A", "%0a"),
        GOOD.replace("MII", "%4DII", 1),
    }
    assert len({peer_identity(text) for text in spellings}) == 1
    assert len(spellings) > 3


PEM = chains.svid(ASSISTANT).leaf.public_bytes(Encoding.PEM).decode()
GOOD = envoy_certificate(chains.svid(ASSISTANT))
EMPTY = "-----BEGIN%20CERTIFICATE-----%0A%0A-----END%20CERTIFICATE-----%0A"
BAD_TEXTS: Mapping[str, str] = {
    "not PEM": "hello",
    "not escaped": PEM,
    "a form blank": GOOD.replace("%20", "+", 1),
    "a cut escape": GOOD[:-2],
    "two certificates": GOOD + GOOD,
    "a certificate and a key": GOOD + GOOD.replace("CERTIFICATE", "PRIVATE%20KEY"),
    "text before": "a%0A" + GOOD,
    "text after": GOOD + "a",
    "blank line after": GOOD + "%0A",
    "NUL": GOOD.replace("MII", "%00MII", 1),
    "CRLF": GOOD.replace("%0A", "%0D%0A"),
    "another label": GOOD.replace("CERTIFICATE", "TRUSTED%20CERTIFICATE"),
    "no body": EMPTY,
    "a body that is no base64": GOOD.replace("MII", "=II", 1),
    "a body that is no certificate": EMPTY.replace("%0A%0A", "%0AMIIB%0A"),
    "over 32 KiB": GOOD.replace("MII", "MII" + "A" * 32768, 1),
    "not ASCII": GOOD.replace("MII", "M\u0131I", 1),
}


def test_a_certificate_that_is_too_long() -> None:
    padding = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(24000))
    assert reason_of(lambda: peer(leaf(A, profile=LeafProfile(extensions=[(padding, False)])))) is (
        Reason.MALFORMED_PRINCIPAL
    )
    shorter = x509.UnrecognizedExtension(padding.oid, bytes(20000))
    assert peer(leaf(A, profile=LeafProfile(extensions=[(shorter, False)]))).spiffe_id == ASSISTANT


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_serial_number_that_is_not_positive() -> None:
    der = bytearray(chains.svid(ASSISTANT).leaf.public_bytes(Encoding.DER))
    # Certificate, TBSCertificate, version [0] INTEGER 2, then the serial number.
    start = der.index(b"\xa0\x03\x02\x01\x02\x02") + 7
    der[start] = 0x80
    certificate = x509.load_der_x509_certificate(bytes(der))
    assert certificate.serial_number < 0
    with pytest.raises(InvalidValueError, match="serial"):
        leaf_spiffe_id(certificate)


def test_a_certificate_has_one_spelling() -> None:
    text = ""
    while not text.endswith("="):  # spare bits exist for two lengths out of three
        svid = leaf(A)
        text = base64.b64encode(svid.leaf.public_bytes(Encoding.DER)).decode()
    body = text.rstrip("=")
    respelled = body[:-1] + chr(ord(body[-1]) + 1) + "=" * (len(text) - len(body))
    assert base64.b64decode(respelled) == base64.b64decode(text)
    assert reason_of(lambda: signer_of([text])) is None
    assert reason_of(lambda: signer_of([respelled])) is Reason.BAD_HEADER
    pem = "-----BEGIN%20CERTIFICATE-----%0A{}%0A-----END%20CERTIFICATE-----"
    for spelling, expected in ((text, None), (respelled, Reason.MALFORMED_PRINCIPAL)):
        escaped = spelling.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
        envoy = pem.format(escaped)
        assert reason_of(lambda envoy=envoy: peer_identity(envoy)) is expected  # type: ignore[misc]


@pytest.mark.parametrize("text", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_a_peer_text_that_envoy_does_not_write(text: str) -> None:
    assert text != GOOD
    assert reason_of(lambda: peer_identity(text)) is Reason.MALFORMED_PRINCIPAL


def test_faults_are_not_remembered_and_identities_are() -> None:
    peer_identity.cache_clear()
    for _ in range(2):
        reason_of(lambda: peer_identity("hello"))
    assert peer_identity.cache_info().currsize == 0
    assert peer_identity(GOOD) is peer_identity(GOOD)


def x5c(*certificates: x509.Certificate) -> JsonValue:
    return [base64.b64encode(c.public_bytes(Encoding.DER)).decode() for c in certificates]


BUNDLES = {DOMAIN: AUTHORITY.bundle, PARTNER: PARTNER_AUTHORITY.bundle}
DELEGATORS = frozenset({DOMAIN, PARTNER})


def signer(
    svid: Svid,
    *,
    at: datetime = NOW,
    bundles: Mapping[TrustDomain, TrustBundle] = BUNDLES,
    delegators: frozenset[TrustDomain] = DELEGATORS,
) -> Signer:
    return verify_signer(
        x5c(*svid.certificates), bundles=bundles, delegator_trust_domains=delegators, at=at
    )


def signer_of(value: JsonValue) -> Signer:
    return verify_signer(value, bundles=BUNDLES, delegator_trust_domains=DELEGATORS, at=NOW)


def test_a_signer() -> None:
    svid = chains.svid(ASSISTANT)
    found = signer(svid)
    assert found.spiffe_id == ASSISTANT
    assert found.public_key == svid.leaf.public_key()
    assert found.certificate_sha256 == peer(svid).certificate_sha256
    assert found.not_after == svid.leaf.not_valid_after_utc


@pytest.mark.parametrize("intermediates", [1, 2, 3])
def test_a_path_through_intermediates(intermediates: int) -> None:
    authority = TrustDomainAuthority.create(DOMAIN, intermediates=intermediates, now=NOW)
    svid = authority.issue_svid(ASSISTANT, now=NOW)
    bundles = {DOMAIN: authority.bundle}
    assert signer(svid, bundles=bundles).spiffe_id == ASSISTANT
    without = replace(svid, certificates=svid.certificates[:-1])
    assert reason_of(lambda: signer(without, bundles=bundles)) is Reason.UNKNOWN_KEY


def test_the_times_are_those_of_the_whole_path() -> None:
    authority = TrustDomainAuthority.create(DOMAIN, now=NOW, lifetime=HOUR)
    svid = authority.issue_svid(ASSISTANT, now=NOW, lifetime=2 * HOUR)
    found = signer(svid, bundles={DOMAIN: authority.bundle})
    assert found.not_after == authority.root.not_valid_after_utc < svid.leaf.not_valid_after_utc
    assert found.not_before == authority.root.not_valid_before_utc


def test_a_partner_cannot_mint_our_ids() -> None:
    svid = PARTNER_AUTHORITY.issue_svid(ASSISTANT, now=NOW)
    assert reason_of(lambda: signer(svid)) is Reason.UNKNOWN_KEY


def test_we_cannot_mint_a_partners_ids() -> None:
    svid = AUTHORITY.issue_svid(chains.workload("agent/a", PARTNER), now=NOW)
    assert reason_of(lambda: signer(svid)) is Reason.UNKNOWN_KEY


def test_an_authority_of_the_same_name_is_another() -> None:
    impostor = TrustDomainAuthority.create(DOMAIN, now=NOW)
    assert impostor.root.subject == AUTHORITY.root.subject
    svid = impostor.issue_svid(ASSISTANT, now=NOW)
    assert reason_of(lambda: signer(svid)) is Reason.UNKNOWN_KEY
    with_root = replace(svid, certificates=(*svid.certificates, impostor.root))
    assert reason_of(lambda: signer(with_root)) is Reason.UNKNOWN_KEY


def test_a_leaf_cannot_sign_a_leaf() -> None:
    parent = chains.svid(ASSISTANT)
    rogue = replace(AUTHORITY, intermediates=(parent.leaf,), _key=parent.key)
    svid = rogue.issue_svid("/agent/admin", now=NOW)
    assert len(svid.certificates) == 2
    assert reason_of(lambda: signer(svid)) is Reason.UNKNOWN_KEY


def test_an_unknown_critical_extension_breaks_the_path() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    svid = leaf(A, profile=LeafProfile(extensions=[(unknown, True)]))
    assert reason_of(lambda: signer(svid)) is Reason.UNKNOWN_KEY
    harmless = leaf(A, profile=LeafProfile(extensions=[(unknown, False)]))
    assert signer(harmless).spiffe_id == ASSISTANT


def test_an_empty_bundle_revokes_the_domain() -> None:
    bundles = {DOMAIN: TrustBundle(trust_domain=DOMAIN, authorities=())}
    call = lambda: signer(chains.svid(ASSISTANT), bundles=bundles)  # noqa: E731
    assert reason_of(call) is Reason.UNKNOWN_KEY


def test_a_domain_without_a_bundle_or_not_a_delegator() -> None:
    stranger = TrustDomainAuthority.create(STRANGER, now=NOW).issue_svid("/a", now=NOW)
    assert reason_of(lambda: signer(stranger)) is Reason.UNKNOWN_TRUST_DOMAIN
    ours = chains.svid(ASSISTANT)
    assert (
        reason_of(lambda: signer(ours, delegators=frozenset({PARTNER})))
        is Reason.UNKNOWN_TRUST_DOMAIN
    )
    listed = frozenset({STRANGER})
    assert reason_of(lambda: signer(stranger, delegators=listed)) is Reason.UNKNOWN_TRUST_DOMAIN


def test_the_leaf_must_be_in_time() -> None:
    svid = chains.svid(ASSISTANT)
    start, end = svid.leaf.not_valid_before_utc, svid.leaf.not_valid_after_utc
    assert signer(svid, at=start).spiffe_id == signer(svid, at=end).spiffe_id
    second = timedelta(seconds=1)
    assert reason_of(lambda: signer(svid, at=start - second)) is Reason.NOT_YET_VALID
    assert reason_of(lambda: signer(svid, at=end + second)) is Reason.EXPIRED


def test_the_path_must_be_in_time() -> None:
    authority = TrustDomainAuthority.create(DOMAIN, now=NOW, lifetime=HOUR)
    svid = authority.issue_svid(ASSISTANT, now=NOW, lifetime=9 * HOUR)
    bundles = {DOMAIN: authority.bundle}
    call = lambda: signer(svid, at=NOW + 2 * HOUR, bundles=bundles)  # noqa: E731
    assert reason_of(call) is Reason.UNKNOWN_KEY


@pytest.mark.parametrize("name", [n for n in BAD_PEERS if n not in {"over 2048 bytes"}])
def test_what_is_no_svid_signs_no_link(name: str) -> None:
    assert reason_of(lambda: signer(BAD_PEERS[name])) is Reason.BAD_HEADER


LEAF_64 = base64.b64encode(chains.svid(ASSISTANT).leaf.public_bytes(Encoding.DER)).decode()
BAD_X5C: Sequence[JsonValue] = [
    None,
    LEAF_64,
    {},
    [],
    [LEAF_64] * 5,
    [1],
    [[LEAF_64]],
    [""],
    ["AAAA"],
    [LEAF_64.rstrip("=") + "\n"],
    [LEAF_64[:-4]],
    [LEAF_64.replace("/", "_").replace("+", "-") + "_"],
    ["é" + LEAF_64],
    [PEM],
    [LEAF_64, "AAAA"],
]


@pytest.mark.parametrize("value", BAD_X5C)
def test_x5c_that_is_no_list_of_certificates(value: JsonValue) -> None:
    assert reason_of(lambda: signer_of(value)) is Reason.BAD_HEADER


def test_a_key_no_link_can_be_signed_with() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    svid = AUTHORITY.issue_svid(ASSISTANT, now=NOW, key=key)  # type: ignore[arg-type]
    assert reason_of(lambda: signer(svid)) is Reason.BAD_HEADER
    assert peer(svid).spiffe_id == ASSISTANT, "Envoy may speak TLS with it all the same"


def test_authorities_of_a_bundle_file() -> None:
    other = TrustDomainAuthority.create(DOMAIN, intermediates=1, now=NOW)
    pem = b"# rotation in progress\n" + AUTHORITY.bundle_pem + other.bundle_pem
    assert parse_authorities(pem) == (AUTHORITY.root, other.root)
    assert parse_authorities(pem + other.bundle_pem) == (AUTHORITY.root, other.root)
    intermediate = other.intermediates[0]
    assert parse_authorities(intermediate.public_bytes(Encoding.PEM)) == (intermediate,)


def test_what_is_no_bundle_file() -> None:
    svid = chains.svid(ASSISTANT)
    cut = AUTHORITY.bundle_pem[:-40]
    for pem in (b"", b"hello", cut, svid.cert_chain_pem, AUTHORITY.bundle_pem + svid.key_pem):
        with pytest.raises(InvalidValueError):
            parse_authorities(pem)
    with pytest.raises(InvalidValueError):
        parse_authorities(AUTHORITY.bundle_pem + svid.cert_chain_pem)
    for usage in (None, frozenset({"digital_signature"})):
        weak = leaf(A, profile=LeafProfile(is_ca=True, key_usage=usage))
        with pytest.raises(InvalidValueError, match="sign others"):
            parse_authorities(weak.cert_chain_pem)


def test_rotation_overlap_accepts_both() -> None:
    new = TrustDomainAuthority.create(DOMAIN, now=NOW)
    both = TrustBundle(trust_domain=DOMAIN, authorities=(AUTHORITY.root, new.root))
    for authority in (AUTHORITY, new):
        svid = authority.issue_svid(ASSISTANT, now=NOW)
        assert signer(svid, bundles={DOMAIN: both}).spiffe_id == ASSISTANT


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_keys_of_both_curves(curve: ec.EllipticCurve) -> None:
    svid = AUTHORITY.issue_svid(ASSISTANT, now=NOW, key=ec.generate_private_key(curve))
    assert signer(svid).spiffe_id == SpiffeId.parse(A)
