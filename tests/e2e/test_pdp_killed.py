"""No PDP, no access: killed under load, killed inside a call, or too slow to answer."""

import os
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e import envoy_profiles
from tests.e2e.attack_mesh import Mesh, running_mesh, surroundings
from tests.e2e.envoy_profiles import start_envoy
from tests.e2e.raw_http import RawConnection, exchange
from tests.e2e.waiting import until

CLIENTS = 4
# What Envoy answers for the PDP: hardened names the error (`status_on_error`), default does not.
NO_ANSWER = {"hardened": 503, "default": 403}
PDP_CLUSTER = {"hardened": "tool_pdp", "default": "pdp"}


@pytest.fixture(scope="module")
def fragile_mesh() -> Iterator[Mesh]:
    """A mesh of its own: its PDP dies. Its Envoys wait a quarter of a second for a verdict."""
    with (
        tempfile.TemporaryDirectory(prefix="authz-") as directory,
        running_mesh(Path(directory), pdp_timeout_s=0.25) as mesh,
    ):
        yield mesh


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: tool.example\r\n\r\n".encode()


@dataclass(slots=True)
class Load:
    """Clients that send requests without a pause. The path of each names the phase it began in."""

    mesh: Mesh
    profile: str
    phase: str = "before"
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    allowed_ids: list[str] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self.mesh.tls("narrow")  # made once, not by every client at the same time
        self._threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def count(self, phase: str, status: int) -> int:
        with self._lock:
            return self.answers[phase, status]

    def seen(self) -> list[tuple[str, int]]:
        with self._lock:
            return list(self.answers)

    def _client(self) -> None:
        try:
            port = self.mesh.envoys[self.profile].ports["tool"]
            with RawConnection(port, tls=self.mesh.tls("narrow")) as connection:
                while not self._stop.is_set():
                    phase = self.phase
                    connection.send(get(f"/public/{phase}"))
                    answer = connection.answer()
                    with self._lock:
                        self.answers[phase, answer.status] += 1
                        if answer.status == 200:
                            self.allowed_ids.append(answer.headers["x-authz-decision-id"])
        except Exception as error:  # noqa: BLE001  # handed to the test
            self.faults.append(error)


def hits(mesh: Mesh, target: str) -> int:
    return sum(hit.target == target for hit in mesh.workload.hits)


@pytest.mark.parametrize("profile", ["hardened", "default"])
def test_killed_under_load(fragile_mesh: Mesh, profile: str) -> None:
    mesh = fragile_mesh
    phases = {name: f"{name}-{profile}" for name in ("before", "down", "back")}
    load = Load(mesh, profile, phase=phases["before"])
    load.start()
    try:
        until(lambda: load.count(phases["before"], 200) >= 100, "allowed requests")
        mesh.pdp.kill()
        load.phase = phases["down"]
        until(lambda: load.count(phases["down"], NO_ANSWER[profile]) >= 200, "refused requests")
        assert {status for phase, status in load.seen() if phase == phases["down"]} == {
            NO_ANSWER[profile]
        }
        assert hits(mesh, f"/public/{phases['down']}") == 0
        mesh.start_pdp()
        load.phase = phases["back"]
        until(lambda: load.count(phases["back"], 200) >= 100, "allowed requests again")
    finally:
        load.stop()

    assert load.faults == []
    # Before, between and after: no answer and no hit without a durable decision behind it.
    records = {record.decision_id: record.outcome for record in mesh.ledger.since(0)}
    assert {records.get(decision_id) for decision_id in load.allowed_ids} == {"allow"}
    for hit in mesh.workload.hits:
        (decision_id,) = hit.values("x-authz-decision-id")
        assert records.get(decision_id) == "allow"


@pytest.mark.parametrize("profile", ["hardened", "default"])
def test_while_it_is_down(fragile_mesh: Mesh, profile: str) -> None:
    mesh = fragile_mesh
    target = f"/public/nobody-decides-{profile}"
    mesh.pdp.kill()
    try:
        for _ in range(20):
            answer = exchange(mesh.envoys[profile].ports["tool"], get(target), tls=mesh.tls("wide"))
            assert answer.status == NO_ANSWER[profile]
        assert hits(mesh, target) == 0
        assert hits_of_the_naive_version(mesh) == 1
    finally:
        mesh.start_pdp()


def hits_of_the_naive_version(mesh: Mesh) -> int:
    """Ask an Envoy that allows on failure: the one setting all of this depends on."""
    tree = envoy_profiles.hardened(surroundings(mesh, "naive", 0.25))
    manager = tree["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
    manager["typed_config"]["http_filters"][0]["typed_config"]["failure_mode_allow"] = True
    naive = start_envoy(tree, "naive", mesh.directory, mesh.group)
    try:
        answer = exchange(naive.ports["tool"], get("/admin/naive"), tls=mesh.tls("narrow"))
    finally:
        naive.process.kill()
    assert answer.status == 200
    count = hits(mesh, "/admin/naive")
    # The workload's memory is shared with the tests that expect a decision behind every hit.
    mesh.workload.hits[:] = [hit for hit in mesh.workload.hits if hit.target != "/admin/naive"]
    return count


@pytest.mark.parametrize("profile", ["hardened", "default"])
def test_too_slow(fragile_mesh: Mesh, profile: str) -> None:
    mesh = fragile_mesh
    slow, after = f"/public/slow-{profile}", f"/public/after-{profile}"
    port = mesh.envoys[profile].ports["tool"]
    os.kill(mesh.pdp.pid, signal.SIGSTOP)
    try:
        answer = exchange(port, get(slow), tls=mesh.tls("narrow"))
    finally:
        os.kill(mesh.pdp.pid, signal.SIGCONT)
    assert answer.status == NO_ANSWER[profile]

    def allowed_again() -> bool:
        return exchange(port, get(after), tls=mesh.tls("narrow")).status == 200

    until(allowed_again, "an allowed request")
    # The verdict that came too late, an allow, let nothing through.
    assert hits(mesh, slow) == 0
    assert hits(mesh, after) >= 1


@pytest.mark.parametrize("profile", ["hardened", "default"])
def test_killed_inside_a_call(fragile_mesh: Mesh, profile: str) -> None:
    mesh = fragile_mesh
    target = f"/public/inside-{profile}"
    envoy = mesh.envoys[profile]
    checks = f"cluster.{PDP_CLUSTER[profile]}.upstream_rq_total"
    before = envoy.statistic(checks)
    os.kill(mesh.pdp.pid, signal.SIGSTOP)
    try:
        with RawConnection(envoy.ports["tool"], tls=mesh.tls("narrow")) as connection:
            connection.send(get(target))
            # The call is under way, or has run into its timeout: neither may let it through.
            until(lambda: envoy.statistic(checks) > before, "a check")
            mesh.pdp.kill()
            assert connection.answer().status == NO_ANSWER[profile]
    finally:
        mesh.start_pdp()
    assert hits(mesh, target) == 0
