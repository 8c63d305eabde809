"""The root grant: `Txn-Token`, what a configured issuer says an agent may do for whom.

Claims follow draft-ietf-oauth-transaction-tokens; `act` follows RFC 8693 §4.1; `dlg` (hops still
allowed) is ours. Only the outermost actor is the current one and may be built upon.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from authz_server.core.chain import Grant
from authz_server.core.claims import Claims
from authz_server.core.errors import Reason, RequestFault, UnknownIssuerKey
from authz_server.core.jose import CompactJws, verify_signature
from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.core.trust import Issuer, RootKind

ROOT_TYPE: Final = "txntoken+jwt"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedToken:
    """One verified token, and what the link after it is measured against.

    `digest` is SHA-256 over the compact form, which the next link's `prh` must name.
    `expires_claim` is `exp` as signed; `grant.expires_at` may be earlier (see `delegation_link`).
    """

    grant: Grant
    digest: bytes
    expires_claim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RootGrant:
    """A verified root. `prior_actors` are the inner actors, oldest first (RFC 8693 §4.1).

    `actor_profile` is what the issuer says the actor is (`sub_profile`), such as `ai_agent`.
    """

    token: ProvedToken
    subject_issuer: str
    purpose: str | None
    prior_actors: tuple[str, ...]
    actor_profile: str | None


def verify_root(
    text: str,
    *,
    issuers: Mapping[str, Issuer],
    trust_domain: TrustDomain,
) -> RootGrant:
    """Return the root grant that `text` carries, signature and claims verified.

    Not checked: whether it is in time, and how many actors it has (`delegation.verify`).

    Raises `RequestFault`: `OVERSIZE`, `MALFORMED_TOKEN`, `BAD_HEADER`, `UNKNOWN_ISSUER`,
    `UNKNOWN_KEY`, `BAD_SIGNATURE`, `WRONG_AUDIENCE`, `LIFETIME_TOO_LONG`, `CHAIN_BROKEN`,
    `CHAIN_CYCLE`.
    """
    jws = CompactJws.parse(text)
    claims = Claims(jws.payload)
    issuer = configured_issuer(claims, issuers, RootKind.TXN_TOKEN)
    audiences = issuer.audiences or frozenset({trust_domain.uri})
    kid = verify_by_issuer(jws, issuer, typ=ROOT_TYPE)
    check_audience(claims, audiences)
    refuse_confirmation(claims)
    validity = claims.validity(issuer.max_lifetime_s)
    delegate, earlier = _actors(claims, issuer.issuer)
    grant = Grant(
        delegator=issuer.issuer,
        delegate=delegate,
        subject=claims.text("sub"),
        txn=claims.text("txn"),
        scope=claims.scope(),
        audience=audiences,
        details=claims.details() or (),
        issued_at=validity.issued_at,
        not_before=validity.not_before,
        expires_at=validity.expires_at,
        hops_left=claims.hops(),
        jti=claims.optional_text("jti"),
        kid=kid,
        proof=f"issuer-key {kid}",
        certificate_sha256=None,
        token_sha256=jws.digest.hex(),
    )
    return RootGrant(
        token=ProvedToken(grant=grant, digest=jws.digest, expires_claim=validity.expires_at),
        subject_issuer=issuer.issuer,
        purpose=claims.child("tctx").optional_text("purpose") if "tctx" in claims else None,
        prior_actors=earlier,
        actor_profile=claims.child("act").optional_text("sub_profile"),
    )


def configured_issuer(claims: Claims, issuers: Mapping[str, Issuer], kind: RootKind) -> Issuer:
    """Return the issuer that `claims` name, if it is one of `kind`.

    Raises `RequestFault`: `UNKNOWN_ISSUER`.
    """
    issuer = issuers.get(claims.text("iss"))
    if issuer is None or issuer.kind is not kind:
        raise RequestFault(Reason.UNKNOWN_ISSUER, "root grant is from an issuer not configured")
    return issuer


def verify_by_issuer(jws: CompactJws, issuer: Issuer, *, typ: str) -> str:
    """Check header and signature; return the key id.

    Raises `RequestFault`: `BAD_HEADER`, `UNKNOWN_KEY` (as `UnknownIssuerKey`), `BAD_SIGNATURE`.
    """
    algorithm = jws.check_header(typ=typ, key_member="kid", algorithms=issuer.algorithms)
    kid = jws.header["kid"]
    if not isinstance(kid, str):
        raise RequestFault(Reason.BAD_HEADER, "root grant's `kid` is not a string")
    # SECURITY: the only use of `kid` (RFC 8725 §3.10): a look-up among this issuer's own keys.
    key = issuer.keys.get(kid)
    if key is None:
        raise UnknownIssuerKey(issuer.issuer)
    verify_signature(jws, algorithm=algorithm, key=key)
    return kid


def check_audience(claims: Claims, audiences: frozenset[str]) -> None:
    """Check that `aud` names us and nobody else. Raises `RequestFault`: `WRONG_AUDIENCE`."""
    # RFC 8725 §3.9, and no strangers beside us: a token good elsewhere too can be replayed there.
    given = claims.members.get("aud")
    values = given if isinstance(given, list) else [given]
    known = [value for value in values if isinstance(value, str) and value in audiences]
    if not values or len(set(known)) != len(values):
        raise RequestFault(
            Reason.WRONG_AUDIENCE, "root grant's audience is not exactly what is expected here"
        )


def refuse_confirmation(claims: Claims) -> None:
    """Raise `RequestFault` (`MALFORMED_TOKEN`) for a token bound to a key (RFC 7800 §3)."""
    # `cnf` binds a token to a key its presenter must prove to hold. A binding that is not checked
    # must not pass; ours is the current actor against the mTLS identity.
    if "cnf" in claims:
        raise RequestFault(
            Reason.MALFORMED_TOKEN, "root grant demands a proof of possession not supported here"
        )


def _actors(claims: Claims, issuer: str) -> tuple[SpiffeId, tuple[str, ...]]:
    """Return the current actor and the prior ones, oldest first."""
    current = claims.child("act")
    refuse_confirmation(current)
    delegate = current.spiffe_id("sub")
    # draft-mcguinness-oauth-actor-profile §4.6: every actor names its issuer. A workload's is its
    # trust domain, or the issuer of the grant where that is who established it.
    if current.text("iss") not in {delegate.trust_domain.uri, issuer}:
        raise RequestFault(Reason.CHAIN_BROKEN, "root grant's actor is not from its trust domain")
    if claims.text("req_wl") != str(delegate):
        raise RequestFault(Reason.CHAIN_BROKEN, "root grant's `req_wl` and `act` disagree")
    return delegate, prior_actors(current, delegate)


def prior_actors(current: Claims, delegate: SpiffeId) -> tuple[str, ...]:
    """Return the actors nested in `current`, which is `delegate`'s `act`; oldest first.

    Raises `RequestFault`: `MALFORMED_TOKEN` for one without `iss` or `sub`, `CHAIN_CYCLE`.
    """
    actors = [str(delegate)]
    actor = current
    while "act" in actor:  # bounded by the depth of a token's JSON
        actor = actor.child("act")
        actor.text("iss")
        actors.append(actor.text("sub"))
    if len(set(actors)) != len(actors):
        raise RequestFault(Reason.CHAIN_CYCLE, "root grant names an actor twice")
    return tuple(reversed(actors[1:]))
