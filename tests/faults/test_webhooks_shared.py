"""Servers that share a ledger in PostgreSQL tell each receiver of each question once."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from authz_server.ledger import notifications
from authz_server.ledger.approvals import Approvals
from authz_server.ledger.migrate import migrate
from authz_server.ledger.settlement import ApprovalTerms
from authz_server.ledger.shared_approvals import SharedApprovals
from authz_server.servers import webhooks
from tests.faults.test_webhooks import Site, listening, wait_until_taken
from tests.ledger_samples import BOB, GROUPS, escalation, record
from tests.postgres_server import PostgresServer, postgres_server

QUESTIONS = 12


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


def test_each_message_is_sent_once_by_one_of_the_servers(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "POLL_S", 0.02)
    monkeypatch.setattr(notifications, "RETRY_FIRST", timedelta(minutes=1))
    url = server.create("webhooks")
    migrate(url)
    secret = tmp_path / "secret"
    secret.write_bytes(b"a shared secret of thirty bytes")
    site = Site(url=url, secret=secret)
    terms = ApprovalTerms(ttl=timedelta(minutes=15), single_use=True)
    shared = SharedApprovals(url, terms=terms, timeout_s=20.0)
    ids = []
    with listening() as inbox, site.sending(inbox.url), site.sending(inbox.url):
        for number in range(QUESTIONS):
            asked = escalation(f"{number:064x}", time=datetime.now(UTC))
            settled = shared.settle(record(asked), deadline=time.monotonic() + 20)
            assert settled.ticket is not None
            ids.append(settled.ticket.id)
        for approval_id in ids:
            wait_until_taken(site, approval_id, inbox.url)
    shared.close()
    found = sorted(headers["webhook-id"] for headers, _ in inbox.got)
    assert found == sorted(f"{approval_id}.pending" for approval_id in ids)


def test_two_persons_answer_in_a_shared_ledger(server: PostgresServer) -> None:
    url = server.create("persons")
    migrate(url)
    terms = ApprovalTerms(ttl=timedelta(minutes=15), single_use=True)
    shared = SharedApprovals(url, terms=terms, timeout_s=20.0)
    asked = escalation("a" * 64, time=datetime.now(UTC))
    settled = shared.settle(record(asked), deadline=time.monotonic() + 20)
    assert settled.ticket is not None
    approvals = Approvals.open(url, groups=GROUPS, two_persons=("finance-oncall",))
    now = datetime.now(UTC)
    first = approvals.approve(settled.ticket.id, approver=BOB, now=now)
    assert (first.status, first.approver) == ("pending", BOB)
    again = shared.settle(record(asked), deadline=time.monotonic() + 20)
    assert again.verdict == "escalate", "half an approval passes nothing"
    second = approvals.approve(settled.ticket.id, approver="carol@example.org", now=now)
    assert second.approver == f"{BOB}, carol@example.org"
    passed = shared.settle(record(asked), deadline=time.monotonic() + 20)
    assert passed.verdict == "allow"
    assert passed.approval is not None
    assert passed.approval.approver == second.approver
    shared.close()
