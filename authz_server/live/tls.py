"""TLS as the client of one workload: our SVID, and exactly one SPIFFE ID at the other end.

X509-SVIDs name no host, so the usual comparison is of no use. The comparison of the SPIFFE ID is
part of the handshake here, so that every library that takes an `ssl.SSLContext` has it, and no
byte of a request is written to anybody else.
"""

import socket
import ssl
from typing import Any

from cryptography import x509

from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import SpiffeId
from authz_server.core.svid import leaf_spiffe_id
from authz_server.live.observed import TIMEOUT_S
from authz_server.live.targets import Identity, Target
from authz_server.settings.addresses import UnixAddress


def spiffe_context(identity: Identity, peer: SpiffeId) -> ssl.SSLContext:
    """Return the context of a client that is `identity` and speaks to nobody but `peer`.

    A handshake with anybody else ends in `ssl.SSLCertVerificationError`.
    """

    class PeerObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            _check(self.getpeercert(binary_form=True), peer)

    class PeerSocket(ssl.SSLSocket):
        def do_handshake(self, *args: Any, **kwargs: Any) -> None:
            super().do_handshake(*args, **kwargs)
            _check(self.getpeercert(binary_form=True), peer)

    context = ssl.create_default_context(cafile=identity.trust_bundle)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the SPIFFE ID is compared instead
    context.load_cert_chain(identity.certificate, identity.private_key)
    context.sslobject_class = PeerObject
    context.sslsocket_class = PeerSocket
    return context


def connect(target: Target, identity: Identity) -> socket.socket:
    """Return a connection to the target, which has proved its SPIFFE ID. Raises `OSError`."""
    if isinstance(target.address, UnixAddress):
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        plain.settimeout(TIMEOUT_S)
        plain.connect(str(target.address.path))
    else:
        plain = socket.create_connection((target.address.host, target.address.port), TIMEOUT_S)
    if target.peer is None:
        return plain
    context = spiffe_context(identity, target.peer)
    try:
        return context.wrap_socket(plain, server_hostname=target.host)
    except OSError:
        plain.close()
        raise


def _check(certificate: bytes | None, peer: SpiffeId) -> None:
    try:
        found = leaf_spiffe_id(x509.load_der_x509_certificate(certificate or b""))
    except (InvalidValueError, ValueError) as error:
        raise ssl.SSLCertVerificationError("the peer shows no X509-SVID") from error
    if found != peer:
        raise ssl.SSLCertVerificationError(f"the peer is `{found}`, not `{peer}`")
