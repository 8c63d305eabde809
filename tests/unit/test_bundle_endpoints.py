"""Bundle endpoints of both profiles, against a real TLS server that serves anything."""

import base64
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from authz_server.agent.svid import Svid
from authz_server.core.errors import ConfigurationError
from authz_server.core.spiffe import TrustDomain
from authz_server.demo.authority import LeafProfile, TrustDomainAuthority, write_svid
from authz_server.identity.bundle_endpoints import BundleEndpoints
from authz_server.settings.model import BundleEndpoint
from tests.e2e.waiting import until

PARTNER = TrustDomain.parse("partner.example")
THEIRS = TrustDomainAuthority.create(PARTNER)
NEXT = TrustDomainAuthority.create(PARTNER)
SERVER_ID = "spiffe://partner.example/spire/server"
LOOPBACK = LeafProfile(ip_addresses=("127.0.0.1",))


def document(*authorities: TrustDomainAuthority, sequence: int = 1, hint: int = 1) -> bytes:
    keys = [
        {
            "use": "x509-svid",
            "kty": "EC",
            "x5c": [base64.b64encode(a.root.public_bytes(Encoding.DER)).decode()],
        }
        for a in authorities
    ]
    values = {"keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": hint}
    return json.dumps(values).encode()


@dataclass(slots=True)
class Endpoint:
    """A running endpoint; what it answers can be changed."""

    port: int
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: int = 0


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    """Return a function that serves with an SVID."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(svid: Svid) -> Endpoint:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                endpoint.asked += 1
                self.send_response(endpoint.status)
                for name, value in endpoint.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(endpoint.body)))
                self.end_headers()
                self.wfile.write(endpoint.body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass  # a client that refuses the certificate is what some tests are about

        server = Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*write_svid(svid, tmp_path, f"endpoint-{len(servers)}"))
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        endpoint = Endpoint(port=server.server_address[1])
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return endpoint

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Follow:
    """What is configured for an endpoint, followed, with a clock of its own."""

    def __init__(self, tmp_path: Path, port: int, **settings: object) -> None:
        self.now = datetime.now(UTC)
        self.said: list[str] = []
        (tmp_path / "first.json").write_bytes(document(THEIRS))
        values = {
            "trust_domain": PARTNER,
            "url": f"https://127.0.0.1:{port}/bundle?x=1",
            "profile": "https_spiffe",
            "endpoint_spiffe_id": SERVER_ID,
            "bundle": tmp_path / "first.json",
        } | settings
        self.endpoints = BundleEndpoints(
            [BundleEndpoint.model_validate({k: v for k, v in values.items() if v is not None})],
            max_age_s=3600,
            clock=lambda: self.now,
            changed=lambda: None,
            report=self.said.append,
        )

    def __enter__(self) -> "Follow":
        self.endpoints.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.endpoints.stop()

    def authorities(self) -> tuple[object, ...] | None:
        bundle = self.endpoints.bundles.bundles.get(PARTNER)
        return bundle.authorities if bundle else None

    def refused(self, why: str) -> bool:
        until(lambda: any(why in line for line in self.said), why)
        return self.authorities() is None


def test_https_spiffe_follows_a_rotation(serve: Any, tmp_path: Path) -> None:
    endpoint = serve(THEIRS.issue_svid(SERVER_ID))
    endpoint.body = document(THEIRS)
    with Follow(tmp_path, endpoint.port) as follow:
        until(lambda: follow.authorities() == (THEIRS.root,), "the first")
        endpoint.body = document(THEIRS, NEXT, sequence=2)
        until(lambda: follow.authorities() == (THEIRS.root, NEXT.root), "both")
        endpoint.body = document(sequence=3)
        until(lambda: follow.authorities() == (), "every key taken back")


def test_https_web_needs_the_name_and_the_authority(serve: Any, tmp_path: Path) -> None:
    web = TrustDomainAuthority.create("web.example")
    (tmp_path / "web.pem").write_bytes(web.bundle_pem)
    as_web = {"profile": "https_web", "endpoint_spiffe_id": None, "bundle": None}
    good = serve(web.issue_svid("/x", profile=LOOPBACK))
    good.body = document(THEIRS)
    with Follow(tmp_path, good.port, **as_web, ca_file=tmp_path / "web.pem") as follow:
        until(lambda: follow.authorities() == (THEIRS.root,), "the bundle")
    with Follow(tmp_path, good.port, **as_web) as follow:
        assert follow.refused("certificate refused"), "the system knows no such authority"
    nameless = serve(web.issue_svid("/x"))
    nameless.body = good.body
    with Follow(tmp_path, nameless.port, **as_web, ca_file=tmp_path / "web.pem") as follow:
        assert follow.refused("certificate refused")


@pytest.mark.parametrize(
    ("svid", "why"),
    [
        (NEXT.issue_svid(SERVER_ID), "certificate refused"),
        (THEIRS.issue_svid("/another"), "the endpoint is `spiffe://partner.example/another`"),
        (THEIRS.issue_leaf((SERVER_ID, SERVER_ID)), "is no X509-SVID"),
        (THEIRS.issue_leaf((), profile=LOOPBACK), "is no X509-SVID"),
    ],
)
def test_https_spiffe_needs_the_endpoint_itself(
    serve: Any, tmp_path: Path, svid: Svid, why: str
) -> None:
    endpoint = serve(svid)
    endpoint.body = document(NEXT)
    with Follow(tmp_path, endpoint.port) as follow:
        assert follow.refused(why)
    assert endpoint.asked == 0, "nothing is asked of a stranger"


@pytest.mark.parametrize(
    ("status", "headers", "body", "why"),
    [
        (404, {}, b"", "answers 404"),
        (302, {"location": "https://127.0.0.1:1/"}, b"", "answers 302"),
        (200, {}, b"", "JSON"),
        (200, {}, b"[]", "not a JSON object"),
        (200, {}, b'{"keys": [], "keys": []}', "JSON"),
        (200, {}, b'{"keys": [{"use": "x509-svid"}]}', "not one certificate"),
        (200, {}, b'{"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}', "DER"),
        (200, {}, b'{"keys": [], "spiffe_sequence": -1}', "whole number"),
        (200, {}, b" " * (1024 * 1024 + 1), "longer than"),
    ],
)
def test_what_is_not_a_bundle_is_refused(
    serve: Any, tmp_path: Path, status: int, headers: dict[str, str], body: bytes, why: str
) -> None:
    endpoint = serve(THEIRS.issue_svid(SERVER_ID))
    endpoint.status, endpoint.headers, endpoint.body = status, headers, body
    with Follow(tmp_path, endpoint.port) as follow:
        assert follow.refused(why)


def test_an_older_bundle_does_not_come_back(serve: Any, tmp_path: Path) -> None:
    endpoint = serve(THEIRS.issue_svid(SERVER_ID))
    endpoint.body = document(THEIRS, sequence=7)
    with Follow(tmp_path, endpoint.port) as follow:
        until(lambda: follow.authorities() == (THEIRS.root,), "the bundle")
        endpoint.body = document(THEIRS, NEXT, sequence=6)
        until(lambda: any("older bundle" in line for line in follow.said), "the report")
        assert follow.authorities() == (THEIRS.root,)


def test_a_bundle_has_an_age(serve: Any, tmp_path: Path) -> None:
    endpoint = serve(THEIRS.issue_svid(SERVER_ID))
    endpoint.body = document(THEIRS)
    with Follow(tmp_path, endpoint.port) as follow:
        until(lambda: follow.authorities() == (THEIRS.root,), "the bundle")
        endpoint.status = 503
        until(lambda: any("503" in line for line in follow.said), "the report")
        assert follow.authorities() == (THEIRS.root,), "it serves on"
        follow.now += timedelta(hours=2)
        assert follow.authorities() is None


def test_the_first_bundle_must_be_sound(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("nothing")
    with pytest.raises(ConfigurationError, match=r"bad\.pem"):
        Follow(tmp_path, 1, bundle=tmp_path / "bad.pem")
