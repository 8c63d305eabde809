"""Issuers' keys by address: never waited for, never asked in a flood, never believed too long."""

import http.server
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.core.trust import Issuer
from authz_server.demo.authority import LeafProfile, TrustDomainAuthority, write_svid
from authz_server.identity.issuer_feed import IssuerFeed, Pace
from authz_server.identity.issuer_keys import issuer_of
from authz_server.identity.jwks_request import (
    KeySetAddress,
    KeySetUnreachableError,
    fetch_key_set,
)
from authz_server.settings.model import IssuerSettings
from tests.harness.world import DOMAIN, World

TIMEOUT_S = 20.0
STS = "https://sts.cases.example.org"
FAST = Pace(refresh_s=0.02, apart_s=0.01)


def key_set(*kids: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    keys = [
        json.loads(DevelopmentIssuer(issuer=STS, trust_domain=DOMAIN, key=key, kid=kid).jwks())
        for kid in kids
    ]
    return json.dumps({"keys": [one["keys"][0] for one in keys]}).encode()


class Endpoint:
    """An HTTP server of one document; it counts who asks."""

    def __init__(self, document: bytes) -> None:
        self.document = document
        self.status = 200
        self.headers: Mapping[str, str] = {}
        self.requests = 0
        self.gate = threading.Event()
        self.gate.set()
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                endpoint.requests += 1
                endpoint.gate.wait(TIMEOUT_S)
                self.send_response(endpoint.status)
                for name, value in endpoint.headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in endpoint.headers:
                    self.send_header("Content-Length", str(len(endpoint.document)))
                self.end_headers()
                self.wfile.write(endpoint.document)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing of a client that went away."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"


@contextmanager
def serving(document: bytes, context: ssl.SSLContext | None = None) -> Iterator[Endpoint]:
    endpoint = Endpoint(document)
    if context is not None:
        endpoint.server.socket = context.wrap_socket(endpoint.server.socket, server_side=True)
        endpoint.url = endpoint.url.replace("http://127.0.0.1", "https://localhost")
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.gate.set()
        endpoint.server.shutdown()
        thread.join()
        endpoint.server.server_close()


class Followed:
    """A feed of one issuer, and the snapshots it makes."""

    def __init__(self, url: str, pace: Pace = FAST) -> None:
        self.given = IssuerSettings(issuer=STS, jwks_url=url, jwks_max_stale_s=120)
        self.shift = timedelta(0)
        self.changes = 0
        self.reports: list[str] = []
        self.feed = IssuerFeed(
            [self.given],
            clock=lambda: datetime.now(UTC) + self.shift,
            changed=self._count,
            report=self.reports.append,
            pace=pace,
        )
        world = World()
        snapshot = world.snapshot()
        self.plain = world.snapshot(
            trust=type(snapshot.trust)(
                revision="r",
                bundles=snapshot.trust.bundles,
                issuers={STS: issuer_of(self.given, {})},
            )
        )

    def _count(self) -> None:
        self.changes += 1

    @property
    def issuer(self) -> Issuer:
        return self.feed.apply(self.plain).trust.issuers[STS]

    @property
    def kids(self) -> set[str]:
        return set(self.issuer.keys)


@contextmanager
def following(url: str, pace: Pace = FAST) -> Iterator[Followed]:
    followed = Followed(url, pace)
    followed.feed.start()
    try:
        yield followed
    finally:
        followed.feed.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_new_key_set_is_a_new_revision_of_trust() -> None:
    with serving(key_set("k1")) as endpoint, following(endpoint.url) as followed:
        wait_until(lambda: followed.kids == {"k1"})
        first = followed.feed.apply(followed.plain)
        seen = endpoint.requests
        wait_until(lambda: endpoint.requests > seen + 2)
        assert followed.feed.apply(followed.plain).revision == first.revision, "the same keys"
        assert followed.changes == 1, "and nobody is told of them again"
        endpoint.document = key_set("k1", "k2")
        wait_until(lambda: followed.kids == {"k1", "k2"})
        second = followed.feed.apply(followed.plain)
        assert second.trust.revision != first.trust.revision
        assert second.revision != first.revision
        endpoint.document = b'{"keys": []}'
        wait_until(lambda: followed.kids == set())  # an empty set takes everything back


def test_a_flood_of_unknown_keys_makes_one_request_in_an_interval() -> None:
    """The naive server asks for each: 100,000 requests instead of the one that started."""
    pace = Pace(refresh_s=3600, apart_s=3600)
    with serving(key_set("k1")) as endpoint, following(endpoint.url, pace) as followed:
        wait_until(lambda: followed.kids == {"k1"})
        for _ in range(100_000):
            followed.feed.key_missing(STS)
        followed.feed.key_missing("https://another.example")
        assert (endpoint.requests, followed.feed.requests) == (1, 1)


def test_an_unknown_key_brings_the_next_request_forward() -> None:
    pace = Pace(refresh_s=3600, apart_s=0.01)
    with serving(key_set("k1")) as endpoint, following(endpoint.url, pace) as followed:
        wait_until(lambda: followed.kids == {"k1"})
        endpoint.document = key_set("k1", "k2")
        followed.feed.key_missing(STS)
        wait_until(lambda: followed.kids == {"k1", "k2"})
        assert endpoint.requests == 2


def test_nobody_waits_for_an_issuer_that_hangs() -> None:
    pace = Pace(refresh_s=3600, apart_s=0.01)
    with serving(key_set("k1")) as endpoint, following(endpoint.url, pace) as followed:
        wait_until(lambda: followed.kids == {"k1"})
        endpoint.gate.clear()
        followed.feed.key_missing(STS)
        wait_until(lambda: endpoint.requests == 2)
        for _ in range(1000):
            followed.feed.key_missing(STS)  # returns, although the request does not
        assert followed.kids == {"k1"}
        assert endpoint.requests == 2, "one at a time"


def test_what_was_not_heard_for_long_is_not_believed() -> None:
    with serving(key_set("k1")) as endpoint, following(endpoint.url) as followed:
        wait_until(lambda: followed.kids == {"k1"})
        endpoint.status = 503
        wait_until(lambda: any("503" in report for report in followed.reports))
        assert followed.kids == {"k1"}, "for a while the last key set serves"
        before = followed.changes
        followed.shift = timedelta(seconds=121)
        wait_until(lambda: followed.changes > before)
        assert followed.kids == set()
        assert followed.feed.without_keys == 1
        endpoint.status = 200
        wait_until(lambda: followed.kids == {"k1"})
        assert followed.feed.without_keys == 0


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b'{"keys": 1}',
        b'{"keys": [{"kty": "oct", "k": "AA", "kid": "x"}]}',
        b"x" * 300_000,
    ],
    ids=["nothing", "cut", "no array", "a secret", "too long"],
)
def test_a_document_of_no_use_changes_nothing(document: bytes) -> None:
    with serving(key_set("k1")) as endpoint, following(endpoint.url) as followed:
        wait_until(lambda: followed.kids == {"k1"})
        endpoint.document = document
        wait_until(lambda: any("not renewed" in report for report in followed.reports))
        assert followed.kids == {"k1"}


# --- one request -----------------------------------------------------------------------------


def test_a_redirect_is_not_followed() -> None:
    with serving(key_set("evil")) as elsewhere, serving(b"") as endpoint:
        endpoint.status, endpoint.headers = 302, {"Location": elsewhere.url}
        with pytest.raises(KeySetUnreachableError, match="302"):
            fetch_key_set(KeySetAddress(url=endpoint.url))
        assert elsewhere.requests == 0


def test_a_document_that_is_cut_off_is_none() -> None:
    with serving(key_set("k1")) as endpoint:
        endpoint.headers = {"Content-Length": str(len(endpoint.document) + 10)}
        with pytest.raises(KeySetUnreachableError, match="cut off"):
            fetch_key_set(KeySetAddress(url=endpoint.url))


def test_nobody_there() -> None:
    with serving(b"") as endpoint:
        url = endpoint.url
    with pytest.raises(KeySetUnreachableError):
        fetch_key_set(KeySetAddress(url=url))


def test_an_issuer_that_drips_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("authz_server.identity.jwks_request.TOTAL_TIMEOUT_S", 0.05)
    with serving(key_set("k1")) as endpoint:
        endpoint.gate.clear()
        with pytest.raises(KeySetUnreachableError):
            fetch_key_set(KeySetAddress(url=endpoint.url))


def test_tls_proves_the_host_by_the_configured_authority(tmp_path: Path) -> None:
    authority = TrustDomainAuthority.create("sts.example")
    host = authority.issue_leaf(
        ("spiffe://sts.example/web",), profile=LeafProfile(dns_names=("localhost",))
    )
    certificate, key = write_svid(host, tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(authority.bundle_pem)
    with serving(key_set("k1"), context) as endpoint:
        assert b"k1" in fetch_key_set(KeySetAddress(url=endpoint.url, ca_file=ca_file))
        with pytest.raises(KeySetUnreachableError, match="certificate refused"):
            fetch_key_set(KeySetAddress(url=endpoint.url))
        by_address = endpoint.url.replace("localhost", "127.0.0.1")
        with pytest.raises(KeySetUnreachableError, match="certificate refused"):
            fetch_key_set(KeySetAddress(url=by_address, ca_file=ca_file))
