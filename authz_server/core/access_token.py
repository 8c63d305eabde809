"""Access tokens (RFC 9068) as root grants: for a person, to the client that is one of our agents.

Only issuers that the operator configured as such count, and which workload a client is, the
operator says too (`agents`). So neither the token's sender nor its issuer picks the identity that a
grant is made out to.
"""

import re
from collections.abc import Mapping
from typing import Final

from authz_server.core import limits
from authz_server.core.chain import Grant
from authz_server.core.claims import Claims
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.jose import CompactJws
from authz_server.core.request import Headers
from authz_server.core.root_grant import (
    ProvedToken,
    RootGrant,
    check_audience,
    configured_issuer,
    prior_actors,
    refuse_confirmation,
    verify_by_issuer,
)
from authz_server.core.spiffe import SpiffeId
from authz_server.core.trust import Issuer, RootKind

_TYPES: Final = ("at+jwt", "application/at+jwt")  # RFC 9068 §4
_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr](?: +(.*))?", re.DOTALL)  # RFC 6750 §2.1
_JWS: Final = re.compile(r"[A-Za-z0-9_-]++\.[A-Za-z0-9_-]++\.[A-Za-z0-9_-]++")


def presented_access_token(headers: Headers) -> str | None:
    """Return the bearer token of a request, or None when it has none.

    Raises `RequestFault`: `DUPLICATE_HEADER`; `OVERSIZE`; `MALFORMED_REQUEST`; `MALFORMED_TOKEN`
    for a bearer token that is not one compact JWS.
    """
    line = headers.text("authorization")
    credentials = _BEARER.fullmatch(line) if line is not None else None
    if credentials is None:
        return None
    token = credentials[1] or ""
    if len(token) > limits.TOKEN_BYTES_MAX:
        raise RequestFault(Reason.OVERSIZE, "access token is longer than 4096 bytes")
    if not _JWS.fullmatch(token):
        raise RequestFault(Reason.MALFORMED_TOKEN, "bearer token is not one compact JWS")
    return token


def verify_access_token(text: str, *, issuers: Mapping[str, Issuer]) -> RootGrant:
    """Return the access token `text` as a root grant, signature and claims verified.

    The transaction is the token's `txn` or else its `jti`. Not checked: whether it is in time
    (`delegation.verify`).

    Raises `RequestFault`: `OVERSIZE`, `MALFORMED_TOKEN`, `BAD_HEADER`, `UNKNOWN_ISSUER`,
    `UNKNOWN_KEY`, `BAD_SIGNATURE`, `WRONG_AUDIENCE`, `LIFETIME_TOO_LONG`, `CHAIN_BROKEN`,
    `CHAIN_CYCLE`, and `UNREGISTERED_IDENTITY` for a client that is none of our agents.
    """
    jws = CompactJws.parse(text)
    claims = Claims(jws.payload)
    issuer = configured_issuer(claims, issuers, RootKind.ACCESS_TOKEN)
    typ = "at+jwt" if jws.header.get("typ") not in _TYPES else str(jws.header["typ"])
    kid = verify_by_issuer(jws, issuer, typ=typ)
    check_audience(claims, issuer.audiences)
    refuse_confirmation(claims)
    validity = claims.validity(issuer.max_lifetime_s)
    delegate = _agent(claims, issuer)
    jti = claims.text("jti")  # RFC 9068 §2.2: required
    grant = Grant(
        delegator=issuer.issuer,
        delegate=delegate,
        subject=_subject(claims, issuer),
        txn=claims.optional_text("txn") or jti,
        scope=claims.scope(),
        audience=issuer.audiences,
        details=claims.details() or (),
        issued_at=validity.issued_at,
        not_before=validity.not_before,
        expires_at=validity.expires_at,
        hops_left=claims.hops(),
        jti=jti,
        kid=kid,
        proof=f"issuer-key {kid}",
        certificate_sha256=None,
        token_sha256=jws.digest.hex(),
    )
    return RootGrant(
        token=ProvedToken(grant=grant, digest=jws.digest, expires_claim=validity.expires_at),
        subject_issuer=issuer.issuer,
        purpose=None,
        prior_actors=_prior_actors(claims, delegate),
        actor_profile=None,
    )


def _agent(claims: Claims, issuer: Issuer) -> SpiffeId:
    agent = issuer.agents.get(claims.text("client_id"))
    if agent is None:
        raise RequestFault(
            Reason.UNREGISTERED_IDENTITY, "access token's client is not one of the agents known"
        )
    return agent


def _subject(claims: Claims, issuer: Issuer) -> str:
    # RFC 9068 §2.2: of a client's own token, `sub` is the client. It acts for nobody, and must not
    # pass for a person whose name nobody knows.
    if claims.text("sub") == claims.text("client_id"):
        raise RequestFault(Reason.CHAIN_BROKEN, "access token is the client's own, for nobody")
    return claims.text(issuer.subject_claim)


def _prior_actors(claims: Claims, delegate: SpiffeId) -> tuple[str, ...]:
    """Return the earlier actors of a token that an exchange made (RFC 8693 §4.1)."""
    if "act" not in claims:
        return ()
    current = claims.child("act")
    refuse_confirmation(current)
    if current.text("sub") not in {str(delegate), claims.text("client_id")}:
        raise RequestFault(Reason.CHAIN_BROKEN, "access token's `act` and `client_id` disagree")
    return prior_actors(current, delegate)
