"""The server as operators run it: a process, its log, its ports and its ledger."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from tests.pdp_site import PdpSite

METHOD = "/envoy.service.auth.v3.Authorization/Check"
TIMEOUT_S = 20.0


class ServerProcess:
    """A running `authz-server serve`."""

    def __init__(
        self,
        site: PdpSite,
        *options: str,
        begun: str = "ready",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Start it and wait until it logs the event `begun`."""
        self.site = site
        self.log = site.directory / f"server-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "authz_server", "serve", "--config"]
        with self.log.open("wb") as output:
            self.popen = subprocess.Popen(
                [*command, str(site.configuration), *options],
                stdout=output,
                stderr=output,
                env={**os.environ, **(environ or {})},
            )
        try:
            self.wait_until(lambda: begun in self.event_names or self.popen.poll() is not None)
            if self.popen.poll() is not None:
                raise AssertionError(f"the server ended:\n{self.log.read_text()}")
            self.grpc, self.http = self._addresses()
            self.channel = grpc.insecure_channel(self.grpc)
            self._check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(
                METHOD
            )
        except BaseException:
            self.popen.kill()
            self.popen.wait()
            raise

    @property
    def events(self) -> list[dict[str, object]]:
        """What the server logged so far."""
        lines = self.log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n") and line[:1] == "{"]

    @property
    def event_names(self) -> list[object]:
        """The names of `events`."""
        return [event["event"] for event in self.events]

    def _addresses(self) -> tuple[str, str]:
        found = {
            key: event[key] for event in self.events for key in ("grpc", "http") if key in event
        }
        assert isinstance(found["grpc"], list)
        return str(found["grpc"][0]), str(found["http"])

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition()`; fail after a while."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain:\n{self.log.read_text()}"
            time.sleep(0.01)

    def check(self, data: bytes) -> CheckResponse:
        """Ask, as Envoy does."""
        return CheckResponse.FromString(self._check(data, timeout=TIMEOUT_S))

    def reason(self, data: bytes) -> str:
        """Ask, and return the reason code."""
        return str(metadata(self.check(data))["reason"])

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a page of the probe port."""
        connection = http.client.HTTPConnection(self.http, timeout=TIMEOUT_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def readyz(self) -> tuple[int, Mapping[str, object]]:
        """Return status and detail of `/readyz`."""
        status, body = self.get("/readyz")
        return status, json.loads(body)

    def metric(self, line: str) -> float:
        """Return the value of the metric that is called exactly `line`, labels included."""
        text = self.get("/metrics")[1].decode()
        found = [row for row in text.splitlines() if row.rpartition(" ")[0] == line]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.popen.pid, number)

    def signal_reload_until(self, condition: Callable[[], bool]) -> None:
        """Have it look at everything now, and again, until `condition()`."""

        def looked() -> bool:
            self.signal(signal.SIGHUP)
            return condition()

        self.wait_until(looked)

    def wait(self) -> int:
        """Return the exit status once it ended."""
        return self.popen.wait(TIMEOUT_S)

    def end(self) -> None:
        """End the process, whatever its state, and close the channel."""
        self.channel.close()
        self.popen.kill()
        self.popen.wait()


@contextmanager
def running(
    site: PdpSite, *options: str, environ: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Run a server for `site`; killed at the end if it still runs."""
    server = ServerProcess(site, *options, environ=environ)
    try:
        yield server
    finally:
        server.end()


def metadata(answer: CheckResponse) -> dict[str, object]:
    """Return the dynamic metadata as plain values."""
    return dict(answer.dynamic_metadata.items())


def serve_to_the_end(
    configuration: Path, *options: str, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `serve` where it is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "authz_server", "serve", "--config", str(configuration), *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, **(environ or {})},
        check=False,
    )
