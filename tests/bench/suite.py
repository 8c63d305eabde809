"""`make bench`: what a decision costs, alone, in the server and through Envoy.

Every figure of one run comes from one machine state: the server has a core to itself, load and
Envoy have another where there is one. A no-op grpc.aio server stands beside ours, because most of
a call's cost is grpcio's own. Figures are printed, never judged: a busy machine is no defect.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc

from authz_server.core.chain_cache import ChainCache
from authz_server.core.decision import Verdict
from authz_server.reload.loader import load_snapshot
from authz_server.servers.check_service import decide
from authz_server.settings import load_settings
from tests.bench import bench_protocols, load, mesh
from tests.bench.processes import cores, cpu_us, on_core, wait_until
from tests.pdp_site import RULES, PdpSite

RULE_COUNT = 100
CONCURRENCIES = (1, 64)
WARM_UP = 500
PATH = "/open/customers/7"
_URL = f"http://{mesh.HOST}{PATH}"
_NOOP = Path(__file__).with_name("noop_server.py")


def main(arguments: Sequence[str]) -> None:
    """Run every benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="calls for each figure")
    parser.add_argument("--no-envoy", action="store_true", help="leave the real Envoy out")
    options = parser.parse_args(arguments)
    print(
        f"python {platform.python_version()}, grpcio {grpc.__version__}, {os.cpu_count()} cores, "
        f"load by {load.client_name()}, {options.requests} calls a figure\n"
    )
    bench_protocols.report(options.requests // 10)
    extra = [f"p, other-{n}, GET, /area{n}/*, data.read, , allow" for n in range(RULE_COUNT)]
    rules = (*RULES, *extra)[:RULE_COUNT]
    with tempfile.TemporaryDirectory() as directory:
        site = PdpSite.create(Path(directory), rules=rules)
        bench_decide(site, options.requests)
        with ExitStack() as stack:
            servers = [stack.enter_context(noop(site)), stack.enter_context(pdp(site))]
            bench_direct(site, servers, options.requests)
            if not options.no_envoy:
                bench_envoy(site, servers, options.requests)


def bench_decide(site: PdpSite, count: int) -> None:
    """Time `decide` alone, from bytes and with a chain it has seen before."""
    snapshot = load_snapshot(load_settings(site.configuration), chains=ChainCache())
    data, now = site.check_request(PATH), datetime.now(UTC)
    assert decide(data, snapshot, now).verdict is Verdict.ALLOW, decide(data, snapshot, now)
    took = []
    with on_core(cores()[0]):
        for _ in range(count):
            started = time.perf_counter_ns()
            decide(data, snapshot, now)
            took.append((time.perf_counter_ns() - started) / 1000)
    p50, p99 = load.percentiles(took)
    print(f"decide, parsing included: {RULE_COUNT} rules, root and one link, warm chain")
    print(f"  p50 {p50:.0f} µs   p99 {p99:.0f} µs\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server under measurement."""

    name: str
    port: int
    pid: int


@contextmanager
def noop(site: PdpSite) -> Iterator[Server]:
    """Run the floor."""
    log = site.directory / "noop.log"
    with _process([sys.executable, str(_NOOP)], log) as process:
        wait_until(lambda: log.read_text().endswith("\n"), process)
        yield Server(name="no-op", port=int(log.read_text()), pid=process.pid)


@contextmanager
def pdp(site: PdpSite) -> Iterator[Server]:
    """Run the real server: durable ledger, watch, probes."""
    log = site.directory / "server.log"
    command = ["-m", "authz_server", "serve", "--config", str(site.configuration)]
    with _process([sys.executable, *command, "--lame-duck", "0"], log) as process:
        wait_until(lambda: '"ready"' in log.read_text(), process)
        events = [json.loads(line) for line in log.read_text().splitlines()]
        (address,) = next(event["grpc"] for event in events if "grpc" in event)
        yield Server(name="authz", port=int(address.rpartition(":")[2]), pid=process.pid)


@contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output, on_core(cores()[0]):
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def bench_direct(site: PdpSite, servers: Sequence[Server], count: int) -> None:
    """Time Check straight over gRPC."""
    print("gRPC Check, direct")
    table = _Table()
    for concurrency in CONCURRENCIES:
        for server in servers:
            message = site.check_request(PATH)  # a fresh chain: they live for minutes
            with on_core(cores()[1]):
                load.check(server.port, message, concurrency=concurrency, requests=WARM_UP)
                before = cpu_us(server.pid)
                figures = load.check(server.port, message, concurrency=concurrency, requests=count)
                used = cpu_us(server.pid) - before
            table.row(server, concurrency, figures, used)
    print()


def bench_envoy(site: PdpSite, servers: Sequence[Server], count: int) -> None:
    """Time requests through a real Envoy that asks each server."""
    print("HTTP request through Envoy (mutual TLS, whole rendered filter chain), answered by Envoy")
    table = _Table()
    ports = {server.name: server.port for server in servers}
    with mesh.envoy(site, ports, core=cores()[1]) as entries:
        for concurrency in CONCURRENCIES:
            for server in servers:
                headers, port = site.chain(), entries[server.name]
                with on_core(cores()[1]):
                    load.get(port, _URL, headers, concurrency=concurrency, requests=WARM_UP)
                    before = cpu_us(server.pid)
                    figures = load.get(port, _URL, headers, concurrency=concurrency, requests=count)
                    used = cpu_us(server.pid) - before
                table.row(server, concurrency, figures, used)
    print()


class _Table:
    """Prints rows; ours with its CPU time as a multiple of the floor's."""

    def __init__(self) -> None:
        self._floor: dict[int, float] = {}
        print("  in flight  server   requests/s   p50 µs   p99 µs   server CPU µs/call")

    def row(self, server: Server, concurrency: int, figures: load.Load, used_us: float) -> None:
        """Print one row. The floor's row must come first."""
        each = used_us / figures.requests
        floor = self._floor.setdefault(concurrency, each)
        ratio = "" if server.name == "no-op" else f"  ({each / floor:.2f} x no-op)"
        print(
            f"  {concurrency:9}  {server.name:7} {figures.per_second:11.0f} {figures.p50_us:8.0f} "
            f"{figures.p99_us:8.0f} {each:20.0f}{ratio}",
            flush=True,
        )
