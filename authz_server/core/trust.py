"""Trust material: whose keys prove what. A change makes a new value with a new revision."""

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from authz_server.core.spiffe import TrustDomain

VerificationKey = EllipticCurvePublicKey | RSAPublicKey | Ed25519PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """The X.509 authorities of one trust domain.

    SECURITY: a bundle validates ids of its own trust domain only (SPIFFE Federation §7.3). An empty
    bundle means every SVID of the domain is invalid (SPIFFE Trust Domain and Bundle §4).
    """

    trust_domain: TrustDomain
    authorities: tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """One configured issuer of root grants.

    `keys` maps `kid` to the key. SECURITY: a `kid` is a look-up in this issuer's own map and
    nothing else: no path, no URL, no other issuer's key.
    """

    issuer: str
    algorithms: frozenset[str]
    max_lifetime_s: int
    keys: Mapping[str, VerificationKey]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustMaterial:
    """All trust bundles and issuers under one revision (a digest of their content)."""

    revision: str
    bundles: Mapping[TrustDomain, TrustBundle]
    issuers: Mapping[str, Issuer]
