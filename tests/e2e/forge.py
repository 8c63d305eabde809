"""Certificates and tokens of any shape, well formed or not, under keys the mesh trusts.

Written from docs/delegation.md alone, apart from the code that makes real ones: it can say what
that code refuses to say, and the two agreeing on the valid case is a check of both.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "mesh.example"
ISSUER = "https://sts.mesh.example"
KID = "sts-1"
SUBJECT = "alice@example.org"
AUDIENCE = "https://tool.example"

Json = Mapping[str, object]


def spiffe(path: str) -> str:
    """Return the SPIFFE ID of `path` in the mesh's trust domain."""
    return f"spiffe://{TRUST_DOMAIN}/{path}"


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def b64(data: bytes) -> str:
    """Return unpadded base64url."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class Svid:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key as PEM, unencrypted."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def x5c(self) -> list[str]:
        """The JWS header member `x5c`."""
        return [
            base64.b64encode(self.certificate.public_bytes(serialization.Encoding.DER)).decode()
        ]


class Authority:
    """A certificate authority that signs whatever it is told to."""

    def __init__(self, name: str = TRUST_DOMAIN) -> None:
        self.key = new_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=12))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{name}")]),
                critical=False,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """The authority's certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        *names: x509.GeneralName | str,
        common_name: str = "",
        not_before: timedelta = timedelta(minutes=-5),
        not_after: timedelta = timedelta(hours=1),
        is_authority: bool = False,
        signs: bool = True,
    ) -> Svid:
        """Issue a certificate; a name given as text becomes a URI SAN, in any bytes."""
        key, now = new_key(), datetime.now(UTC)
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + not_before)
            .not_valid_after(now + not_after)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(_key_usage(authority=is_authority, signs=signs), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
                ),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        sans = [_uri(name) if isinstance(name, str) else name for name in names]
        if sans:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(sans), critical=not common_name
            )
        return Svid(builder.sign(self.key, hashes.SHA256()), key)


def _uri(text: str) -> x509.GeneralName:
    if text.isascii():
        return x509.UniformResourceIdentifier(text)
    # The library refuses what an IA5String cannot hold; a hostile authority does not ask it.
    return x509.UniformResourceIdentifier._init_without_validation(text)


def _key_usage(*, authority: bool, signs: bool = True) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not signs,
        encipher_only=False,
        decipher_only=False,
    )


def sign_es256(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """Return the JWS form of an ECDSA signature (RFC 7518 §3.4)."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def sign_hs256(secret: bytes, data: bytes) -> bytes:
    """Return an HMAC-SHA-256 over `data`."""
    mac = hmac.HMAC(secret, hashes.SHA256())
    mac.update(data)
    return mac.finalize()


def jws(
    header: Json | bytes, payload: Json | bytes, key: ec.EllipticCurvePrivateKey | bytes | None
) -> str:
    """Return a compact JWS. A key of bytes is an HMAC secret; None leaves the signature empty."""
    parts = [
        part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)
    ]
    signing_input = ".".join(map(b64, parts)).encode()
    match key:
        case None:
            signature = b""
        case bytes():
            signature = sign_hs256(key, signing_input)
        case _:
            signature = sign_es256(key, signing_input)
    return f"{signing_input.decode()}.{b64(signature)}"


@dataclass(frozen=True, slots=True)
class Forge:
    """The mesh's keys, and the valid claims that a test changes one at a time."""

    authority: Authority = field(default_factory=Authority)
    issuer_key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    @property
    def jwks(self) -> bytes:
        """The issuer's key set, as it would publish it."""
        numbers = self.issuer_key.public_key().public_numbers()
        x, y = (b64(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
        key = {"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": KID}
        return json.dumps({"keys": [key | {"x": x, "y": y}]}).encode()

    def root_header(self) -> dict[str, object]:
        """Return the header of a valid root."""
        return {"alg": "ES256", "typ": "txntoken+jwt", "kid": KID}

    def root_claims(self, agent: str, *, hops: int = 0) -> dict[str, object]:
        """Return the claims of a valid root for `agent`, made now."""
        now = int(datetime.now(UTC).timestamp())
        return {
            "iss": ISSUER,
            "aud": f"spiffe://{TRUST_DOMAIN}",
            "iat": now,
            "exp": now + 240,
            "txn": "7f1c2b6e-6f0a-4f0e-9b77-0d8f4d5c1e11",
            "jti": b64(hashlib.sha256(str(now).encode()).digest()[:12]),
            "sub": SUBJECT,
            "scope": "crm.read crm.export",
            "req_wl": agent,
            "act": {"iss": f"spiffe://{TRUST_DOMAIN}", "sub": agent, "sub_profile": "ai_agent"},
            "dlg": hops,
        }

    def root(self, agent: str, *, hops: int = 0) -> str:
        """Return a valid root for `agent`."""
        return jws(self.root_header(), self.root_claims(agent, hops=hops), self.issuer_key)

    def link_header(self, signer: Svid) -> dict[str, object]:
        """Return the header of a valid link."""
        return {"alg": "ES256", "typ": "delegation-link+jwt", "x5c": signer.x5c}

    def link_claims(self, parent: str, delegator: str, delegate: str) -> dict[str, object]:
        """Return the claims of a valid link after `parent`, from `delegator` to `delegate`."""
        before = json.loads(base64.urlsafe_b64decode(parent.split(".")[1] + "=="))
        now = int(datetime.now(UTC).timestamp())
        return {
            "iss": delegator,
            "sub": before["sub"],
            "txn": before["txn"],
            "may_act": {"sub": delegate, "sub_profile": "ai_agent"},
            "aud": [AUDIENCE],
            "scope": "crm.read",
            "iat": now,
            "exp": min(now + 120, before["exp"]),
            "jti": b64(hashlib.sha256(parent.encode()).digest()[:12]),
            "prh": b64(hashlib.sha256(parent.encode()).digest()),
            "dlg": before["dlg"] - 1,
        }

    def link(self, parent: str, signer: Svid, delegator: str, delegate: str) -> str:
        """Return a valid link after `parent`, signed by `signer`."""
        claims = self.link_claims(parent, delegator, delegate)
        return jws(self.link_header(signer), claims, signer.key)


def chain_header(links: Sequence[str]) -> str:
    """Return the value of `Delegation-Chain`."""
    return ", ".join(links)
