"""The protected workload of the attack suite: answers 200 to everything and remembers all of it.

It reads the request head as raw bytes, because what matters is whether the workload saw the same
request that was judged.
"""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Hit:
    """One request as it reached the workload."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]  # lower-case names, in order

    def values(self, name: str) -> tuple[str, ...]:
        """Return every value of header `name`."""
        return tuple(value for key, value in self.headers if key == name)


@dataclass(slots=True)
class Recorder:
    """A running workload. `hits` and `connections` only ever grow."""

    port: int
    hits: list[Hit] = field(default_factory=list)
    connections: int = 0


@contextmanager
def recording_workload() -> Iterator[Recorder]:
    """Run a workload on a free loopback port for the duration of the block."""
    with _Server(("127.0.0.1", 0), _Connection) as server:
        server.recorder = Recorder(port=server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.recorder
        finally:
            server.shutdown()
            thread.join()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    recorder: Recorder


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        self.server.recorder.connections += 1
        try:
            while self._serve_one():
                pass
        except (ConnectionError, ValueError):
            return

    def _serve_one(self) -> bool:
        request_line = self.rfile.readline().decode("latin-1")
        if not request_line.strip():
            return False
        method, target, _ = request_line.split(" ", 2)
        headers = []
        while line := self.rfile.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers.append((name.lower(), value.strip()))
        hit = Hit(method=method, target=target, headers=tuple(headers))
        self._discard_body(hit)
        self.server.recorder.hits.append(hit)
        self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        return True

    def _discard_body(self, hit: Hit) -> None:
        if "chunked" in hit.values("transfer-encoding"):
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        else:
            self.rfile.read(int(next(iter(hit.values("content-length")), "0")))
