"""Who answers an escalation over HTTP, by an OIDC token: an ID token or an RFC 9068 access token.

Verified with the same strict JWS layer as delegation tokens, and kept apart from them: a root grant
or a link is never an approver's proof, and a token that says somebody acts for its subject is none
either. An agent that holds a person's delegated token must not approve in that person's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from authz_server.core import limits
from authz_server.core.claims import Claims
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.jose import CompactJws, verify_signature
from authz_server.core.trust import Issuer

# `x5t` names a certificate by its digest and is added by some issuers; it is not used.
_HEADER_MEMBERS: Final = frozenset({"alg", "kid", "typ", "x5t", "x5t#S256"})
# RFC 7519 §5.1 recommends `JWT`; RFC 9068 §2.1 wants `at+jwt`. An ID token may have none.
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_EMAIL: Final = "email"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApproverIssuer:
    """One issuer that says who people are. `name_claim` holds the name that groups use."""

    issuer: Issuer
    audiences: frozenset[str]
    name_claim: str  # email | sub | preferred_username


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedApprover:
    """A person, by the name that groups use, and what proved it."""

    name: str
    kid: str
    jti: str | None


def verify_approver_token(
    text: str, *, issuers: Mapping[str, ApproverIssuer], now: datetime
) -> ProvedApprover:
    """Return who the token `text` is about; `issuers` are by their exact `iss`.

    Raises `RequestFault`: `OVERSIZE`, `MALFORMED_TOKEN`, `BAD_HEADER`, `UNKNOWN_ISSUER`,
    `UNKNOWN_KEY`, `BAD_SIGNATURE`, `WRONG_AUDIENCE`, `EXPIRED`, `NOT_YET_VALID`,
    `LIFETIME_TOO_LONG`.
    """
    jws = CompactJws.parse(text)
    claims = Claims(jws.payload)
    trusted = issuers.get(claims.text("iss"))
    if trusted is None:
        raise RequestFault(Reason.UNKNOWN_ISSUER, "token is from an issuer not configured")
    kid = _verify(jws, trusted.issuer)
    if trusted.audiences.isdisjoint(_audiences(claims)):
        raise RequestFault(Reason.WRONG_AUDIENCE, "token is not for this server")
    _check_times(claims, trusted.issuer.max_lifetime_s, now)
    _refuse_delegated(claims)
    return ProvedApprover(
        name=_name(claims, trusted.name_claim), kid=kid, jti=claims.optional_text("jti")
    )


def _verify(jws: CompactJws, issuer: Issuer) -> str:
    """Check header and signature; return the key id."""
    header = jws.header
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not header.keys() <= _HEADER_MEMBERS or not isinstance(kid, str):
        raise RequestFault(Reason.BAD_HEADER, "token header is not `alg`, `kid` and `typ`")
    # SECURITY: exact types, so that neither a root grant nor a link passes (RFC 8725 §3.11).
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise RequestFault(Reason.BAD_HEADER, "token is not of type `JWT` or `at+jwt`")
    if not isinstance(algorithm, str) or algorithm not in issuer.algorithms:
        raise RequestFault(Reason.BAD_HEADER, "token is signed with an algorithm not admitted")
    key = issuer.keys.get(kid)
    if key is None:
        raise RequestFault(Reason.UNKNOWN_KEY, "token is signed with a key not known")
    verify_signature(jws, algorithm=algorithm, key=key)
    return kid


def _audiences(claims: Claims) -> frozenset[str]:
    # RFC 7519 §4.1.3: one audience may stand without an array.
    if isinstance(claims.members.get("aud"), str):
        return frozenset({claims.text("aud")})
    return claims.audiences()


def _check_times(claims: Claims, lifetime_s_max: int, now: datetime) -> None:
    validity, second = claims.validity(lifetime_s_max), now.timestamp()
    if second >= validity.expires_at + limits.CLOCK_SKEW_S:
        raise RequestFault(Reason.EXPIRED, "token has expired")
    if second < validity.not_before - limits.CLOCK_SKEW_S:
        raise RequestFault(Reason.NOT_YET_VALID, "token is not valid yet")


def _refuse_delegated(claims: Claims) -> None:
    # SECURITY: RFC 8693 §4.1: with `act`, somebody else uses the token in the subject's name.
    if "act" in claims:
        raise RequestFault(Reason.MALFORMED_TOKEN, "token is used by an actor for its subject")
    # RFC 7800 §3: a binding to a key that is not checked must not pass.
    if "cnf" in claims:
        raise RequestFault(Reason.MALFORMED_TOKEN, "token demands a proof of possession")


def _name(claims: Claims, name_claim: str) -> str:
    name = claims.text(name_claim)
    # SECURITY: who may choose an address freely could choose an approver's (OIDC Core §5.7).
    if name_claim == _EMAIL and claims.members.get("email_verified") is not True:
        raise RequestFault(Reason.MALFORMED_TOKEN, "token's `email` is not verified by its issuer")
    return name
