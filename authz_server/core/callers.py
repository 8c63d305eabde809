"""Who calls, and how that is proved: by certificate, through a trusted proxy, or by bearer token.

The peer certificate comes first. Only where its owner is a trusted proxy does
`x-forwarded-client-cert` count, and only where there is no certificate at all does a JWT-SVID.
Whoever is at the end of that is the one principal; what the inventory knows of it is `parties`'.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from authz_server.core import limits
from authz_server.core.errors import InvalidValueError, Reason, RequestFault
from authz_server.core.jwt_svid import verify_jwt_svid
from authz_server.core.request import AccessRequest
from authz_server.core.spiffe import SpiffeId, SpiffeIdPattern
from authz_server.core.svid import PeerIdentity, peer_identity
from authz_server.core.trust import TrustMaterial
from authz_server.core.xfcc import XfccElement, parse_xfcc

_XFCC: Final = "x-forwarded-client-cert"
_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")  # RFC 6750 §2.1


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerPolicy:
    """What is believed of callers besides their own certificate (`identity`); by default nothing.

    `jwt_svid_audiences` are the names of this server as JWT-SVIDs spell it; none switches bearer
    tokens off.
    """

    trusted_proxies: tuple[SpiffeIdPattern, ...] = ()
    jwt_svid_audiences: frozenset[str] = frozenset()

    def trusts(self, spiffe_id: SpiffeId) -> bool:
        """Tell whether the word of `spiffe_id` about its own clients counts."""
        return any(pattern.matches(spiffe_id) for pattern in self.trusted_proxies)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedCaller:
    """The principal, and the evidence.

    `proxies` vouch for it, nearest to us first. `jti` and `kid` are those of a bearer token.
    """

    spiffe_id: SpiffeId
    assurance: str  # mtls | proxied | bearer
    certificate_sha256: str | None = None
    proxies: tuple[SpiffeId, ...] = ()
    jti: str | None = None
    kid: str | None = None


def prove_caller(
    request: AccessRequest, policy: CallerPolicy, trust: TrustMaterial, now: datetime
) -> ProvedCaller:
    """Return who calls.

    Raises `RequestFault`: `NO_PRINCIPAL` for neither certificate nor (admitted) token,
    `MALFORMED_PRINCIPAL` for a certificate or a forwarded one that is not usable,
    `UNKNOWN_TRUST_DOMAIN` for anyone on the way whose domain has no bundle, and what
    `verify_jwt_svid` raises.
    """
    if not request.peer_certificate and policy.jwt_svid_audiences:
        return _bearer(request, policy.jwt_svid_audiences, trust, now)
    peer = peer_identity(request.peer_certificate)
    # Envoy's own reading is the first URI SAN. Another value means we and the proxy disagree.
    if request.peer_principal and request.peer_principal != str(peer.spiffe_id):
        raise RequestFault(
            Reason.MALFORMED_PRINCIPAL, "Envoy's `source.principal` differs from the certificate"
        )
    _check_domain(peer.spiffe_id, trust)
    if policy.trusts(peer.spiffe_id):
        return _behind_proxies(request, peer, policy, trust)
    return ProvedCaller(
        spiffe_id=peer.spiffe_id, assurance="mtls", certificate_sha256=peer.certificate_sha256
    )


def _check_domain(spiffe_id: SpiffeId, trust: TrustMaterial) -> None:
    bundle = trust.bundles.get(spiffe_id.trust_domain)
    if bundle is None or not bundle.authorities:
        raise RequestFault(
            Reason.UNKNOWN_TRUST_DOMAIN, "the caller's trust domain has no trust bundle here"
        )


def _behind_proxies(
    request: AccessRequest, peer: PeerIdentity, policy: CallerPolicy, trust: TrustMaterial
) -> ProvedCaller:
    """Walk from the connection towards the client, as long as a trusted proxy vouches."""
    caller = peer.spiffe_id
    certificate_sha256: str | None = peer.certificate_sha256
    proxies: list[SpiffeId] = []
    elements = list(_forwarded(request))
    # In APPEND_FORWARD and SANITIZE_SET the last element is that of the Envoy that asks us, and
    # says what the certificate has proved already.
    if elements and elements[-1].uris == (str(peer.spiffe_id),):
        elements.pop()
    # SECURITY: from the right. What stands further left than the first untrusted caller was
    # written by that caller.
    while elements and policy.trusts(caller):
        element = elements.pop()
        proxies.append(caller)
        caller, certificate_sha256 = _client_of(caller, element), element.certificate_sha256
        _check_domain(caller, trust)
    return ProvedCaller(
        spiffe_id=caller,
        assurance="proxied" if proxies else "mtls",
        certificate_sha256=certificate_sha256,
        proxies=tuple(proxies),
    )


def _client_of(proxy: SpiffeId, element: XfccElement) -> SpiffeId:
    # A proxy that passes on what it was sent (FORWARD_ONLY) leaves another's name here, or none.
    if element.by != (str(proxy),):
        raise _malformed("was not written by the proxy that sent it")
    if len(element.uris) != 1:  # X509-SVID §5.2, as for the peer's own certificate
        raise _malformed("does not name exactly one URI")
    try:
        return SpiffeId.parse(element.uris[0])
    except InvalidValueError as error:
        raise _malformed(f"names no workload: {error}") from error


def _forwarded(request: AccessRequest) -> tuple[XfccElement, ...]:
    line = request.http.headers.one(_XFCC) if request.http is not None else None
    if line is None:
        return ()
    try:
        return parse_xfcc(line.decode("ascii"))
    except (UnicodeDecodeError, InvalidValueError) as error:
        raise _malformed("cannot be read") from error


def _malformed(problem: str) -> RequestFault:
    return RequestFault(Reason.MALFORMED_PRINCIPAL, f"`{_XFCC}` {problem}")


def _bearer(
    request: AccessRequest, audiences: frozenset[str], trust: TrustMaterial, now: datetime
) -> ProvedCaller:
    line = request.http.headers.text("authorization") if request.http is not None else None
    if line is None:
        raise RequestFault(
            Reason.NO_PRINCIPAL, "request has neither a client certificate nor a JWT-SVID"
        )
    credentials = _BEARER.fullmatch(line)
    if credentials is None:
        raise RequestFault(Reason.MALFORMED_PRINCIPAL, "`authorization` is not one bearer token")
    svid = verify_jwt_svid(
        credentials[1],
        audiences=audiences,
        bundles=trust.bundles,
        now=now,
        skew_s=limits.CLOCK_SKEW_S,
    )
    return ProvedCaller(spiffe_id=svid.spiffe_id, assurance="bearer", jti=svid.jti, kid=svid.kid)
