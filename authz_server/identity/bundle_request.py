"""One GET of a bundle endpoint, its peer proved as the profile has it (SPIFFE Federation §5.2)."""

import http.client
import socket
import ssl
import time
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from authz_server.core.errors import AuthzError, InvalidValueError
from authz_server.core.spiffe import SpiffeId
from authz_server.core.svid import leaf_spiffe_id
from authz_server.core.trust import TrustBundle
from authz_server.identity.der import UNSOUND
from authz_server.identity.spiffe_bundle import BUNDLE_BYTES_MAX
from authz_server.settings.model import BundleEndpoint

_STEP_TIMEOUT_S: Final = 5.0  # connecting, the handshake, and each read
_TOTAL_TIMEOUT_S: Final = 15.0  # an endpoint that drips must not hold the thread
_CHUNK_BYTES: Final = 64 * 1024
_HTTPS_PORT: Final = 443


class BundleUnreachableError(AuthzError):
    """The endpoint gave no bundle. The message is one line for the operator."""


def fetch_bundle(endpoint: BundleEndpoint, *, anchors: TrustBundle | None) -> bytes:
    """Return the document that `endpoint` serves, at most `BUNDLE_BYTES_MAX` bytes.

    `anchors` is the bundle of the endpoint's own trust domain, for `https_spiffe`; None for
    `https_web`. Redirects are not followed: the address is the operator's alone. Raises
    `BundleUnreachableError`.
    """
    try:
        stream = _connect(endpoint, anchors)
    except (OSError, ValueError) as error:
        raise BundleUnreachableError(f"no connection: {_why(error)}") from error
    with stream:
        if anchors is not None:
            _check_peer(stream, endpoint.endpoint_spiffe_id)
        try:
            return _get(stream, endpoint)
        except (OSError, http.client.HTTPException) as error:
            raise BundleUnreachableError(f"no answer: {_why(error)}") from error


def _connect(endpoint: BundleEndpoint, anchors: TrustBundle | None) -> ssl.SSLSocket:
    url = urlsplit(endpoint.url)
    host = url.hostname or ""
    context = _web_context(endpoint) if anchors is None else _spiffe_context(anchors)
    plain = socket.create_connection((host, url.port or _HTTPS_PORT), timeout=_STEP_TIMEOUT_S)
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def _web_context(endpoint: BundleEndpoint) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=endpoint.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _spiffe_context(anchors: TrustBundle) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # SECURITY: an SVID has no host name to compare; `_check_peer` compares the SPIFFE ID instead.
    # The pool is one trust domain's, so a path in it is a path to that domain's bundle.
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    for authority in anchors.authorities:
        context.load_verify_locations(cadata=authority.public_bytes(Encoding.DER))
    return context


def _check_peer(stream: ssl.SSLSocket, expected: SpiffeId | None) -> None:
    der = stream.getpeercert(binary_form=True)
    try:
        found = leaf_spiffe_id(x509.load_der_x509_certificate(der or b""))
    except (InvalidValueError, *UNSOUND) as error:
        raise BundleUnreachableError("the endpoint's certificate is no X509-SVID") from error
    if found != expected:
        raise BundleUnreachableError(f"the endpoint is `{found}` and not `{expected}`")


def _get(stream: ssl.SSLSocket, endpoint: BundleEndpoint) -> bytes:
    url = urlsplit(endpoint.url)
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    deadline = time.monotonic() + _TOTAL_TIMEOUT_S
    connection = http.client.HTTPConnection(url.netloc)
    connection.sock = stream
    connection.request("GET", target, headers={"Accept": "application/json"})
    response = connection.getresponse()
    if response.status != http.HTTPStatus.OK:
        raise BundleUnreachableError(f"the endpoint answers {response.status}")
    data = b""
    while chunk := response.read1(_CHUNK_BYTES):
        data += chunk
        if len(data) > BUNDLE_BYTES_MAX:
            raise BundleUnreachableError(f"the bundle is longer than {BUNDLE_BYTES_MAX} bytes")
        if time.monotonic() > deadline:
            raise BundleUnreachableError(f"the bundle took longer than {_TOTAL_TIMEOUT_S:g} s")
    return data


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
