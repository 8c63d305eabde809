"""Floods at the hardened Envoy, beside a client whose answers have to stay right.

What is measured is printed and not judged; what is judged is that every answer is right, that
nothing gets past the PDP, and that the PDP does not grow.
"""

import contextlib
import ssl
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.attack_mesh import Mesh, running_mesh
from tests.e2e.raw_http import NoAnswerError, RawConnection
from tests.e2e.raw_http2 import RawHttp2
from tests.e2e.waiting import until

pytestmark = [pytest.mark.deep, pytest.mark.xdist_group("floods")]

RESETS = 100_000
WARM_UP = 10_000  # what the first flood costs, threads and arenas, is no growth
BATCH = 100  # streams opened and taken back in one write
SLOW_CONNECTIONS = 200
CHURNED_CONNECTIONS = 3_000
POOL = 16  # connections to the workload that Envoy keeps for the next request
BASELINE = 500  # answers before the flood, and at least so many during it
GROWTH_KIB_MAX = 16 * 1024  # of the PDP: what is in flight, not an entry for each stream


@pytest.fixture(scope="module")
def flooded() -> Iterator[Mesh]:
    """A mesh of its own: nobody else's answers are measured."""
    with (
        tempfile.TemporaryDirectory(prefix="authz-") as directory,
        running_mesh(Path(directory), profiles=("hardened",)) as mesh,
    ):
        yield mesh


@pytest.fixture(params=["hardened", "default"])
def flooded_as(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """A mesh of its own with the Envoy of one profile."""
    with (
        tempfile.TemporaryDirectory(prefix="authz-") as directory,
        running_mesh(Path(directory), profiles=(request.param,)) as mesh,
    ):
        yield mesh


def tool_port(mesh: Mesh) -> int:
    """Return where the one Envoy of `mesh` guards the tool."""
    (envoy,) = mesh.envoys.values()
    return envoy.ports["tool"]


@dataclass(slots=True)
class Bystander:
    """A client that sends allowed and denied requests in turn, and times each answer."""

    mesh: Mesh
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    took_ms: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        thread = threading.Thread(target=self._ask)
        thread.start()
        try:
            yield
            until(lambda: len(self.took_ms) >= BASELINE, "answers for the bystander")
        finally:
            self._stop.set()
            thread.join()

    def _ask(self) -> None:
        port = tool_port(self.mesh)
        with RawConnection(port, tls=self.mesh.tls("narrow")) as connection:
            while not self._stop.is_set():
                for path in ("/public/bystander", "/admin"):
                    started = time.perf_counter()
                    connection.send(f"GET {path} HTTP/1.1\r\nHost: tool.example\r\n\r\n".encode())
                    status = connection.answer().status
                    self.took_ms.append((time.perf_counter() - started) * 1000)
                    self.answers[path, status] += 1

    def report(self, what: str) -> None:
        cuts = statistics.quantiles(self.took_ms, n=100)
        print(f"{what}: {len(self.took_ms)} answers, p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms")

    def assert_right(self) -> None:
        assert set(self.answers) == {("/public/bystander", 200), ("/admin", 403)}


def resident_kib(pid: int) -> int:
    """Return how much memory a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no such process")


def baseline(mesh: Mesh) -> None:
    quiet = Bystander(mesh)
    with quiet.asking():
        pass
    quiet.report("\nwithout a flood")


def test_rapid_reset(flooded_as: Mesh) -> None:
    """dos-02, CVE-2023-44487: 100,000 streams are opened and taken back at once."""
    mesh = flooded_as
    baseline(mesh)
    tls = mesh.tls_with(mesh.svid("narrow"), "flood")  # its ALPN is HTTP/2: not to be shared
    opened = 0
    while opened < WARM_UP:
        opened += flood_until_closed(mesh, tls, WARM_UP - opened)
    before, hits = resident_kib(mesh.pdp.pid), len(mesh.workload.hits)
    bystander, opened, connections = Bystander(mesh), 0, 0
    started = time.perf_counter()
    with bystander.asking():
        while opened < RESETS:
            connections += 1
            opened += flood_until_closed(mesh, tls, RESETS - opened)
    took = time.perf_counter() - started
    bystander.report(f"{opened} resets over {connections} connections in {took:.0f} s")
    after = resident_kib(mesh.pdp.pid)
    print(f"PDP: {before} KiB before, {after} KiB after")
    bystander.assert_right()
    assert after - before < GROWTH_KIB_MAX
    reached = {hit.target for hit in mesh.workload.hits[hits:]}
    assert reached <= {"/public/bystander", "/public/flood"}
    allowed = {r.decision_id for r in mesh.ledger.since(0) if r.outcome == "allow"}
    assert all(hit.values("x-authz-decision-id")[0] in allowed for hit in mesh.workload.hits)


def flood_until_closed(mesh: Mesh, tls: ssl.SSLContext, count: int) -> int:
    """Open and reset streams on one connection; return how many before Envoy closed it."""
    opened = 0
    fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "tool.example"),
        (":path", "/public/flood"),
    ]
    port = tool_port(mesh)
    with contextlib.suppress(NoAnswerError), RawHttp2(port, tls=tls) as connection:
        while opened < count:
            for _ in range(BATCH):
                stream = connection.h2.get_next_available_stream_id()
                connection.h2.send_headers(stream, fields, end_stream=True)
                connection.h2.reset_stream(stream)
            opened += BATCH
            connection.flush()
    return opened


def test_connection_churn(flooded: Mesh) -> None:
    """Connections that are gone before, within and after a request leave nothing behind."""
    mesh, envoy = flooded, flooded.envoys["hardened"]
    request = b"GET /public/churn HTTP/1.1\r\nHost: tool.example\r\n\r\n"
    tls, port = mesh.tls("narrow"), envoy.ports["tool"]
    baseline(mesh)
    bystander, before = Bystander(mesh), descriptors(mesh)
    with bystander.asking():
        for number in range(CHURNED_CONNECTIONS):
            with RawConnection(port, tls=tls) as connection:
                connection.send(request[: len(request) * (number % 4) // 3])
    bystander.report(f"{CHURNED_CONNECTIONS} connections that came and went")
    bystander.assert_right()
    until(lambda: descriptors(mesh) <= before + POOL, "descriptors as they were")


def descriptors(mesh: Mesh) -> int:
    """Count what the PDP and Envoy hold open."""
    processes = (mesh.pdp, mesh.envoys["hardened"].process)
    return sum(len(list(Path(f"/proc/{process.pid}/fd").iterdir())) for process in processes)


@pytest.mark.parametrize("part", ["headers", "body"])
def test_slow_requests(flooded: Mesh, part: str) -> None:
    """Two hundred requests that never come to an end are nobody's business but their own."""
    mesh = flooded
    head = (
        "POST /public/orders HTTP/1.1\r\nHost: tool.example\r\nContent-Type: application/json\r\n"
    )
    if part == "body":
        head += 'Content-Length: 1000\r\n\r\n{"order":{"amount":1'
    port = mesh.envoys["hardened"].ports["rest"]
    seq, hits = mesh.ledger.last(), len(mesh.workload.hits)
    bystander = Bystander(mesh)
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(RawConnection(port, tls=mesh.tls("wide")))
            for _ in range(SLOW_CONNECTIONS)
        ]
        for connection in slow:
            connection.send(head.encode())
        with bystander.asking():
            # Envoy cuts the first one off by itself: 10 seconds for headers, 30 for a body.
            assert cut_off(slow[0]) in {408, None}
    bystander.report(f"{SLOW_CONNECTIONS} slow {part}")
    bystander.assert_right()
    outcomes = {record.document["bundle"] for record in mesh.ledger.since(seq)}
    assert outcomes == {"default"}, "a request that never ended was judged"
    assert {hit.target for hit in mesh.workload.hits[hits:]} == {"/public/bystander"}


def cut_off(connection: RawConnection) -> int | None:
    """Wait until Envoy ends a connection; return its last words, if any."""
    connection.patience(60)
    try:
        return connection.answer().status
    except NoAnswerError:
        return None
