"""Print what a reload costs the requests beside it: `python -m tests.bench.bench_reload`.

A server with one bundle of ABAC rules is asked over gRPC, first in peace, then while its policy is
swapped over and over. One JSON object for each number of rules and of calls in flight; latencies in
ms. Server and client have a core each, so that it is the server's doing what they show; `quiet_max`
is what the machine adds by itself. Nothing fails on a time.

    python -m tests.bench.bench_reload [--rules N ...] [--in-flight N ...] [--reloads N]
"""

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import grpc

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from tests.bench.bench_policy import abac_rows
from tests.bench.processes import cores, on_core
from tests.harness.reloading import ConfigMap
from tests.pdp_site import PdpSite
from tests.server_process import METHOD, TIMEOUT_S, ServerProcess, metadata, running

_MODEL: Final = """\
[request_definition]
r = sub, chain, act, obj
[policy_definition]
p = tool, act, rule, eft
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = r.obj.path == p.tool && r.act.name == p.act && eval(p.rule)
"""
_CANDIDATES: Final = 20
_WARM_UP_S: Final = 1.0
_QUIET_S: Final = 5.0
_Sample = tuple[float, float]  # when the call began, how long it took; seconds


def policy(rules: int, version: int) -> bytes:
    """Return so many rules, the same but for one."""
    rows = [
        row.replace("tool-", "/tool-").replace("tools/call", "GET")
        for row in abac_rows(rules, _CANDIDATES)
    ]
    return "\n".join([*rows, f"p, /version-{version}, GET, r.chain.depth > 1, allow"]).encode()


class Calls:
    """Calls one after the other on each of several threads, timed."""

    def __init__(self, address: str, data: bytes, in_flight: int) -> None:
        self.samples: list[_Sample] = []
        self.revision = ""
        self._data = data
        self._address = address
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(in_flight)]

    def __enter__(self) -> "Calls":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._address, options=options) as channel:
            check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
            while not self._done.is_set():
                began = time.perf_counter()
                answer = check(self._data, timeout=TIMEOUT_S)
                self.samples.append((began, time.perf_counter() - began))
                if len(self.samples) % 50 == 0:
                    self.revision = str(metadata(CheckResponse.FromString(answer))["revision"])


def measure(rules: int, in_flight: int, reloads: int) -> dict[str, object]:
    """Return the figures of one server."""
    server_core, client_core = cores()
    with tempfile.TemporaryDirectory() as directory:
        site = PdpSite.create(Path(directory), ledger={"mode": "off"})
        (site.bundle / "model.conf").write_text(_MODEL)
        (site.bundle / "policy.csv").write_bytes(policy(rules, 0))
        shutil.move(site.bundle, site.directory / "source")
        mount = ConfigMap(site.bundle, site.directory / "source")
        data = site.check_request("/tool-3")
        with on_core(server_core):
            running_server = running(site)
            server = running_server.__enter__()
        try:
            with on_core(client_core), Calls(server.grpc, data, in_flight) as calls:
                time.sleep(_WARM_UP_S)  # connections, the chain's proof, first-time imports
                calls.samples.clear()
                time.sleep(_QUIET_S)
                quiet = list(calls.samples)
                began = time.perf_counter()
                for version in range(1, reloads + 1):
                    before = calls.revision
                    mount.update({"policy.csv": policy(rules, version)})
                    server.wait_until(_changed(calls, before))
                ended = time.perf_counter()
            during = [sample for sample in calls.samples if began <= sample[0] <= ended]
            return figures(server, rules, in_flight, quiet, during)
        finally:
            running_server.__exit__(None, None, None)


def _changed(calls: Calls, before: str) -> Callable[[], bool]:
    return lambda: calls.revision != before


def figures(
    server: ServerProcess,
    rules: int,
    in_flight: int,
    quiet: Sequence[_Sample],
    during: Sequence[_Sample],
) -> dict[str, object]:
    """Return what is printed of one server."""
    loads = [event["load_s"] for event in server.events if event["event"] == "loaded"]
    assert all(isinstance(load, float) for load in loads)
    return {
        "rules": rules,
        "in_flight": in_flight,
        "reloads": len(loads) - 1,
        "load_s": round(statistics.median(float(str(load)) for load in loads[1:]), 2),
        "quiet_calls": len(quiet),
        **_latencies("quiet", quiet),
        "reload_calls": len(during),
        **_latencies("reload", during),
        "over_50_ms": sum(took > 0.05 for _, took in during),
    }


def _latencies(name: str, samples: Sequence[_Sample]) -> dict[str, object]:
    took = sorted(seconds * 1000 for _, seconds in samples)
    return {
        f"{name}_p50_ms": round(statistics.median(took), 2),
        f"{name}_p99_ms": round(took[int(len(took) * 0.99)], 2),
        f"{name}_max_ms": round(took[-1], 2),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--reloads", type=int, default=10)
    options = parser.parse_args()
    for rules in options.rules:
        for in_flight in options.in_flight:
            print(json.dumps(measure(rules, in_flight, options.reloads)), flush=True)


if __name__ == "__main__":
    main()
