"""Revocation in running servers: at once, on every one of them, and under load."""

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from authz_server.cli.main import group
from authz_server.core.revocation import RevocationKind
from authz_server.ledger.identity_usage import IdentityUsage
from authz_server.ledger.migrate import migrate
from authz_server.ledger.revocations import Handle, RevocationStore
from tests.pdp_site import ASSISTANT, RESEARCH, SUBJECT, PdpSite
from tests.postgres_server import PostgresServer, postgres_server
from tests.server_process import ServerProcess, running

TIMEOUT_S = 30.0


def command(site: PdpSite, *arguments: str) -> int:
    """Run `revocations …` and return the revision it names."""
    action, *options = arguments
    result = CliRunner().invoke(
        group,
        ["revocations", action, "--config", str(site.configuration), *options],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    return int(result.output.partition("revision ")[2].split()[0])


def revision(server: ServerProcess) -> int:
    status, page = server.get("/readyz")
    assert status == 200, page
    found: int = json.loads(page)["revocations"]["revision"]
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for(server: ServerProcess, number: int) -> None:
    """Return once `server` reports the revision `number`."""
    wait_until(lambda: revision(server) == number)


HANDLES = {
    "the caller": ("--spiffe-id", str(RESEARCH)),
    "who handed on to it": ("--spiffe-id", str(ASSISTANT)),
    "the subject": ("--subject", SUBJECT),
    "the issuer's key": ("--kid", "dev-1"),
}


def test_what_is_revoked_is_denied_until_it_is_not(tmp_path: Path) -> None:
    site = PdpSite.create(tmp_path / "site")
    request = site.check_request("/open/a")
    with running(site) as server:
        assert server.reason(request) == "OK"
        for whose, handle in HANDLES.items():
            added = command(site, "add", *handle)
            wait_for(server, added)
            assert server.reason(request) == "REVOKED", whose
            removed = command(site, "remove", *handle)
            wait_for(server, removed)
            assert server.reason(request) == "OK", whose
        _, page = server.get("/metrics")
        assert f"authz_revocations_revision {float(removed)}" in page.decode()


def test_a_revocation_outlives_the_server(tmp_path: Path) -> None:
    site = PdpSite.create(tmp_path / "site")
    request = site.check_request("/open/a")
    with running(site) as server:
        command(site, "add", "--spiffe-id", str(RESEARCH))
    with running(site) as server:
        assert server.reason(request) == "REVOKED", "from the very first request"


class Load:
    """Callers that never stop asking; `allowed_after` counts what must not be."""

    def __init__(self, server: ServerProcess, request: bytes, *, callers: int = 4) -> None:
        self._server = server
        self._request = request
        self._stopping = threading.Event()
        self._mark = threading.Event()
        self.before = 0
        self.after = 0
        self.allowed_after = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(callers)]
        for thread in self._threads:
            thread.start()

    def mark(self) -> None:
        """Say that what is asked from now on must be denied."""
        self._mark.set()

    def _ask(self) -> None:
        while not self._stopping.is_set():
            marked = self._mark.is_set()  # before the request leaves
            reason = self._server.reason(self._request)
            with self._lock:
                self.before += not marked and reason == "OK"
                self.after += marked
                self.allowed_after += marked and reason == "OK"

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize(
    "requests", [5_000, pytest.param(100_000, marks=[pytest.mark.deep, pytest.mark.timeout(1800)])]
)
def test_nothing_is_allowed_once_the_revision_is_reported(tmp_path: Path, requests: int) -> None:
    site = PdpSite.create(tmp_path / "site")
    with running(site) as server:
        load = Load(server, site.check_request("/open/a"))
        try:
            wait_until(lambda: load.before > 200)
            added = command(site, "add", "--spiffe-id", str(RESEARCH))
            wait_for(server, added)
            load.mark()
            while load.after < requests:
                time.sleep(0.05)
        finally:
            load.stop()
    assert load.before > 200, "the load was allowed before"
    assert load.allowed_after == 0


# --- servers that share a ledger -------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


def _shared_site(directory: Path, url: str) -> PdpSite:
    ledger = {"url": url, "outbox": "state/outbox.db"}
    return PdpSite.create(directory, ledger=ledger, revocations={"max_stale_s": 5})


@pytest.mark.xdist_group("postgres")
def test_every_replica_knows_and_a_lost_ledger_denies(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    url = postgres.create(f"revocations_{secrets.token_hex(4)}")
    migrate(url)
    sites = [_shared_site(tmp_path / name, url) for name in ("one", "two")]
    with ExitStack() as stack:
        servers = [stack.enter_context(running(site)) for site in sites]
        requests = [site.check_request("/open/a") for site in sites]
        for server, request in zip(servers, requests, strict=True):
            assert server.reason(request) == "OK"
        added = command(sites[0], "add", "--spiffe-id", str(RESEARCH))
        started = time.monotonic()
        for server, request in zip(servers, requests, strict=True):
            wait_for(server, added)
            assert server.reason(request) == "REVOKED"
        print(f"every replica after {1000 * (time.monotonic() - started):.0f} ms")
        removed = command(sites[1], "remove", "--spiffe-id", str(RESEARCH))
        wait_until(lambda: all(revision(server) == removed for server in servers))
        assert servers[0].reason(requests[0]) == "OK"
        # A database that stands still answers nothing, and breaks no connection either.
        postgres.pause()
        try:
            wait_until(lambda: servers[0].reason(requests[0]) == "NOT_READY")
            assert servers[0].get("/readyz")[0] == 503
        finally:
            postgres.resume()
        wait_until(lambda: servers[0].reason(requests[0]) == "OK")


@pytest.mark.xdist_group("postgres")
def test_without_its_ledger_a_server_starts_and_denies(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    url = postgres.create(f"revocations_{secrets.token_hex(4)}")
    site = _shared_site(tmp_path / "site", url)  # not migrated: it cannot be read
    server = ServerProcess(site, begun="not_ready")
    try:
        assert server.reason(site.check_request("/open/a")) == "NOT_READY"
        why_not = json.loads(server.get("/readyz")[1])["why_not"]
        assert any("revocations" in why for why in why_not)
        migrate(url)
        wait_until(lambda: server.reason(site.check_request("/open/a")) == "OK")
    finally:
        server.end()


@pytest.mark.xdist_group("postgres")
def test_a_shared_ledger_is_asked_for_identities_and_changed_by_many(
    postgres: PostgresServer,
) -> None:
    url = postgres.create(f"revocations_{secrets.token_hex(4)}")
    migrate(url)
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    usage = IdentityUsage.open(url)
    assert (usage.by_id(long_ago), usage.acted_for(long_ago)) == ({}, [])
    assert list(usage.alone_for(long_ago)) == []

    def add(number: int) -> int:
        handle = Handle.parse(RevocationKind.JTI, f"j{number}")
        return RevocationStore.open(url).add(handle, by="bob", now=datetime.now(UTC))[1]

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(add, range(40))) == list(range(1, 41))
