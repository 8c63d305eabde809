"""Rendered ways to workloads elsewhere: what leaves, to whom, and what never does."""

import http.client
import json
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from authz_server.agent.svid import Svid
from authz_server.cli.main import group as command_line
from authz_server.demo.authority import TrustDomainAuthority, write_svid
from authz_server.demo.processes import ProcessGroup
from tests.bench.processes import free_port
from tests.e2e.envoy_profiles import start_envoy

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("way-out")]

OURS = TrustDomainAuthority.create("prod.example.org")
STRANGERS = TrustDomainAuthority.create("prod.example.org")  # the same name, other keys
HOST = "elsewhere.example"
TOKENS = {"txn-token": "root-of-somebody", "delegation-chain": "a-link"}


@dataclass(slots=True)
class Peer:
    """A TLS server that notes every byte it is sent after the handshake, and answers 200."""

    port: int
    received: list[bytes] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)


@contextmanager
def peer(svid: Svid, directory: Path, name: str) -> Iterator[Peer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_svid(svid, directory, name))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(directory / "bundle.pem")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = Peer(listening.getsockname()[1])

        def serve() -> None:
            while True:
                try:
                    plain, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=_answer, args=(context, plain, running)).start()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield running
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def _answer(context: ssl.SSLContext, plain: socket.socket, running: Peer) -> None:
    try:
        with context.wrap_socket(plain, server_side=True) as tls:
            tls.settimeout(10)
            certificate: dict[str, Any] = dict(tls.getpeercert() or {})
            running.callers += [value for _, value in certificate["subjectAltName"]]
            data = b""
            while not data.endswith(b"\r\n\r\n") and (more := tls.recv(65536)):
                data += more
            if data:
                running.received.append(data)
                tls.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    except OSError:
        plain.close()  # it would not prove itself to us, or we not to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A way out to a good peer, to one with another id, and to one with another authority."""

    port: int
    points: dict[str, int]  # enforcement points with a workload elsewhere
    tls: ssl.SSLContext  # of a caller
    good: Peer
    other: Peer
    stranger: Peer

    def ask(self, host: str, target: str = "/work", **headers: str) -> int:
        """Send a request with a delegation, as a plain client; return the status."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        return self._ask(connection, target, {"host": host, **headers})

    def ask_at(self, point: str) -> int:
        """Send a request with a delegation to an enforcement point; return the status."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.points[point], timeout=20, context=self.tls
        )
        return self._ask(connection, "/work", {"host": HOST})

    def _ask(
        self, connection: http.client.HTTPConnection, target: str, headers: dict[str, str]
    ) -> int:
        try:
            connection.request("GET", target, headers={**TOKENS, **headers})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="authz-") as name, ExitStack() as stack:
        directory = Path(name)
        (directory / "bundle.pem").write_bytes(OURS.bundle_pem)
        write_svid(OURS.issue_svid("/agent/assistant"), directory, "svid")
        good, other, stranger = (
            stack.enter_context(peer(svid, directory, role))
            for role, svid in (
                ("good", OURS.issue_svid("/tool/good")),
                ("other", OURS.issue_svid("/tool/other")),
                ("stranger", STRANGERS.issue_svid("/tool/stranger")),
            )
        )
        port = free_port()
        hosts = {"good.example": (good, "good"), "renamed.example": (other, "renamed")}
        hosts["stranger.example"] = (stranger, "stranger")
        spec: dict[str, Any] = {
            "admin": f"unix://{directory}/admin.sock",
            "access_log": os.devnull,
            "svid": {
                "certificate": f"{directory}/svid.pem",
                "private_key": f"{directory}/svid.key.pem",
                "trust_bundle": f"{directory}/bundle.pem",
            },
            "outbound": [
                {
                    "name": "tools",
                    "listen": f"127.0.0.1:{port}",
                    "hosts": {
                        host: {
                            "upstream": f"127.0.0.1:{running.port}",
                            "spiffe_id": f"spiffe://prod.example.org/tool/{tool}",
                        }
                        for host, (running, tool) in hosts.items()
                    },
                }
            ],
        }
        points = {name: free_port() for name in ("good", "renamed")}
        spec["pdp"] = {"addresses": f"unix://{directory}/pdp.sock", "timeout_s": 5.0}
        spec["enforcement_points"] = [
            {
                "name": tool,
                "listen": f"127.0.0.1:{points[tool]}",
                # As if it were elsewhere: that it must prove itself is the same.
                "upstream": f"127.0.0.1:{running.port}",
                "upstream_spiffe_id": f"spiffe://prod.example.org/tool/{tool}",
                "protocol": "http",
                "workload_id": f"spiffe://prod.example.org/tool/{tool}",
                "audience": "https://elsewhere.example",
                "domains": [HOST],
            }
            for tool, running in (("good", good), ("renamed", other))
        ]
        stack.enter_context(_allowing_pdp(directory / "pdp.sock"))
        (directory / "out.yaml").write_text(json.dumps(spec))
        argv = ["envoy", "render", f"{directory}/out.yaml", "--output", "json", "--validate"]
        result = CliRunner().invoke(command_line, argv)
        assert result.exit_code == 0, result.stderr
        group = stack.enter_context(ProcessGroup(directory))
        start_envoy(json.loads(result.stdout), "envoy", directory, group)
        yield Site(
            port=port,
            points=points,
            tls=_caller(directory),
            good=good,
            other=other,
            stranger=stranger,
        )


@contextmanager
def _allowing_pdp(path: Path) -> Iterator[None]:
    allow = CheckResponse()
    allow.ok_response.SetInParent()
    handler = grpc.method_handlers_generic_handler(
        "envoy.service.auth.v3.Authorization",
        {"Check": grpc.unary_unary_rpc_method_handler(lambda *_: allow.SerializeToString())},
    )
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        yield
    finally:
        server.stop(grace=None).wait()


def _caller(directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # SPIFFE: the name is a URI
    context.load_verify_locations(directory / "bundle.pem")
    context.load_cert_chain(*write_svid(OURS.issue_svid("/agent/caller"), directory, "caller"))
    return context


def test_a_listed_host_that_proves_itself_gets_the_delegation_as_sent(site: Site) -> None:
    forged = {"x-forwarded-client-cert": "URI=spiffe://a/b", "x-authz-decision-id": "forged"}
    assert site.ask("good.example", **forged) == 200
    request = site.good.received[-1].decode().lower()
    for name, value in TOKENS.items():
        assert request.count(f"{name}: {value}\r\n") == 1
    assert "host: good.example\r\n" in request
    assert "x-forwarded-client-cert" not in request
    assert "x-authz-decision-id" not in request
    assert site.good.callers[-1] == "spiffe://prod.example.org/agent/assistant"


@pytest.mark.parametrize("host", ["good.example:8080", "GOOD.example", "good.example."])
def test_other_spellings_of_a_listed_host(site: Site, host: str) -> None:
    assert site.ask(host) == 200


def test_a_client_may_take_it_for_its_proxy(site: Site) -> None:
    assert site.ask("ignored.example", "http://good.example/work") == 200
    assert site.good.received[-1].startswith(b"GET /work HTTP/1.1\r\nhost: good.example\r\n")
    before = len(site.good.received)
    assert site.ask("good.example", "http://evil.example/work") == 404
    assert len(site.good.received) == before


@pytest.mark.parametrize("host", ["renamed.example", "stranger.example"])
def test_who_does_not_prove_the_expected_id_is_sent_nothing(site: Site, host: str) -> None:
    # The first is of our trust domain and has an SVID that is good for something else.
    assert site.ask(host) == 503
    assert site.other.received == []
    assert site.stranger.received == []


@pytest.mark.parametrize(
    "host", ["evil.example", "good.example.evil.example", "127.0.0.1", "good.example,evil.example"]
)
def test_a_host_that_is_not_listed_is_answered_here(site: Site, host: str) -> None:
    before = len(site.good.received)
    assert site.ask(host) in {400, 404}
    assert len(site.good.received) == before


def test_a_workload_elsewhere_that_is_allowed_is_sent_nothing_before_it_proves_itself(
    site: Site,
) -> None:
    assert site.ask_at("good") == 200
    assert site.good.callers[-1] == "spiffe://prod.example.org/agent/assistant"
    assert site.ask_at("renamed") == 503
    assert site.other.received == []
