"""JWT-SVIDs: a caller's identity as a bearer token, for those who cannot do mutual TLS.

The rules are those of the SPIFFE JWT-SVID specification, on the strict JWS of `core.jose`. Stricter
than it in three points: `kid` is required, the algorithms are those SPIRE signs with, and a token
may not be good for longer than `limits.JWT_SVID_LIFETIME_S_MAX`.

SECURITY: whoever holds such a token is the caller (§7.1). It proves less than a certificate, which
is why it is off by default and why policy sees `assurance` `bearer`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from authz_server.core import limits
from authz_server.core.claims import Claims
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.jose import CompactJws, verify_signature
from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.core.trust import TrustBundle, VerificationKey

# JWT-SVID §2.1 admits RS, ES and PS with 256, 384 and 512. No HMAC, no `none`, and no EdDSA.
JWT_SVID_ALGORITHMS: Final = frozenset({"ES256", "ES384", "RS256", "PS256"})
_HEADER_MEMBERS: Final = frozenset({"alg", "kid", "typ"})  # JWT-SVID §2
_TYPES: Final = frozenset({"JWT", "JOSE"})  # JWT-SVID §2.3


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSvid:
    """A JWT-SVID with everything proved: signature, time and audience. Times are Unix seconds."""

    spiffe_id: SpiffeId
    kid: str
    jti: str | None
    expires_at: int
    token_sha256: str  # hex


def verify_jwt_svid(
    text: str,
    *,
    audiences: frozenset[str],
    bundles: Mapping[TrustDomain, TrustBundle],
    now: datetime,
    skew_s: int,
) -> JwtSvid:
    """Return the JWT-SVID that `text` spells, made out to one of `audiences`.

    The trust domain of `sub` chooses the bundle, whose JWT keys alone count; `kid` is a look-up in
    that bundle and nothing else.

    Raises `RequestFault`: `OVERSIZE`, `MALFORMED_TOKEN`, `BAD_HEADER`, `UNKNOWN_TRUST_DOMAIN`,
    `UNKNOWN_KEY`, `BAD_SIGNATURE`, `WRONG_AUDIENCE`, `EXPIRED`, `NOT_YET_VALID`,
    `LIFETIME_TOO_LONG`.
    """
    jws = CompactJws.parse(text)
    algorithm, kid = _checked_header(jws)
    claims = Claims(jws.payload)
    spiffe_id = claims.spiffe_id("sub")
    key = _key(bundles.get(spiffe_id.trust_domain), kid)
    verify_signature(jws, algorithm=algorithm, key=key)
    if audiences.isdisjoint(_audiences(claims)):  # JWT-SVID §3.2
        raise RequestFault(Reason.WRONG_AUDIENCE, "JWT-SVID is not for this server")
    return JwtSvid(
        spiffe_id=spiffe_id,
        kid=kid,
        jti=claims.optional_text("jti"),
        expires_at=_checked_times(claims, now, skew_s),
        token_sha256=jws.digest.hex(),
    )


def _checked_header(jws: CompactJws) -> tuple[str, str]:
    """Return `alg` and `kid`, once nothing else is there but `typ`."""
    header = jws.header
    algorithm, kid = header.get("alg"), header.get("kid")
    if not header.keys() <= _HEADER_MEMBERS or not isinstance(kid, str):
        raise RequestFault(Reason.BAD_HEADER, "JWT-SVID header is not `alg`, `kid` and `typ`")
    if "typ" in header and header["typ"] not in _TYPES:
        raise RequestFault(Reason.BAD_HEADER, "JWT-SVID is not of type `JWT` or `JOSE`")
    if not isinstance(algorithm, str) or algorithm not in JWT_SVID_ALGORITHMS:
        raise RequestFault(Reason.BAD_HEADER, "JWT-SVID is signed with an algorithm not admitted")
    return algorithm, kid


def _key(bundle: TrustBundle | None, kid: str) -> VerificationKey:
    if bundle is None:
        raise RequestFault(
            Reason.UNKNOWN_TRUST_DOMAIN, "JWT-SVID is of a trust domain that has no bundle here"
        )
    key = bundle.jwt_keys.get(kid)
    if key is None:
        raise RequestFault(Reason.UNKNOWN_KEY, "JWT-SVID is signed with a key not in the bundle")
    return key


def _audiences(claims: Claims) -> frozenset[str]:
    # RFC 7519 §4.1.3: one audience may stand without an array.
    if isinstance(claims.members.get("aud"), str):
        return frozenset({claims.text("aud")})
    return claims.audiences()


def _checked_times(claims: Claims, now: datetime, skew_s: int) -> int:
    """Return `exp`, the one time that JWT-SVID §3.3 requires."""
    second, expires_at = now.timestamp(), claims.time("exp")
    not_before = max(claims.optional_time("nbf") or 0, claims.optional_time("iat") or 0)
    if second >= expires_at + skew_s:
        raise RequestFault(Reason.EXPIRED, "JWT-SVID has expired")
    if second < not_before - skew_s:
        raise RequestFault(Reason.NOT_YET_VALID, "JWT-SVID is not valid yet")
    if expires_at - second > limits.JWT_SVID_LIFETIME_S_MAX + skew_s:
        raise RequestFault(Reason.LIFETIME_TOO_LONG, "JWT-SVID is good for more than an hour")
    return expires_at
