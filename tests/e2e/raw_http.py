"""An HTTP/1.1 client that sends exactly the bytes it is given, over mTLS or in the clear.

Every ordinary client repairs a request before it leaves. An attacker's does not, so neither does
this one. Answers are read as RFC 9112 frames them.
"""

import select
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

ANSWER_TIMEOUT_S = 10.0
HOST = "127.0.0.1"


class NoAnswerError(Exception):
    """The peer closed the connection, or refused the handshake, without a complete answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One response. Header names are lower case; of a repeated header the last line counts."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class RawConnection:
    """One connection: write bytes, read answers."""

    def __init__(
        self, port: int, *, tls: ssl.SSLContext | None, server_name: str | None = "tool.example"
    ) -> None:
        plain = socket.create_connection((HOST, port), timeout=ANSWER_TIMEOUT_S)
        try:
            self._socket = (
                plain if tls is None else tls.wrap_socket(plain, server_hostname=server_name)
            )
        except OSError as error:  # `ssl.SSLError` is one
            plain.close()
            raise NoAnswerError(f"handshake: {error}") from error
        self._pending = b""

    @classmethod
    def over(cls, connected: socket.socket) -> Self:
        """Speak over a socket that is connected already."""
        connection = cls.__new__(cls)
        connection._socket, connection._pending = connected, b""
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def patience(self, timeout_s: float) -> None:
        """Wait this long for what is read from now on, instead of `ANSWER_TIMEOUT_S`."""
        self._socket.settimeout(timeout_s)

    def send(self, data: bytes) -> None:
        """Send `data` unchanged."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise NoAnswerError(f"send: {error}") from error

    def is_silent(self) -> bool:
        """Tell whether nothing has come that was not read yet, nor the end."""
        return not self._pending and not select.select([self._socket], [], [], 0)[0]

    def answer(self, *, to_method: str = "GET") -> Answer:
        """Read the next answer. Raises `NoAnswerError` when the peer closes before its end."""
        while (answer := self._one_answer(to_method)).status == 100:
            pass
        return answer

    def _one_answer(self, to_method: str) -> Answer:
        status_line, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = int(status_line.split(" ")[1])
        fields = [line.partition(":") for line in lines if line]
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        # RFC 9112 §6.3: what comes after a CONNECT that is granted is the tunnel.
        tunnel = to_method == "CONNECT" and 200 <= status < 300
        bodyless = tunnel or status < 200 or status in {204, 304} or to_method == "HEAD"
        body = b"" if bodyless else self._body(headers)
        return Answer(status=status, headers=headers, body=body)

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._until(b"\r\n").partition(b";")[0], 16):
                body += self._exactly(size)
                self._until(b"\r\n")
            self._until(b"\r\n")
            return body
        if "content-length" in headers:
            return self._exactly(int(headers["content-length"]))
        return self._rest()

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._pending:
            self._receive()
        head, _, self._pending = self._pending.partition(mark)
        return head

    def _exactly(self, size: int) -> bytes:
        while len(self._pending) < size:
            self._receive()
        data, self._pending = self._pending[:size], self._pending[size:]
        return data

    def _rest(self) -> bytes:
        try:
            while True:
                self._receive()
        except NoAnswerError:
            data, self._pending = self._pending, b""
            return data

    def _receive(self) -> None:
        try:
            data = self._socket.recv(65536)
        except OSError as error:
            raise NoAnswerError(f"receive: {error}") from error
        if not data:
            raise NoAnswerError("closed by the peer")
        self._pending += data


def exchange(
    port: int, request: bytes, *, tls: ssl.SSLContext | None, to_method: str = "GET"
) -> Answer:
    """Send one request on a connection of its own and return the answer."""
    with RawConnection(port, tls=tls) as connection:
        connection.send(request)
        return connection.answer(to_method=to_method)


def unix_get(path: Path, target: str) -> bytes:
    """Return the body of a GET on a Unix socket. Raises `OSError` when nobody answers there."""
    return _unix_request(path, "GET", target)


def unix_post(path: Path, target: str) -> bytes:
    """Return the body of an empty POST on a Unix socket."""
    return _unix_request(path, "POST", target)


def _unix_request(path: Path, method: str, target: str) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        connection.connect(str(path))
        request = f"{method} {target} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n"
        request += "Content-Length: 0\r\n\r\n" if method == "POST" else "\r\n"
        connection.sendall(request.encode())
        answer = RawConnection.over(connection).answer()
        return answer.body
