"""Start, drain, crash and start again: no call is lost, and no answer without its record."""

import signal
import socket
import sqlite3
import threading
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from authz_server.servers.grpc_server import SERVICE
from tests.pdp_site import PdpSite
from tests.server_process import ServerProcess, metadata, running, serve_to_the_end

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def site(tmp_path: Path) -> PdpSite:
    return PdpSite.create(tmp_path)


def recorded(site: PdpSite) -> set[str]:
    """Return the ids of all recorded decisions, read while nobody else uses the file."""
    with sqlite3.connect(site.ledger) as connection:
        rows = connection.execute("SELECT decision_id FROM decisions").fetchall()
    connection.close()
    return {str(row[0]) for row in rows}


class Load:
    """Calls from several threads, each until it is refused."""

    def __init__(self, server: ServerProcess, data: bytes, threads: int = 8) -> None:
        self._server = server
        self.answered: list[str] = []
        self.refused: list[grpc.RpcError] = []
        self._threads = [threading.Thread(target=self._run, args=(data,)) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, data: bytes) -> None:
        while True:
            try:
                answer = self._server.check(data)
            except grpc.RpcError as error:
                self.refused.append(error)
                return
            self.answered.append(str(metadata(answer)["decision_id"]))

    def wait(self, *, calls: int) -> None:
        """Wait until that many calls were answered."""
        self._server.wait_until(lambda: len(self.answered) >= calls)

    def join(self) -> None:
        """Wait for every thread to be refused."""
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()


def test_a_drain_is_announced_before_it_begins(site: PdpSite) -> None:
    data = site.check_request("/open/1")
    with running(site, "--lame-duck", "60") as server:
        stub = health_pb2_grpc.HealthStub(server.channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service=s)) for s in ("", SERVICE)]
        assert [next(watch).status for watch in watches] == [SERVING, SERVING]
        assert server.readyz()[0] == 200

        server.signal(signal.SIGTERM)
        assert [next(watch).status for watch in watches] == [NOT_SERVING, NOT_SERVING]
        status, detail = server.readyz()
        assert (status, detail["why_not"]) == (503, ["draining"])
        assert server.get("/healthz")[0] == 200
        assert server.reason(data) == "OK", "the lame duck still answers"
        for watch in watches:
            watch.cancel()

        server.signal(signal.SIGTERM)  # asked again: at once
        assert server.wait() == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_under_load_answers_everything_it_decided_and_exits_0(
    site: PdpSite, number: signal.Signals
) -> None:
    with running(site, "--lame-duck", "0") as server:
        load = Load(server, site.check_request("/open/1"))
        load.wait(calls=100)
        server.signal(number)
        assert server.wait() == 0
        load.join()
        assert server.event_names[-2:] == ["draining", "stopped"]
    # Calls that gRPC had received but not yet handed over are refused undecided; Envoy denies.
    assert recorded(site) == set(load.answered)


def test_after_a_crash_every_answer_has_its_record_and_a_restart_just_works(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pdp.sock"
    site = PdpSite.create(
        tmp_path / "site", listen={"grpc": f"unix://{path}", "http": "127.0.0.1:0"}
    )
    data = site.check_request("/open/1")
    answered: list[str] = []
    for _ in range(2):
        with running(site) as server:
            load = Load(server, data)
            load.wait(calls=50)
            server.signal(signal.SIGKILL)
            assert server.wait() == -signal.SIGKILL
            load.join()
            answered += load.answered
            assert path.is_socket(), "left behind, and taken over by the next"
        assert recorded(site).issuperset(answered)
    with running(site, "--lame-duck", "0") as server:
        assert server.reason(data) == "OK"
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert not path.exists()


def test_every_fault_of_a_broken_start_is_shown_and_nothing_is_served(site: PdpSite) -> None:
    site.write_rules(["p, one, GET, /open/*, data.read, , alow", "p, two, GET, /x, , , deny, more"])
    (site.directory / "identities.yaml").write_text("identities: [{id: 7}]\n")
    result = serve_to_the_end(site.configuration)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    for place in ("policy.csv:1:", "policy.csv:2:", "identities.yaml:1:"):
        assert place in result.stderr
    assert '"listening"' not in result.stderr


def test_an_unusable_ledger_at_the_start_is_one_line(tmp_path: Path) -> None:
    site = PdpSite.create(tmp_path, ledger={"url": "sqlite:///nowhere/authz.db"})
    result = serve_to_the_end(site.configuration)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_an_address_in_use_at_the_start_is_one_line(tmp_path: Path, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", kind: f"127.0.0.1:{port}"}
        site = PdpSite.create(tmp_path, listen=listen)
        result = serve_to_the_end(site.configuration)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last == f"error: cannot listen on {kind} 127.0.0.1:{port}: Address already in use"


def test_a_locked_ledger_denies_everything_and_heals_by_itself(site: PdpSite) -> None:
    requests = {path: site.check_request(path) for path in ("/open/1", "/ask/1", "/elsewhere")}
    with running(site) as server:
        assert server.reason(requests["/open/1"]) == "OK"
        lock = sqlite3.connect(site.ledger, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        for data in requests.values():
            assert server.reason(data) == "LEDGER_UNAVAILABLE"
        status, detail = server.readyz()
        assert status == 503
        assert "ledger unavailable" in str(detail["why_not"])
        lock.execute("ROLLBACK")
        lock.close()
        assert server.reason(requests["/open/1"]) == "OK"
        assert server.readyz()[0] == 200
        assert server.event_names.count("ledger_unavailable") == 1
        assert server.event_names.count("ledger_recovered") == 1
        assert server.metric("authz_ledger_failures_total") == 3


def test_a_ledger_that_was_taken_away_is_noticed(site: PdpSite) -> None:
    data = site.check_request("/open/1")
    with running(site) as server:
        assert server.reason(data) == "OK"
        site.ledger.rename(site.ledger.with_suffix(".moved"))
        assert server.reason(data) == "LEDGER_UNAVAILABLE"


def test_health_follows_the_ledger(site: PdpSite) -> None:
    data = site.check_request("/open/1")
    with running(site) as server:
        watch = health_pb2_grpc.HealthStub(server.channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE)
        )
        assert next(watch).status == SERVING
        lock = sqlite3.connect(site.ledger, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        assert server.reason(data) == "LEDGER_UNAVAILABLE"
        assert next(watch).status == NOT_SERVING
        lock.execute("ROLLBACK")
        lock.close()
        assert server.reason(data) == "OK"
        assert next(watch).status == SERVING
        watch.cancel()


def test_a_reload_that_is_refused_changes_nothing_and_is_shown(site: PdpSite) -> None:
    open_path, other = site.check_request("/open/1"), site.check_request("/new/1")
    good = (site.bundle / "policy.csv").read_text().splitlines()
    with running(site) as server:
        revision = server.readyz()[1]["revision"]
        site.write_rules([*good, "p, broken, GET, /new/*, data.read, , alow"])
        server.signal(signal.SIGHUP)
        server.wait_until(lambda: server.metric("authz_reload_failed") == 1)
        assert server.reason(open_path) == "OK"
        assert server.reason(other) == "NO_MATCHING_RULE"
        status, detail = server.readyz()
        assert (status, detail["revision"]) == (200, revision)
        assert "policy.csv:4:" in str(detail["reload_faults"])

        site.write_rules([*good, "p, mended, GET, /new/*, data.read, , allow"])
        server.signal(signal.SIGHUP)
        server.wait_until(lambda: server.metric("authz_reload_failed") == 0)
        assert server.reason(other) == "OK"
        detail = server.readyz()[1]
        assert detail["revision"] != revision
        assert detail["reload_faults"] == []
        assert server.event_names.count("reload_refused") == 1
