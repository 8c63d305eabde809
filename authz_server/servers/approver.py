"""Who is at the HTTP API: a person by an OIDC token, or a workload by its client certificate.

There is no third way. A configuration that names neither makes an API that answers nobody.
"""

import re
import ssl
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from authz_server.core import jose
from authz_server.core.approver_token import ApproverIssuer, ProvedApprover, verify_approver_token
from authz_server.core.callers import CallerPolicy, prove_caller
from authz_server.core.errors import (
    ConfigurationError,
    InvalidValueError,
    Reason,
    RequestFault,
)
from authz_server.core.request import AccessRequest, HttpRequest
from authz_server.core.revocation import check_caller
from authz_server.core.snapshot import Snapshot
from authz_server.core.trust import Issuer
from authz_server.identity.file_content import FileContent
from authz_server.servers.admin_http import ApiRequest
from authz_server.servers.check_service import SnapshotSource

_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")  # RFC 6750 §2.1
_PEM_SAFE: Final = "+/="


class NotProvedError(Exception):
    """Nobody, or not who they say. The message is for the client and names no value."""


class KeysUnreadableError(Exception):
    """The keys that would prove an approver cannot be read now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerFile:
    """One OpenID provider of the configuration, its keys still in their file."""

    issuer: str
    jwks_file: Path
    audiences: frozenset[str]
    algorithms: tuple[str, ...]
    name_claim: str
    max_lifetime_s: int

    def load(self) -> ApproverIssuer:
        """Return the issuer with the keys of the file. Raises `ConfigurationError`."""
        file = FileContent.read(self.jwks_file, bytes_max=jose.JWKS_BYTES_MAX)
        try:
            keys = jose.parse_jwks(file.data)
        except InvalidValueError as error:
            raise ConfigurationError([file.fault(str(error))]) from error
        issuer = Issuer(
            issuer=self.issuer,
            algorithms=frozenset(self.algorithms),
            max_lifetime_s=self.max_lifetime_s,
            keys=keys,
        )
        return ApproverIssuer(issuer=issuer, audiences=self.audiences, name_claim=self.name_claim)


class ApproverProof:
    """Proves who asks. Used from any thread."""

    def __init__(self, issuers: Sequence[IssuerFile], snapshots: SnapshotSource) -> None:
        """Read every key file once. Raises `ConfigurationError`."""
        self._issuers = tuple(issuers)
        self._snapshots = snapshots
        for issuer in self._issuers:
            issuer.load()

    @property
    def takes_tokens(self) -> bool:
        """Whether a bearer token may prove anybody."""
        return bool(self._issuers)

    def prove(self, request: ApiRequest, now: datetime) -> str:
        """Return the name of whoever sent `request`, as approver groups have it.

        A bearer token goes before a client certificate: a proxy that sends the latter may carry
        the former. Raises `NotProvedError` and `KeysUnreadableError`.
        """
        snapshot = self._snapshots.current
        if snapshot is None:
            raise NotProvedError("nothing is loaded to prove anybody by")
        try:
            line = request.headers.text("authorization")
            if line is not None:
                return self._by_token(line, snapshot, now)
            if request.client_certificate is not None:
                return _by_certificate(request, snapshot, now)
        except RequestFault as fault:
            raise NotProvedError(fault.detail) from fault
        raise NotProvedError("neither a bearer token nor a client certificate was sent")

    def _by_token(self, line: str, snapshot: Snapshot, now: datetime) -> str:
        credentials = _BEARER.fullmatch(line)
        if credentials is None or not self._issuers:
            raise NotProvedError("`authorization` is not a bearer token that is taken here")
        try:
            # Read at every request, of which people make few: a key that was taken out of the
            # file is out at once.
            issuers = {one.issuer: one.load() for one in self._issuers}
        except ConfigurationError as error:
            raise KeysUnreadableError from error
        proved = verify_approver_token(credentials[1], issuers=issuers, now=now)
        _check_token(proved, snapshot)
        return proved.name


def _check_token(proved: ProvedApprover, snapshot: Snapshot) -> None:
    taken_back = snapshot.revocations
    if (
        proved.name in taken_back.subject
        or proved.kid in taken_back.kid
        or proved.jti in taken_back.jti
    ):
        raise RequestFault(Reason.REVOKED, "the person, the token or its key is revoked")


def _by_certificate(request: ApiRequest, snapshot: Snapshot, now: datetime) -> str:
    """Return the SPIFFE ID of the client, or of whom a trusted proxy vouches for."""
    assert request.client_certificate is not None
    # SECURITY: TLS looked at the time when the connection was made, which may be a while ago.
    if now >= x509.load_der_x509_certificate(request.client_certificate).not_valid_after_utc:
        raise RequestFault(Reason.EXPIRED, "the client's certificate has expired")
    pem = ssl.DER_cert_to_PEM_cert(request.client_certificate)
    described = AccessRequest(
        peer_certificate=urllib.parse.quote(pem, safe=_PEM_SAFE),
        peer_principal="",
        source_address=None,
        listener=None,
        destination_principal="",
        node=None,
        sni=None,
        http=HttpRequest(method="POST", scheme="https", host="", path="/", headers=request.headers),
        extensions={},
    )
    policy = CallerPolicy(trusted_proxies=snapshot.callers.trusted_proxies)
    caller = prove_caller(described, policy, snapshot.trust, now)
    check_caller(caller, snapshot.revocations)
    return str(caller.spiffe_id)
