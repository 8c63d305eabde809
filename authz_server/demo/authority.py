"""A trust domain in memory: signs X509-SVIDs on demand, for the demonstration and for tests.

The certificates have the shape SPIRE gives them: EC P-256, one URI name, critical key usage, both
extended key usages, no common name. Every part can be bent, so that tests can mint what a hostile
or careless authority would.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from authz_server.agent.svid import SigningKey, Svid
from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.core.trust import TrustBundle

_BACKDATED: Final = timedelta(seconds=60)  # for parties whose clocks run behind
_CA_LIFETIME: Final = timedelta(days=1)
SVID_LIFETIME: Final = timedelta(hours=1)  # the default of SPIRE
_KEY_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
_ENVOY_ESCAPES: Final = (("\n", "%0A"), (" ", "%20"), ("+", "%2B"), ("/", "%2F"), ("=", "%3D"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafProfile:
    """What a leaf certificate says of itself. The defaults are those of SPIRE."""

    dns_names: Sequence[str] = ()
    ip_addresses: Sequence[str] = ()
    is_ca: bool = False
    key_usage: frozenset[str] | None = frozenset({"digital_signature"})
    key_usage_critical: bool = True
    purposes: Sequence[x509.ObjectIdentifier] = (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = field(default=())  # value, critical


_SPIRE: Final = LeafProfile()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustDomainAuthority:
    """The signing keys of one trust domain: a root, and an intermediate unless switched off."""

    trust_domain: TrustDomain
    root: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]  # issuing one first
    _key: SigningKey  # of the issuing certificate

    @classmethod
    def create(
        cls,
        trust_domain: TrustDomain | str,
        *,
        intermediates: int = 0,
        now: datetime | None = None,
        lifetime: timedelta = _CA_LIFETIME,
    ) -> Self:
        """Return an authority with new keys, valid from a minute before `now` for `lifetime`."""
        domain = TrustDomain.parse(str(trust_domain))
        start = (now or datetime.now(UTC)) - _BACKDATED
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(f"root {domain}", None, key, start, start + lifetime)
        chain = [_as_authority(builder, domain).sign(key, hashes.SHA256())]
        for number in range(intermediates):
            own_key = ec.generate_private_key(ec.SECP256R1())
            issuer = chain[0].subject
            builder = _builder(f"{number} {domain}", issuer, own_key, start, start + lifetime)
            builder = _issued_by(_as_authority(builder, domain), key)
            chain.insert(0, builder.sign(key, hashes.SHA256()))
            key = own_key
        *below, root = chain
        return cls(trust_domain=domain, root=root, intermediates=tuple(below), _key=key)

    @property
    def bundle(self) -> TrustBundle:
        """The trust bundle: the root alone."""
        return TrustBundle(trust_domain=self.trust_domain, authorities=(self.root,))

    @property
    def bundle_pem(self) -> bytes:
        """The trust bundle as PEM."""
        return self.root.public_bytes(Encoding.PEM)

    def issue_svid(
        self,
        spiffe_id: SpiffeId | str,
        *,
        lifetime: timedelta = SVID_LIFETIME,
        now: datetime | None = None,
        key: SigningKey | None = None,
        profile: LeafProfile = _SPIRE,
    ) -> Svid:
        """Return an X509-SVID for `spiffe_id`, or `/path` within this domain, and its new key."""
        text = str(spiffe_id)
        uri = self.trust_domain.uri + text if text.startswith("/") else text
        return self.issue_leaf((uri,), lifetime=lifetime, now=now, key=key, profile=profile)

    def issue_leaf(
        self,
        uris: Sequence[str],
        *,
        lifetime: timedelta = SVID_LIFETIME,
        now: datetime | None = None,
        key: SigningKey | None = None,
        profile: LeafProfile = _SPIRE,
    ) -> Svid:
        """Return a leaf with any URI names, checked by nobody."""
        leaf_key = key or ec.generate_private_key(ec.SECP256R1())
        issuer = self.intermediates[0] if self.intermediates else self.root
        now = now or datetime.now(UTC)
        builder = _builder("workload", issuer.subject, leaf_key, now - _BACKDATED, now + lifetime)
        builder = _issued_by(_as_leaf(builder, uris, profile), self._key)
        leaf = builder.sign(self._key, hashes.SHA256())
        return Svid(certificates=(leaf, *self.intermediates), key=leaf_key)


def envoy_certificate(svid: Svid) -> str:
    """Return the leaf as Envoy writes `source.certificate`: PEM with five characters escaped."""
    text = svid.leaf.public_bytes(Encoding.PEM).decode("ascii")
    for character, escape in _ENVOY_ESCAPES:
        text = text.replace(character, escape)
    return text


def write_svid(svid: Svid, directory: Path, name: str = "svid") -> tuple[Path, Path]:
    """Write `<name>.pem` (leaf and intermediates) and `<name>.key.pem` (mode 0600); return both."""
    certificates, key = directory / f"{name}.pem", directory / f"{name}.key.pem"
    certificates.write_bytes(svid.cert_chain_pem)
    key.touch(mode=0o600)
    key.write_bytes(svid.key_pem)
    return certificates, key


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return a new RSA key."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def _builder(
    unit: str, issuer: x509.Name | None, key: SigningKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "demo"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
        ]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _issued_by(builder: x509.CertificateBuilder, key: SigningKey) -> x509.CertificateBuilder:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    return builder.add_extension(identifier, critical=False)


def _as_authority(builder: x509.CertificateBuilder, domain: TrustDomain) -> x509.CertificateBuilder:
    # X509-SVID §3.2: the id of a signing certificate has no path.
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(domain.uri)])
    usage = _key_usage(frozenset({"key_cert_sign", "crl_sign"}))
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(name, critical=False)
    )


def _as_leaf(
    builder: x509.CertificateBuilder, uris: Sequence[str], profile: LeafProfile
) -> x509.CertificateBuilder:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.DNSName(name) for name in profile.dns_names]
    names += [x509.IPAddress(ipaddress.ip_address(text)) for text in profile.ip_addresses]
    basic = x509.BasicConstraints(ca=profile.is_ca, path_length=None)
    builder = builder.add_extension(basic, critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if profile.key_usage is not None:
        usage = _key_usage(profile.key_usage)
        builder = builder.add_extension(usage, critical=profile.key_usage_critical)
    if profile.purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(profile.purposes), critical=False)
    for extension, critical in profile.extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder


def _key_usage(asserted: frozenset[str]) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in asserted for name in _KEY_USAGES})
