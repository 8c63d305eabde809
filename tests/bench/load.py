"""Put load on a gRPC or HTTP address and measure it: h2load where it is installed, else Python.

Both count an answer other than 200 as a failure. The Python client tops out at a few thousand
requests/s, so with it the concurrent figures say more about the client than about the server; the
server's CPU per call is right either way.
"""

import asyncio
import http.client
import shutil
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import grpc.aio

METHOD = "/envoy.service.auth.v3.Authorization/Check"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a load run measured. Latencies in µs."""

    requests: int
    per_second: float
    p50_us: float
    p99_us: float


def client_name() -> str:
    """Return what `check` and `get` will use."""
    return "h2load" if shutil.which("h2load") else "python"


def check(port: int, message: bytes, *, concurrency: int, requests: int) -> Load:
    """Send `message` to Check on loopback, `concurrency` calls in flight on one connection."""
    if client_name() == "python":
        return asyncio.run(_python_check(port, message, concurrency, requests))
    with tempfile.NamedTemporaryFile() as body:
        body.write(b"\0" + struct.pack(">I", len(message)) + message)  # gRPC length prefix
        body.flush()
        headers = ("content-type: application/grpc", "te: trailers")
        return _h2load(
            f"http://127.0.0.1:{port}{METHOD}", headers, concurrency, requests, body=body.name
        )


def get(
    port: int, url: str, headers: Mapping[str, str], *, concurrency: int, requests: int
) -> Load:
    """Send `GET url` over HTTP/1.1 to a port of loopback, on `concurrency` connections."""
    if client_name() == "python":
        return _python_get(port, url, headers, concurrency, requests)
    lines = tuple(f"{name}: {value}" for name, value in headers.items())
    return _h2load(url, lines, concurrency, requests, http1_port=port)


def _h2load(
    url: str,
    headers: tuple[str, ...],
    concurrency: int,
    requests: int,
    *,
    body: str | None = None,
    http1_port: int | None = None,
) -> Load:
    clients, streams = (1, concurrency) if http1_port is None else (concurrency, 1)
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        command = ["h2load", "-t1", f"-c{clients}", f"-m{streams}", f"-n{requests}"]
        command += [f"--log-file={log}", *(part for line in headers for part in ("-H", line))]
        command += ["--h1", f"--connect-to=127.0.0.1:{http1_port}"] if http1_port else []
        command += (["-d", body] if body else []) + [url]
        started = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        elapsed = time.perf_counter() - started
        rows = [line.split() for line in log.read_text().splitlines()]
    statuses = {status for _, status, _ in rows}
    if statuses != {"200"} or len(rows) != requests:
        raise RuntimeError(f"load failed: {len(rows)} answers, statuses {statuses}\n{done.stdout}")
    begin = min(int(start) for start, _, _ in rows)
    end = max(int(start) + int(took) for start, _, took in rows)
    span = (end - begin) / 1e6 or elapsed
    return _load([float(took) for _, _, took in rows], span)


async def _python_check(port: int, message: bytes, concurrency: int, requests: int) -> Load:
    took: list[float] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)

        async def worker(count: int) -> None:
            for _ in range(count):
                started = time.perf_counter()
                await method(message)
                took.append((time.perf_counter() - started) * 1e6)

        started = time.perf_counter()
        await asyncio.gather(*(worker(requests // concurrency) for _ in range(concurrency)))
        return _load(took, time.perf_counter() - started)


def _python_get(
    port: int, url: str, headers: Mapping[str, str], concurrency: int, requests: int
) -> Load:
    parts = urlsplit(url)

    def worker(count: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        took = []
        for _ in range(count):
            started = time.perf_counter()
            connection.request("GET", parts.path, headers={"host": parts.netloc, **headers})
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise RuntimeError(f"load failed: status {response.status}")
            took.append((time.perf_counter() - started) * 1e6)
        connection.close()
        return took

    with ThreadPoolExecutor(concurrency) as pool:
        started = time.perf_counter()
        runs = list(pool.map(worker, [requests // concurrency] * concurrency))
        return _load([value for run in runs for value in run], time.perf_counter() - started)


def _load(took_us: list[float], seconds: float) -> Load:
    p50, p99 = percentiles(took_us)
    return Load(requests=len(took_us), per_second=len(took_us) / seconds, p50_us=p50, p99_us=p99)


def percentiles(values: list[float]) -> tuple[float, float]:
    """Return the 50th and the 99th percentile."""
    cuts = statistics.quantiles(values, n=100)
    return cuts[49], cuts[98]
