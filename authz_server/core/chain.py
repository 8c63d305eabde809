"""The delegation chain as data: what was proved, root first.

`delegation.verify` makes these values; nothing else does. The wire form and the order of
verification are described in `docs/delegation.md`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from authz_server.core import limits
from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.core.trust import RootKind


@dataclass(frozen=True, slots=True, kw_only=True)
class DelegationPolicy:
    """What the operator admits (`delegation` in the configuration)."""

    require: bool
    delegator_trust_domains: frozenset[TrustDomain]
    links_max: int = limits.LINKS_MAX
    actors_max: int = limits.ACTORS_MAX
    total_bytes_max: int = limits.CHAIN_TOTAL_BYTES_MAX
    skew_s: int = limits.CLOCK_SKEW_S
    link_lifetime_s_max: int = limits.LINK_LIFETIME_S_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentedChain:
    """The compact JWSs of one request, sizes and counts checked, nothing verified yet."""

    root: str
    links: tuple[str, ...]  # oldest first
    kind: RootKind = RootKind.TXN_TOKEN  # by where the root stood, and not by what it says


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one verified token (root or link) gives to its delegate. Times are Unix seconds."""

    delegator: str  # root: issuer; link: SPIFFE ID of the signer
    delegate: SpiffeId
    subject: str
    txn: str
    scope: frozenset[str]
    audience: frozenset[str]  # root: what means us, by default the trust domain's URI
    details: tuple[Mapping[str, object], ...]  # RFC 9396 authorization_details
    issued_at: int
    not_before: int
    expires_at: int  # never later than that of the grant before it, nor than the signing SVID
    hops_left: int  # `dlg`
    jti: str | None
    kid: str | None  # root: key id; link: None
    proof: str  # for a person: `issuer-key <kid>` | `x509-svid <sha256>`
    certificate_sha256: str | None  # link: signer's leaf certificate
    token_sha256: str  # hex


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedChain:
    """A root and its links: signatures, hashes, narrowing and structure proved.

    What time, caller and route decide is not proved yet: see `delegation.check_times` and
    `delegation.bind`. `prior_actors` are the informational inner `act` entries of the root
    (RFC 8693 §4.1), oldest first: they may deny or annotate, never allow.
    """

    grants: tuple[Grant, ...]  # root first; at least one
    subject_issuer: str
    purpose: str | None
    prior_actors: tuple[str, ...] = ()
    actor_profile: str | None = None  # the issuer's word on what the root's actor is

    @property
    def root(self) -> Grant:
        """The root grant."""
        return self.grants[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundChain:
    """A verified chain that is in time and belongs to this caller and this route.

    `authority` is the last grant that counts for the caller: the leaf in exercise mode, the one
    before the handing-off link in handoff mode. `actors` are root first and end with the caller.
    """

    chain: VerifiedChain
    mode: str  # exercise | handoff
    assurance: str  # sts | hop_signed
    authority: Grant
    actors: tuple[SpiffeId, ...]
