"""X509-SVIDs: who a certificate says it is, and whether a trust bundle stands behind it.

Two uses. `peer_identity` reads the certificate that Envoy already verified at the handshake.
`verify_signer` takes certificates out of a delegation link, which nobody has verified, and
validates their path against the bundle of the one trust domain that may have issued them.
"""

import base64
import binascii
import hashlib
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from authz_server.core import limits
from authz_server.core.errors import InvalidValueError, Reason, RequestFault
from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.core.strict_json import JsonValue
from authz_server.core.trust import TrustBundle, VerificationKey

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

# `source.certificate` is "URL and PEM encoded". Envoy escapes newline, blank, `+`, `/` and `=`,
# other proxies that speak ext_authz a few more or less; any RFC 3986 §2.1 spelling of one PEM text
# is taken. `+` stands for itself, never for a blank.
_ESCAPED_PEM = re.compile(r"(?:[A-Za-z0-9+/=-]|%[0-7][0-9A-Fa-f])+")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=\n]+)\n-----END CERTIFICATE-----\n?")
# A parse costs 30 us, a hit 0.2 us. 2048 certificates of the usual 1.5 KiB are 3 MiB.
_PEER_CACHE_ENTRIES = 2048
_BOTH_ENDS = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
# Everything `cryptography` raises for a certificate whose DER, key or extensions are not sound. The
# warning is for serial numbers (RFC 5280 §4.1.2.2), and an exception where warnings are errors.
_UNSOUND = (
    ValueError,
    CryptographyDeprecationWarning,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
# The leaf rules are ours (X509-SVID §5.2) and run before this; what is left for the path builder is
# that a subject alternative name exists and that no unknown extension is critical (RFC 5280 §4.2).
_LEAF_POLICY: Final = ExtensionPolicy.permit_all().require_present(
    x509.SubjectAlternativeName, Criticality.AGNOSTIC, None
)
_CA_POLICY: Final = ExtensionPolicy.webpki_defaults_ca()


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerIdentity:
    """The identity in a peer certificate. `certificate_sha256` is hex, over the DER."""

    spiffe_id: SpiffeId
    certificate_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A link's signer, its path proved. The times bound the whole path relied on, root included."""

    spiffe_id: SpiffeId
    public_key: VerificationKey
    certificate_sha256: str
    not_before: datetime
    not_after: datetime


@lru_cache(maxsize=_PEER_CACHE_ENTRIES)
def peer_identity(url_encoded_pem: str) -> PeerIdentity:
    """Return the identity in `source.certificate`, the URL-encoded PEM of one leaf.

    Not checked: signature and path, which Envoy proved, and expiry, which it proved when the
    connection was made. A connection may outlive a short-lived SVID; bound it with
    `max_connection_duration`. Pure, so memoised by exact text; faults are not kept.

    Raises `RequestFault`: `NO_PRINCIPAL` for an empty text (no client certificate),
    `MALFORMED_PRINCIPAL` for anything but exactly one X509-SVID leaf in Envoy's spelling.
    """
    if not url_encoded_pem:
        raise RequestFault(Reason.NO_PRINCIPAL, "connection has no client certificate")
    try:
        der = _der_from_envoy(url_encoded_pem)
        certificate = x509.load_der_x509_certificate(der)
        spiffe_id = leaf_spiffe_id(certificate)
    except InvalidValueError as error:
        raise RequestFault(Reason.MALFORMED_PRINCIPAL, f"peer certificate: {error}") from error
    except _UNSOUND as error:
        raise RequestFault(Reason.MALFORMED_PRINCIPAL, "peer certificate is not sound") from error
    return PeerIdentity(spiffe_id=spiffe_id, certificate_sha256=hashlib.sha256(der).hexdigest())


def leaf_spiffe_id(certificate: x509.Certificate) -> SpiffeId:
    """Return the SPIFFE ID of an X509-SVID leaf, after the leaf rules of X509-SVID §4 and §5.2.

    DNS, IP and e-mail names mean nothing here, whatever they look like. Raises `InvalidValueError`,
    or what `cryptography` raises for an extension that cannot be parsed.
    """
    if certificate.serial_number <= 0:  # RFC 5280 §4.1.2.2: MUST be positive
        raise InvalidValueError("certificate has no positive serial number")
    basic = _extension(certificate, x509.BasicConstraints)
    if basic is not None and basic.value.ca:
        raise InvalidValueError("certificate is a signing certificate, not a leaf")
    _check_key_usage(_extension(certificate, x509.KeyUsage))
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    if purposes is not None and not _BOTH_ENDS.issubset(purposes.value):  # X509-SVID §4.4
        raise InvalidValueError("certificate is not for both client and server authentication")
    names = _extension(certificate, x509.SubjectAlternativeName)
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    if len(uris) != 1:  # X509-SVID §5.2: more than one MUST be rejected
        raise InvalidValueError("certificate does not have exactly one URI name")
    return SpiffeId.parse(uris[0])


def _check_key_usage(extension: x509.Extension[x509.KeyUsage] | None) -> None:
    # X509-SVID §4.3: MUST be set on all SVIDs, and MUST be marked critical.
    if extension is None or not extension.critical:
        raise InvalidValueError("certificate has no critical key usage")
    usage = extension.value
    if not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise InvalidValueError("certificate's key usage is not that of a leaf")


def _extension(
    certificate: x509.Certificate, kind: type[_Extension]
) -> x509.Extension[_Extension] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _der_from_envoy(text: str) -> bytes:
    if len(text) > limits.PEER_CERTIFICATE_BYTES_MAX:
        raise InvalidValueError("text is longer than 32 KiB")
    if not _ESCAPED_PEM.fullmatch(text):
        raise InvalidValueError("text is not a percent-encoded PEM certificate")
    block = _PEM.fullmatch(urllib.parse.unquote(text, "ascii"))
    if block is None:
        raise InvalidValueError("text is not exactly one PEM certificate")
    return _decode_base64(block[1].replace("\n", ""))


def _decode_base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InvalidValueError("certificate is not base64") from error
    if base64.b64encode(data) != text.encode("ascii"):
        raise InvalidValueError("certificate is not canonical base64")
    return data


def parse_authorities(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return the signing certificates of one trust domain from PEM text, in file order.

    Repeated certificates are kept once. Not checked: validity periods, which path validation
    judges at the time of each request.

    Raises `InvalidValueError` for no certificate at all (a truncated file must not pass for the
    deliberate revocation of a whole trust domain), a private key, or a certificate that may not
    sign others.
    """
    if b"PRIVATE KEY-----" in pem:
        raise InvalidValueError("trust bundle contains a private key")
    try:
        certificates = tuple(dict.fromkeys(x509.load_pem_x509_certificates(pem)))
        sound = [is_authority(certificate) for certificate in certificates]
    except _UNSOUND as error:
        raise InvalidValueError("trust bundle is not a sequence of PEM certificates") from error
    if not all(sound):
        raise InvalidValueError("trust bundle has a certificate that may not sign others")
    return certificates


def is_authority(certificate: x509.Certificate) -> bool:
    """Tell whether `certificate` may sign others: a CA with `keyCertSign` (X509-SVID §3, §4).

    Raises what `cryptography` raises for an extension that cannot be parsed.
    """
    basic = _extension(certificate, x509.BasicConstraints)
    usage = _extension(certificate, x509.KeyUsage)
    if basic is None or usage is None:
        return False
    return basic.value.ca and usage.value.key_cert_sign


def verify_signer(
    x5c: JsonValue,
    *,
    bundles: Mapping[TrustDomain, TrustBundle],
    delegator_trust_domains: frozenset[TrustDomain],
    at: datetime,
) -> Signer:
    """Return who stands behind `x5c` (RFC 7515 §4.1.6): a leaf X509-SVID, then intermediates.

    SECURITY: the path must end in the bundle of the leaf's own trust domain. A federated domain's
    authority can so never vouch for an id of ours, nor ours for theirs (SPIFFE Federation §7.3).
    URI name constraints are not supported by `cryptography` and fail closed.

    Raises `RequestFault`: `BAD_HEADER` for an ill-formed `x5c` or a certificate that is no
    X509-SVID leaf, `UNKNOWN_TRUST_DOMAIN` for a domain without a bundle or not among the
    delegators, `EXPIRED` and `NOT_YET_VALID` for the leaf, `UNKNOWN_KEY` when no path is found.
    """
    try:
        leaf, *intermediates = _certificates(x5c)
        spiffe_id = leaf_spiffe_id(leaf)
        public_key = leaf.public_key()
    except InvalidValueError as error:
        raise RequestFault(Reason.BAD_HEADER, f"link's `x5c`: {error}") from error
    except _UNSOUND as error:
        raise RequestFault(Reason.BAD_HEADER, "link's `x5c` has an unsound certificate") from error
    if not isinstance(public_key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise RequestFault(Reason.BAD_HEADER, "link's signer has a key of an unsupported type")
    bundle = bundles.get(spiffe_id.trust_domain)
    if bundle is None or spiffe_id.trust_domain not in delegator_trust_domains:
        raise RequestFault(
            Reason.UNKNOWN_TRUST_DOMAIN, "link's signer is of a trust domain that may not delegate"
        )
    path = _verify_path(leaf, intermediates, bundle, at)
    return Signer(
        spiffe_id=spiffe_id,
        public_key=public_key,
        certificate_sha256=leaf.fingerprint(hashes.SHA256()).hex(),
        not_before=max(certificate.not_valid_before_utc for certificate in path),
        not_after=min(certificate.not_valid_after_utc for certificate in path),
    )


def verify_peer(
    leaf: x509.Certificate,
    intermediates: list[x509.Certificate],
    *,
    bundles: Mapping[TrustDomain, TrustBundle],
    at: datetime,
) -> SpiffeId:
    """Return who a TLS peer is, its path proved against the bundle of its own trust domain.

    A TLS library validates against one pool of authorities; this tells the domains in it apart.
    Raises `InvalidValueError`, or `RequestFault` where a link's signer would be refused.
    """
    try:
        spiffe_id = leaf_spiffe_id(leaf)
    except _UNSOUND as error:
        raise InvalidValueError("certificate is not that of an X509-SVID leaf") from error
    bundle = bundles.get(spiffe_id.trust_domain)
    if bundle is None:
        raise InvalidValueError("trust domain of the certificate has no bundle")
    _verify_path(leaf, intermediates, bundle, at)
    return spiffe_id


def _certificates(x5c: JsonValue) -> list[x509.Certificate]:
    if not isinstance(x5c, list) or not 0 < len(x5c) <= limits.X5C_CERTIFICATES_MAX:
        raise InvalidValueError("not a list of 1 to 4 certificates")
    return [x509.load_der_x509_certificate(_der_from_x5c(entry)) for entry in x5c]


def _der_from_x5c(entry: JsonValue) -> bytes:
    if not isinstance(entry, str) or not entry.isascii():
        raise InvalidValueError("certificate is not base64")
    return _decode_base64(entry)


def _verify_path(
    leaf: x509.Certificate,
    intermediates: list[x509.Certificate],
    bundle: TrustBundle,
    at: datetime,
) -> list[x509.Certificate]:
    """Return the proved path, leaf first and trust anchor last (RFC 5280 §6)."""
    # Told apart from a missing path because a caller can do something about it: renew.
    if at > leaf.not_valid_after_utc:
        raise RequestFault(Reason.EXPIRED, "link's signer certificate has expired")
    if at < leaf.not_valid_before_utc:
        raise RequestFault(Reason.NOT_YET_VALID, "link's signer certificate is not valid yet")
    if not bundle.authorities:  # SPIFFE Trust Domain and Bundle §4: every SVID is invalid
        raise RequestFault(Reason.UNKNOWN_KEY, "trust domain of the link's signer is revoked")
    verifier = (
        PolicyBuilder()
        .store(Store(list(bundle.authorities)))
        .time(at.astimezone(UTC))
        .max_chain_depth(limits.X5C_CERTIFICATES_MAX - 1)
        .extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICY)
        .build_client_verifier()
    )
    try:
        return verifier.verify(leaf, intermediates).chain
    except (VerificationError, *_UNSOUND) as error:
        raise RequestFault(
            Reason.UNKNOWN_KEY, "link's signer has no path to its trust domain's bundle"
        ) from error
