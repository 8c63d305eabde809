"""A request of a scenario as a TCP connection, of which no more is seen than whether it passes."""

import socket
import ssl
from typing import Final

from authz_server.core.decision import Verdict
from authz_server.live.observed import LiveCallError, Observed
from authz_server.live.targets import Identity, Target
from authz_server.live.tls import connect

# The check happens at the first byte. This is the start of PostgreSQL's `SSLRequest`, and of no
# complete message in any protocol we know, so that a workload waits for more.
_FIRST_BYTE: Final = b"\0"
# A denial closes within the decision point's own timeout, which is 10 s at the very most.
_SILENCE_S: Final = 3.0


def ask_tcp(target: Target, identity: Identity) -> Observed:
    """Connect and send a byte: closed means denied, silence or an answer means allowed.

    Raises `LiveCallError` where nobody listens.
    """
    try:
        connection = connect(target, identity)
    except OSError as error:
        raise LiveCallError(f"{target.name} does not answer: {error}") from error
    with connection:
        return Observed(verdict=Verdict.ALLOW if _stays_open(connection) else Verdict.DENY)


def _stays_open(connection: socket.socket) -> bool:
    connection.settimeout(_SILENCE_S)
    try:
        connection.sendall(_FIRST_BYTE)
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except (ssl.SSLError, ConnectionError):
        return False
