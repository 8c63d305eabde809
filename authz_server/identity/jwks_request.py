"""One GET of an issuer's key set, bounded in size and time, at the operator's address alone."""

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from authz_server.core.errors import AuthzError
from authz_server.core.jose import JWKS_BYTES_MAX

_STEP_TIMEOUT_S: Final = 5.0  # connecting, the handshake, and each read
TOTAL_TIMEOUT_S: Final = 10.0  # an issuer that drips must not hold the thread
_HTTPS_PORT: Final = 443
_HTTP_PORT: Final = 80


class KeySetUnreachableError(AuthzError):
    """The address gave no key set. The message is one line for the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySetAddress:
    """Where an issuer's keys are: `https`, or plain `http` on this machine (`settings.values`).

    `ca_file` is a PEM file of the authorities that prove the server; None: the system's.
    """

    url: str
    ca_file: Path | None = None


def fetch_key_set(address: KeySetAddress) -> bytes:
    """Return the document at `address`, at most `JWKS_BYTES_MAX` bytes.

    SECURITY: redirects are not followed and no proxy of the environment is used: the address is the
    operator's alone. Raises `KeySetUnreachableError`.
    """
    url = urlsplit(address.url)
    port = url.port or (_HTTPS_PORT if url.scheme == "https" else _HTTP_PORT)
    try:
        with (
            socket.create_connection((url.hostname or "", port), _STEP_TIMEOUT_S) as plain,
            _ended_in_time(plain),
        ):
            if url.scheme == "http":
                return _get(plain, address)
            with _context(address).wrap_socket(plain, server_hostname=url.hostname) as stream:
                return _get(stream, address)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise KeySetUnreachableError(_why(error)) from error


@contextmanager
def _ended_in_time(connection: socket.socket) -> Iterator[None]:
    """Cut the connection off after `TOTAL_TIMEOUT_S`; whoever waits for it gets an `OSError`."""
    # A handle of its own: a TLS handshake takes the descriptor away from `connection`.
    with connection.dup() as handle:
        timer = threading.Timer(TOTAL_TIMEOUT_S, handle.shutdown, (socket.SHUT_RDWR,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def _context(address: KeySetAddress) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=address.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _get(stream: socket.socket, address: KeySetAddress) -> bytes:
    url = urlsplit(address.url)
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    connection = http.client.HTTPConnection(url.netloc)
    connection.sock = stream
    headers = {"Accept": "application/jwk-set+json, application/json", "Connection": "close"}
    connection.request("GET", target, headers=headers)
    with connection.getresponse() as response:
        if response.status != http.HTTPStatus.OK:
            raise KeySetUnreachableError(f"the server answers {response.status}")
        data = response.read(JWKS_BYTES_MAX + 1)
        if len(data) > JWKS_BYTES_MAX:
            raise KeySetUnreachableError(f"the key set is longer than {JWKS_BYTES_MAX} bytes")
        if response.length:  # what it announced, and cut off
            raise KeySetUnreachableError("the key set was cut off")
        return data


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
