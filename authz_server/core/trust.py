"""Trust material: whose keys prove what. A change makes a new value with a new revision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from authz_server.core.spiffe import TrustDomain

VerificationKey = EllipticCurvePublicKey | RSAPublicKey | Ed25519PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """The authorities of one trust domain: for X509-SVIDs, and keys by `kid` for JWT-SVIDs.

    SECURITY: a bundle validates ids of its own trust domain only (SPIFFE Federation §7.3). An empty
    bundle means every SVID of the domain is invalid (SPIFFE Trust Domain and Bundle §4).
    """

    trust_domain: TrustDomain
    authorities: tuple[x509.Certificate, ...]
    jwt_keys: Mapping[str, VerificationKey] = field(default_factory=lambda: MappingProxyType({}))


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
    """All trust bundles and issuers under one revision (a digest of their content).

    `good_until` is when a source that has fallen silent makes the material too old to decide by;
    None while every source is in contact. It is no part of the content, hence of the revision.
    """

    revision: str
    bundles: Mapping[TrustDomain, TrustBundle]
    issuers: Mapping[str, Issuer]
    good_until: datetime | None = None
