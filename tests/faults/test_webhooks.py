"""A pending approval is told to every receiver: signed, again until taken, across a restart."""

import base64
import hashlib
import hmac
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from authz_server.core.errors import ConfigurationError
from authz_server.ledger import notifications
from authz_server.ledger.approvals import Approvals
from authz_server.ledger.notifications import Notifications, retry_after
from authz_server.ledger.store import Ledger
from authz_server.servers import webhooks
from authz_server.servers.webhooks import Receiver, Webhooks
from tests.ledger_samples import ALICE, BOB, GROUPS, TTL_S, escalation, record

SECRET = b"a shared secret of thirty bytes"
WAIT_S = 20


@dataclass
class Inbox:
    """A receiver on loopback that answers as it is told and keeps what it got."""

    port: int = 0
    answers: list[int] = field(default_factory=list)  # statuses to give; then 204
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?key=of-the-receiver"

    def wait_for(self, count: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.got) >= count, WAIT_S)


@contextmanager
def listening(port: int = 0) -> Iterator[Inbox]:
    inbox = Inbox()

    class _Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            with inbox.arrived:
                status = inbox.answers.pop(0) if inbox.answers else 204
                inbox.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
                inbox.arrived.notify_all()
            self.send_response(status)
            if status in {302, 307}:
                self.send_header("Location", f"http://127.0.0.1:{inbox.port}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    inbox.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield inbox
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Site:
    url: str
    secret: Path
    failures: list[str | None] = field(default_factory=list)

    @contextmanager
    def sending(self, *addresses: str) -> Iterator[Webhooks]:
        receivers = [Receiver(url=address, secret_file=self.secret) for address in addresses]
        sender = Webhooks(self.url, receivers, self.failures.append)
        sender.start()
        try:
            yield sender
        finally:
            sender.stop()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(webhooks, "POLL_S", 0.02)
    monkeypatch.setattr(notifications, "RETRY_FIRST", timedelta(milliseconds=50))
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET + b"\n")
    return Site(url=f"sqlite:///{tmp_path}/authz.db", secret=secret)


def ask(site: Site, fingerprint: str = "a" * 64) -> str:
    ledger = Ledger.open(site.url, approval_ttl_s=TTL_S)
    decision = escalation(fingerprint, time=datetime.now(UTC))
    (settled,) = ledger.commit([record(decision)])
    ledger.close()
    assert settled.ticket is not None
    return settled.ticket.id


def wait_until_taken(site: Site, approval_id: str, address: str) -> None:
    target = Receiver(url=address, secret_file=site.secret).target
    queue = Notifications.open(site.url)
    waiting = threading.Event()
    for _ in range(WAIT_S * 100):
        if queue.delivered_at(approval_id, target) is not None:
            return
        waiting.wait(0.01)
    raise AssertionError("not noted as taken")


def test_a_message_is_signed_and_says_what_is_asked(site: Site) -> None:
    approval_id = ask(site)
    with listening() as inbox, site.sending(inbox.url):
        inbox.wait_for(1)
        wait_until_taken(site, approval_id, inbox.url)
    ((headers, body),) = inbox.got
    signed = b".".join(
        (headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body)
    )
    expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert headers["webhook-id"] == f"{approval_id}.pending"
    document = json.loads(body)
    assert document["type"] == "approval.pending"
    assert document["data"]["subject"] == ALICE
    assert document["data"]["id"] == approval_id
    assert site.failures == [None]


def test_it_is_sent_again_until_it_is_taken_under_one_id(site: Site) -> None:
    approval_id = ask(site)
    with listening() as inbox:
        inbox.answers = [500, 302, 429]
        with site.sending(inbox.url):
            inbox.wait_for(4)
            wait_until_taken(site, approval_id, inbox.url)
    assert len(inbox.got) == 4, "a redirect is not followed, and nothing is sent after it is taken"
    assert len({headers["webhook-id"] for headers, _ in inbox.got}) == 1
    assert all("of-the-receiver" not in failure for failure in site.failures if failure)


def test_what_was_not_taken_is_sent_after_a_restart(site: Site) -> None:
    """The naive sender, a queue in memory, would have lost it here."""
    with listening() as inbox:
        port, address = inbox.port, inbox.url
    approval_id = ask(site)
    failed = threading.Event()
    with site.sending(address):
        for _ in range(WAIT_S * 100):
            if any(site.failures):
                break
            failed.wait(0.01)
    assert any(site.failures), "nobody was listening"
    with listening(port) as inbox, site.sending(address):
        inbox.wait_for(1)
        wait_until_taken(site, approval_id, address)


def test_every_receiver_gets_it_and_two_servers_send_it_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "RETRY_FIRST", timedelta(minutes=1))
    with listening() as one, listening() as two:
        with site.sending(one.url, two.url), site.sending(one.url, two.url):
            ids = [ask(site, f"{number:064x}") for number in range(5)]
            for inbox in (one, two):
                inbox.wait_for(5)
                for approval_id in ids:
                    wait_until_taken(site, approval_id, inbox.url)
        for inbox in (one, two):
            found = sorted(headers["webhook-id"] for headers, _ in inbox.got)
            assert found == sorted(f"{approval_id}.pending" for approval_id in ids)


def test_an_answered_question_is_told_to_nobody(site: Site) -> None:
    approval_id, other = ask(site), ask(site, "b" * 64)
    Approvals.open(site.url, groups=GROUPS).approve(
        approval_id, approver=BOB, now=datetime.now(UTC)
    )
    with listening() as inbox, site.sending(inbox.url):
        wait_until_taken(site, other, inbox.url)
    assert [headers["webhook-id"] for headers, _ in inbox.got] == [f"{other}.pending"]


def test_a_short_secret_is_refused_at_the_start(site: Site) -> None:
    site.secret.write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="24 bytes or more"):
        Webhooks(site.url, [Receiver(url="https://x", secret_file=site.secret)], print)


def test_attempts_are_spread_and_bounded() -> None:
    waits = [retry_after(attempts) for attempts in range(12)]
    assert waits[0] == notifications.RETRY_FIRST
    assert waits == sorted(waits)
    assert waits[-1] == notifications.RETRY_LAST


def test_old_rows_are_removed_and_nothing_is_told_again(site: Site) -> None:
    approval_id = ask(site)
    with listening() as inbox, site.sending(inbox.url):
        wait_until_taken(site, approval_id, inbox.url)
    target = Receiver(url=inbox.url, secret_file=site.secret).target
    queue = Notifications.open(site.url)
    assert queue.enqueue((target,), datetime.now(UTC)) == 0
    assert queue.is_idle((target,), datetime.now(UTC))
    assert queue.enqueue((target,), datetime.now(UTC) + timedelta(days=40)) == 0, "it is closed"
    assert queue.delivered_at(approval_id, target) is None
