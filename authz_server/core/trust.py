"""Trust material: whose keys prove what. A change makes a new value with a new revision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from authz_server.core.spiffe import SpiffeId, TrustDomain

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


class RootKind(StrEnum):
    """What an issuer's root grants are. SECURITY: the operator says, never the token's sender."""

    TXN_TOKEN = "txn_token"  # noqa: S105 -- in a header of its own
    ACCESS_TOKEN = "access_token"  # noqa: S105 -- RFC 9068, as `Authorization: Bearer`


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """One configured issuer of root grants.

    `keys` maps `kid` to the key. SECURITY: a `kid` is a look-up in this issuer's own map and
    nothing else: no path, no URL, no other issuer's key.

    `audiences` are the values of `aud` that mean us; none: the trust domain. Of an issuer of access
    tokens, `agents` maps each `client_id` to the workload that the client is, and `subject_claim`
    names the claim with the subject.
    """

    issuer: str
    algorithms: frozenset[str]
    max_lifetime_s: int
    keys: Mapping[str, VerificationKey]
    kind: RootKind = RootKind.TXN_TOKEN
    audiences: frozenset[str] = frozenset()
    agents: Mapping[str, SpiffeId] = field(default_factory=lambda: MappingProxyType({}))
    subject_claim: str = "sub"


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

    @property
    def has_access_token_issuer(self) -> bool:
        """Whether a bearer token is a root grant here."""
        return any(issuer.kind is RootKind.ACCESS_TOKEN for issuer in self.issuers.values())
