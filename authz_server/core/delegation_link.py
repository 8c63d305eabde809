"""A delegation link: one hop, signed offline by the delegator with the key of its own X509-SVID.

The form is ours (`delegation-link+jwt`), so the set of claims is closed: a member we do not know
may be a restriction, and a restriction must not be ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from authz_server.core.authorization_details import all_covered
from authz_server.core.chain import DelegationPolicy, Grant
from authz_server.core.claims import Claims, Validity
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.jose import CompactJws, encode_base64url, verify_signature
from authz_server.core.root_grant import ProvedToken
from authz_server.core.spiffe import SpiffeId
from authz_server.core.svid import Signer, verify_signer
from authz_server.core.trust import TrustMaterial

LINK_TYPE: Final = "delegation-link+jwt"
# One algorithm per kind of SVID key. RS256 is left to old issuers.
LINK_ALGORITHMS: Final = frozenset({"ES256", "ES384", "PS256"})
_MEMBERS = frozenset(
    {"iss", "sub", "txn", "may_act", "aud", "scope", "iat", "nbf", "exp", "jti", "prh", "dlg"}
) | {"authorization_details"}
_MAY_ACT_MEMBERS = frozenset({"iss", "sub", "sub_profile"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkContext:
    """What a link is verified against, besides the token before it."""

    trust: TrustMaterial
    policy: DelegationPolicy
    now: datetime


def verify_link(
    text: str, *, parent: ProvedToken, actors: frozenset[str], context: LinkContext
) -> ProvedToken:
    """Return the link that `text` carries, proved to follow `parent` and to narrow it.

    `actors` are all earlier actors of the chain. The delegate may be of any trust domain: naming
    it proves nothing, it will have to show an X509-SVID at a handshake itself. The grant's times
    are cut to those of the signer's certificate path, so that checking them again later needs no
    certificate.

    Not checked: whether the grant is in time (`delegation.check_times`).

    Raises `RequestFault`: `OVERSIZE`, `MALFORMED_TOKEN`, `BAD_HEADER`, `CHAIN_BROKEN`,
    `UNKNOWN_TRUST_DOMAIN`, `UNKNOWN_KEY`, `EXPIRED`, `NOT_YET_VALID`, `BAD_SIGNATURE`,
    `LIFETIME_TOO_LONG`, `SCOPE_WIDENED`, `CHAIN_TOO_DEEP`, `CHAIN_CYCLE`.
    """
    jws = CompactJws.parse(text)
    claims = Claims(jws.payload)
    signer = _verify_signature(jws, claims, parent.grant, context)
    if not claims.members.keys() <= _MEMBERS:
        raise RequestFault(Reason.MALFORMED_TOKEN, "link has a claim not understood")
    _check_continuity(claims, parent)
    validity = _validity(claims, parent, signer, context.policy)
    not_before, expires_at = _cut(validity, parent.grant, signer, context.policy.skew_s)
    grant = Grant(
        delegator=str(signer.spiffe_id),
        delegate=_delegate(claims, actors),
        subject=parent.grant.subject,
        txn=parent.grant.txn,
        scope=_scope(claims, parent.grant),
        audience=_audience(claims, parent.grant),
        details=_details(claims, parent.grant),
        issued_at=validity.issued_at,
        not_before=not_before,
        expires_at=expires_at,
        hops_left=_hops(claims, parent.grant),
        jti=claims.text("jti"),
        kid=None,
        proof=f"x509-svid {signer.certificate_sha256}",
        certificate_sha256=signer.certificate_sha256,
        token_sha256=jws.digest.hex(),
    )
    return ProvedToken(grant=grant, digest=jws.digest, expires_claim=validity.expires_at)


def _verify_signature(
    jws: CompactJws, claims: Claims, parent: Grant, context: LinkContext
) -> Signer:
    """Prove that the delegate of the token before this one signed it."""
    algorithm = jws.check_header(typ=LINK_TYPE, key_member="x5c", algorithms=LINK_ALGORITHMS)
    if claims.text("iss") != str(parent.delegate):
        raise RequestFault(Reason.CHAIN_BROKEN, "link is not from the delegate before it")
    signer = verify_signer(
        jws.header["x5c"],
        bundles=context.trust.bundles,
        delegator_trust_domains=context.policy.delegator_trust_domains,
        at=context.now,
    )
    if signer.spiffe_id != parent.delegate:
        raise RequestFault(Reason.CHAIN_BROKEN, "link's certificate is not its issuer's")
    verify_signature(jws, algorithm=algorithm, key=signer.public_key)
    return signer


def _check_continuity(claims: Claims, parent: ProvedToken) -> None:
    if claims.text("prh") != encode_base64url(parent.digest):
        raise RequestFault(Reason.CHAIN_BROKEN, "link does not follow the token before it")
    if claims.text("sub") != parent.grant.subject or claims.text("txn") != parent.grant.txn:
        raise RequestFault(Reason.CHAIN_BROKEN, "link is for another subject or transaction")


def _validity(
    claims: Claims, parent: ProvedToken, signer: Signer, policy: DelegationPolicy
) -> Validity:
    validity = claims.validity(policy.link_lifetime_s_max)
    if validity.expires_at > parent.expires_claim:
        raise RequestFault(Reason.LIFETIME_TOO_LONG, "link outlives the token before it")
    if validity.expires_at > signer.not_after.timestamp():
        raise RequestFault(Reason.LIFETIME_TOO_LONG, "link outlives its signer's certificate")
    return validity


def _cut(validity: Validity, parent: Grant, signer: Signer, skew_s: int) -> tuple[int, int]:
    """Return the earliest and latest second at which the grant counts.

    The leeway is for token times alone. What is taken off a certificate's bounds here,
    `check_times` adds back, so those bounds hold to the second.
    """
    path_start = int(signer.not_before.timestamp()) + skew_s
    path_end = int(signer.not_after.timestamp()) - skew_s
    return (
        max(validity.not_before, path_start),
        min(validity.expires_at, path_end, parent.expires_at),
    )


def _delegate(claims: Claims, actors: frozenset[str]) -> SpiffeId:
    may_act = claims.child("may_act")  # RFC 8693 §4.4
    if not may_act.members.keys() <= _MAY_ACT_MEMBERS:
        raise RequestFault(Reason.MALFORMED_TOKEN, "link's `may_act` has a member not understood")
    delegate = may_act.spiffe_id("sub")
    if may_act.optional_text("iss") not in {None, delegate.trust_domain.uri}:
        raise RequestFault(Reason.CHAIN_BROKEN, "link's delegate is not from its trust domain")
    if str(delegate) in actors:
        raise RequestFault(Reason.CHAIN_CYCLE, "link hands on to an earlier actor of the chain")
    return delegate


def _scope(claims: Claims, parent: Grant) -> frozenset[str]:
    scope = claims.scope()
    if not scope <= parent.scope:
        raise RequestFault(Reason.SCOPE_WIDENED, "link grants a scope the token before it lacks")
    return scope


def _audience(claims: Claims, parent: Grant) -> frozenset[str]:
    audience = claims.audiences()
    # A root, which no certificate signs, is for the whole trust domain: any audience is part of it.
    if parent.certificate_sha256 is not None and not audience <= parent.audience:
        raise RequestFault(Reason.SCOPE_WIDENED, "link is for an audience its parent is not for")
    return audience


def _details(claims: Claims, parent: Grant) -> tuple[Mapping[str, object], ...]:
    details = claims.details()
    if details is None:  # nothing said, nothing changed
        return parent.details
    if not all_covered(details, parent.details):
        raise RequestFault(
            Reason.SCOPE_WIDENED, "link's `authorization_details` exceed the token before it"
        )
    return details


def _hops(claims: Claims, parent: Grant) -> int:
    hops = claims.hops()
    if hops > parent.hops_left - 1:
        raise RequestFault(Reason.CHAIN_TOO_DEEP, "chain has more hops than its root allows")
    return hops
