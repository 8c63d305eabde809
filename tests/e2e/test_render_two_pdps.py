"""An Envoy that `envoy render` wrote, two PDPs behind it by mutual TLS, killed in turn under load.

The same Envoy has a listener `naive`, which lacks what is rendered for several PDPs and has their
two addresses all the same: what happens there is what the rest is for.
"""

import http.client
import json
import os
import ssl
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from authz_server.cli.main import group as command_line
from authz_server.core.spiffe import SpiffeId
from authz_server.demo.authority import write_svid
from authz_server.demo.processes import ProcessGroup
from tests.bench.processes import free_port
from tests.e2e.envoy_profiles import RunningEnvoy, start_envoy
from tests.e2e.raw_http import unix_get
from tests.e2e.recorder import Recorder, recording_workload
from tests.e2e.waiting import until
from tests.pdp_site import AUDIENCE, TRUST_DOMAIN, PdpSite
from tests.server_process import ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("two-pdps")]

HOST = "data.site.example.org"
CLIENTS = 3
ALLOWED, DENIED, UNDELEGATED = "/open/a", "/open/closed/a", "/open/undelegated"
# Requests per phase and listener: enough for the shares to be told apart.
ENOUGH = 120


@dataclass(slots=True)
class Pdp:
    """One of two PDPs on one configuration, at an address and with a ledger of its own."""

    site: PdpSite
    port: int
    number: int
    process: ServerProcess | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.process = ServerProcess(
            self.site,
            "--lame-duck",
            "0",
            environ={
                "AUTHZ_LISTEN__GRPC": f"127.0.0.1:{self.port}",
                "AUTHZ_LEDGER__URL": f"sqlite:///state/pdp-{self.number}.db",
            },
        )

    def kill(self) -> None:
        """End it at once, in the middle of whatever it does."""
        assert self.process is not None
        self.process.end()
        self.process = None


@dataclass(slots=True, kw_only=True)
class TwoPdps:
    """Everything that runs."""

    pdps: tuple[Pdp, Pdp]
    envoy: RunningEnvoy
    workload: Recorder
    tls: ssl.SSLContext
    headers: dict[str, str]

    def checks(self, listener: str) -> dict[int, int]:
        """Return how many checks went to each PDP, by its port."""
        return {port: stats["rq_total"] for port, stats in self._hosts(listener).items()}

    def is_served_by(self, ports: set[int]) -> bool:
        """Tell whether Envoy takes exactly the PDPs at `ports` for healthy."""
        hosts = self._hosts("data")
        return {port for port, stats in hosts.items() if stats["healthy"]} == ports

    def _hosts(self, listener: str) -> dict[int, dict[str, int]]:
        clusters = json.loads(unix_get(self.envoy.admin, "/clusters?format=json"))
        (found,) = [c for c in clusters["cluster_statuses"] if c["name"] == f"{listener}_pdp"]
        return {_port(host): _stats(host) for host in found["host_statuses"]}


@dataclass(slots=True)
class Load:
    """Clients that ask for what they may have, may not have, and have no delegation for."""

    running: TwoPdps
    listener: str
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    broken: list[Exception] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        for _ in range(CLIENTS):
            thread = threading.Thread(target=self._run)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def count(self) -> int:
        """Requests that were answered so far."""
        return sum(self.answers.values())

    @property
    def failed(self) -> int:
        """Requests for which there was no verdict."""
        return sum(n for (_, status), n in self.answers.items() if status == 503)

    def await_more(self, number: int = ENOUGH) -> None:
        """Return after `number` more answers."""
        wanted = self.count + number
        until(lambda: bool(self.broken) or self.count >= wanted, "answers under load")
        assert not self.broken

    def _run(self) -> None:
        running = self.running
        connection = http.client.HTTPSConnection(
            "127.0.0.1", running.envoy.ports[self.listener], context=running.tls, timeout=30
        )
        try:
            while not self._stop.is_set():
                for path in (ALLOWED, DENIED, UNDELEGATED):
                    delegated = {} if path == UNDELEGATED else running.headers
                    connection.request("GET", path, headers={"host": HOST, **delegated})
                    response = connection.getresponse()
                    response.read()
                    self.answers[path, response.status] += 1
        except Exception as error:  # noqa: BLE001 - told to the test
            self.broken.append(error)
        finally:
            connection.close()


def test_load_is_shared_and_no_death_lets_anything_through(two_pdps: TwoPdps) -> None:
    first, second = two_pdps.pdps
    both = {first.port, second.port}
    with Load(two_pdps, "data") as load, Load(two_pdps, "naive") as naive:
        load.await_more()
        assert (load.failed, naive.failed) == (0, 0)
        shares = two_pdps.checks("data")
        print(f"checks by PDP: {shares}")
        assert max(shares.values()) - min(shares.values()) <= 0.2 * sum(shares.values()) / 2

        first.kill()
        naive.await_more()
        load.await_more()
        until(lambda: two_pdps.is_served_by({second.port}), "the dead PDP to be left out")
        load.await_more()
        print(f"one killed: {load.failed} of {load.count} without a verdict")
        print(f"one killed, naive: {naive.failed} of {naive.count} without a verdict")
        # Half of the checks of the other listener met nobody.
        assert naive.failed > ENOUGH / 4
        assert load.failed < naive.failed / 10

        first.start()
        until(lambda: two_pdps.is_served_by(both), "the PDP to be found again")
        alone = two_pdps.checks("data")[first.port]
        until(lambda: two_pdps.checks("data")[first.port] > alone, "it to be asked")
        before = two_pdps.checks("data")
        load.await_more()
        after = two_pdps.checks("data")
        new = {port: after[port] - before[port] for port in both}
        print(f"checks by PDP, after its return: {new}")
        assert max(new.values()) - min(new.values()) <= 0.2 * sum(new.values()) / 2

        second.kill()
        load.await_more()
        first.kill()  # nobody is left: denied at once, by both listeners
        until(lambda: two_pdps.is_served_by(set()), "both to be left out")
        denied = load.failed
        load.await_more()
        assert load.failed - denied >= ENOUGH - 3 * CLIENTS

    _nothing_got_through(two_pdps, load, naive)


def _nothing_got_through(running: TwoPdps, *loads: Load) -> None:
    statuses = {path: set[int]() for path in (ALLOWED, DENIED, UNDELEGATED)}
    for load in loads:
        assert not load.broken
        for path, status in load.answers:
            statuses[path].add(status)
    assert statuses == {ALLOWED: {200, 503}, DENIED: {403, 503}, UNDELEGATED: {403, 503}}
    assert {hit.target for hit in running.workload.hits} == {ALLOWED}
    allowed = sum(load.answers[ALLOWED, 200] for load in loads)
    assert len(running.workload.hits) == allowed


@pytest.fixture(scope="module")
def two_pdps() -> Iterator[TwoPdps]:
    with (
        tempfile.TemporaryDirectory(prefix="authz-") as name,
        recording_workload() as workload,
        ProcessGroup(Path(name)) as processes,
    ):
        directory = Path(name)
        pdps = _pdps(directory / "site")
        try:
            for pdp in pdps:
                pdp.start()
            tree = _rendered(directory, pdps, workload.port)
            yield TwoPdps(
                pdps=pdps,
                envoy=start_envoy(tree, "envoy", directory, processes),
                workload=workload,
                tls=_agent(directory, pdps[0].site),
                headers=dict(pdps[0].site.chain()),
            )
        finally:
            for pdp in pdps:
                if pdp.process is not None:
                    pdp.kill()


def _pdps(directory: Path) -> tuple[Pdp, Pdp]:
    site = PdpSite.create(
        directory,
        tls={
            "mode": "files",
            "allowed_clients": [f"{TRUST_DOMAIN.uri}/envoy/*"],
            "certificate": "pdp.pem",
            "private_key": "pdp.key.pem",
        },
    )
    write_svid(site.authority.issue_svid(_id("/pdp")), site.directory, "pdp")
    return Pdp(site, free_port(), 1), Pdp(site, free_port(), 2)


def _rendered(directory: Path, pdps: tuple[Pdp, Pdp], upstream: int) -> dict[str, Any]:
    """Return what the command writes for two points, one of which is then spoilt."""
    authority = pdps[0].site.authority
    (directory / "bundle.pem").write_bytes(authority.bundle_pem)
    for name, workload in (("data", "/service/data"), ("envoy", "/envoy/data")):
        write_svid(authority.issue_svid(_id(workload)), directory, name)
    points = {
        "admin": f"unix://{directory}/admin.sock",
        "svid": _svid(directory, "data"),
        "pdp": {
            "addresses": [f"127.0.0.1:{pdp.port}" for pdp in pdps],
            "spiffe_id": str(_id("/pdp")),
            "svid": _svid(directory, "envoy"),
            "timeout_s": 5.0,  # a busy test machine must not turn a verdict into a timeout
        },
        "access_log": os.devnull,
        "enforcement_points": [
            {
                "name": name,
                "listen": f"127.0.0.1:{free_port()}",
                "upstream": f"127.0.0.1:{upstream}",
                "protocol": "http",
                "workload_id": str(_id("/service/data")),
                "audience": AUDIENCE,
                "domains": [HOST],
            }
            for name in ("data", "naive")
        ],
    }
    spec = directory / "points.yaml"
    spec.write_text(json.dumps(points))  # JSON is YAML, too
    result = CliRunner().invoke(
        command_line, ["envoy", "render", str(spec), "--output", "json", "--validate"]
    )
    assert result.exit_code == 0, result.stderr
    tree: dict[str, Any] = json.loads(result.stdout)
    _spoil(tree)
    return tree


def _spoil(tree: dict[str, Any]) -> None:
    resources = tree["static_resources"]
    (cluster,) = [c for c in resources["clusters"] if c["name"] == "naive_pdp"]
    for key in ("health_checks", "outlier_detection", "common_lb_config"):
        del cluster[key]
    (listener,) = [each for each in resources["listeners"] if each["name"] == "naive"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["http_filters"][0]["typed_config"]["grpc_service"]["retry_policy"]


def _agent(directory: Path, site: PdpSite) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # SPIFFE: the name is a URI
    context.load_verify_locations(directory / "bundle.pem")
    context.load_cert_chain(*write_svid(site.research, directory, "agent"))
    return context


def _svid(directory: Path, name: str) -> dict[str, str]:
    return {
        "certificate": str(directory / f"{name}.pem"),
        "private_key": str(directory / f"{name}.key.pem"),
        "trust_bundle": str(directory / "bundle.pem"),
    }


def _id(path: str) -> SpiffeId:
    return SpiffeId.parse(f"{TRUST_DOMAIN.uri}{path}")


def _port(host: dict[str, Any]) -> int:
    return int(host["address"]["socket_address"]["port_value"])


def _stats(host: dict[str, Any]) -> dict[str, int]:
    stats = {stat["name"]: int(stat.get("value", 0)) for stat in host["stats"]}
    # Envoy names what a host fails, and nothing of one that is healthy but its state.
    failed = set(host["health_status"]) - {"eds_health_status"}
    return {**stats, "healthy": int(not failed)}
