"""A request of a scenario as a TCP connection: raw, or through a CONNECT tunnel.

Of a raw connection no more is seen than whether it passes; a refused CONNECT says why.
"""

import socket
import ssl
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import httpx

from authz_server.core.decision import Verdict
from authz_server.live.http_call import http_client, observed_http
from authz_server.live.observed import LiveCallError, Observed
from authz_server.live.targets import Identity, Target
from authz_server.live.tls import connect

# The check happens at the first byte. Alone, this one is no complete message in any protocol we
# know of, so that a workload waits for more.
_FIRST_BYTE: Final = b"\0"
# A denial closes within the decision point's own timeout, which is 10 s at the very most.
_SILENCE_S: Final = 3.0


def ask_tcp(target: Target, identity: Identity, delegation: Mapping[str, str]) -> Observed:
    """Open a connection and send a byte. Raises `LiveCallError` where nobody listens.

    Closed means denied, silence or an answer means allowed. Delegation travels in tunnels alone.
    """
    if target.tunnel is not None:
        return _through_tunnel(target, target.tunnel, identity, delegation)
    try:
        connection = connect(target, identity)
    except OSError as error:
        raise LiveCallError(f"{target.name} does not answer: {error}") from error
    with connection:
        passes = _stays_open(connection, target.first_bytes or _FIRST_BYTE)
        return Observed(verdict=Verdict.ALLOW if passes else Verdict.DENY)


def _stays_open(connection: socket.socket, first: bytes) -> bool:
    connection.settimeout(_SILENCE_S)
    try:
        connection.sendall(first)
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except (ssl.SSLError, ConnectionError):
        return False


def _through_tunnel(
    target: Target, destination: str, identity: Identity, delegation: Mapping[str, str]
) -> Observed:
    """Ask for a tunnel, and in an open one for the workload's first answer."""
    named = target.model_copy(update={"host": destination})
    with http_client(named, identity, delegation) as client:
        try:
            extensions = {"target": destination.encode()}
            with client.stream("CONNECT", "/", extensions=extensions) as response:
                if not response.is_success:
                    response.read()
                    return observed_http(response)
                opened = observed_http(response)
                if target.first_bytes and not _answers(response, target.first_bytes):
                    return replace(opened, verdict=None, reason="tunnel without an answer")
                return opened
        except httpx.TransportError as error:
            raise LiveCallError(f"{target.name} does not answer: {error}") from error


def _answers(response: httpx.Response, first: bytes) -> bool:
    stream = response.extensions["network_stream"]
    stream.write(first, timeout=_SILENCE_S)
    return bool(stream.read(1, timeout=_SILENCE_S))
