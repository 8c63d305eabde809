"""An HTTP/2 client that sends the header fields it is given, valid or not, over mutual TLS.

`h2` keeps the connection's state; its checks of what goes out are off, as an attacker's would be.
"""

import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from tests.e2e.raw_http import ANSWER_TIMEOUT_S, HOST, Answer, NoAnswerError

Fields = Sequence[tuple[str | bytes, str | bytes]]


@dataclass(slots=True)
class _Stream:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: bool = False


class RawHttp2:
    """One connection: open streams, read answers. `tls` is made to speak HTTP/2 from now on."""

    def __init__(self, port: int, *, tls: ssl.SSLContext) -> None:
        tls.set_alpn_protocols(["h2"])
        plain = socket.create_connection((HOST, port), timeout=ANSWER_TIMEOUT_S)
        try:
            self._socket = tls.wrap_socket(plain, server_hostname="tool.example")
        except OSError as error:
            plain.close()
            raise NoAnswerError(f"handshake: {error}") from error
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
            )
        )
        self._streams: dict[int, _Stream] = {}
        self.closed = False
        self.h2.initiate_connection()
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def flush(self) -> None:
        """Send what is to be sent. Raises `NoAnswerError` when the peer is gone."""
        try:
            self._socket.sendall(self.h2.data_to_send())
        except OSError as error:
            raise NoAnswerError(f"send: {error}") from error

    def open(self, fields: Fields, *, end: bool = True) -> int:
        """Open a stream with these header fields; return its number."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, list(fields), end_stream=end)
        self._streams[stream] = _Stream()
        self.flush()
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = True) -> None:
        """Send a part of the body, as the peer's windows allow."""
        while data:
            size = min(
                len(data),
                self.h2.local_flow_control_window(stream),
                self.h2.max_outbound_frame_size,
            )
            if not size:
                self._receive()
                continue
            self.h2.send_data(stream, data[:size])
            data = data[size:]
            self.flush()
        if end:
            self.h2.end_stream(stream)
            self.flush()

    def reset(self, stream: int) -> None:
        """Take a stream back, without sending that yet."""
        self.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        del self._streams[stream]

    def answer(self, stream: int) -> Answer:
        """Read until the answer is complete. Raises `NoAnswerError` if the stream is reset."""
        state = self._streams[stream]
        while not state.ended:
            if state.reset or self.closed:
                raise NoAnswerError("stream was reset")
            self._receive()
        return Answer(status=state.status, headers=state.headers, body=state.body)

    def _receive(self) -> None:
        try:
            data = self._socket.recv(65536)
            events = self.h2.receive_data(data) if data else []
        except (OSError, h2.exceptions.ProtocolError) as error:
            raise NoAnswerError(f"receive: {error}") from error
        if not data:
            raise NoAnswerError("closed by the peer")
        for event in events:
            self._note(event)
        self.flush()

    def _note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.closed = True
            return
        state = self._streams.get(getattr(event, "stream_id", 0) or 0)
        if state is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            named = {bytes(n).decode(): bytes(v).decode("latin-1") for n, v in event.headers}
            state.status = int(named.pop(":status"))
            state.headers = named
        elif isinstance(event, h2.events.DataReceived):
            state.body += event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            state.ended = True
        elif isinstance(event, h2.events.StreamReset):
            state.reset = True
