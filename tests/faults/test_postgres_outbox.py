"""A shared ledger that is gone, slow or foreign: nothing lost, nothing twice, no restart needed."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from authz_server.core.errors import LedgerError
from authz_server.ledger.backlog import Backlog
from authz_server.ledger.database import Access, Store
from authz_server.ledger.migrate import migrate
from authz_server.ledger.query import DecisionFilter, LedgerReader
from authz_server.ledger.schema import Layout
from authz_server.ledger.seal import SealKeys
from authz_server.ledger.ship import Shipper
from authz_server.ledger.store import Ledger, LedgerOptions
from authz_server.ledger.verify import verify
from tests.ledger_samples import ALICE, RESEARCHER, allow, at, record
from tests.postgres_server import PostgresServer, postgres_server


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def url(server: PostgresServer) -> str:
    url = server.create(f"test_{secrets.token_hex(4)}")
    migrate(url)
    return url


class Outbox:
    def __init__(self, path: Path, url: str, records_max: int = 1_000_000) -> None:
        self.backlog = Backlog(records_max=records_max)
        options = LedgerOptions(layout=Layout.OUTBOX, backlog=self.backlog, busy_timeout_ms=60_000)
        self.ledger = Ledger.open_file(path, options)
        self.shipper = Shipper(
            self.ledger, url=url, backlog=self.backlog, observe=lambda _: None
        )


def ids(url: str) -> list[str]:
    return [one.decision_id for one in LedgerReader.open(url).list(DecisionFilter())]


def test_ships(tmp_path: Path, url: str) -> None:
    outbox = Outbox(tmp_path / "outbox.db", url)
    outbox.ledger.commit([record(allow(time=at(i)), f"d{i}") for i in range(2500)])
    while outbox.shipper.ship():
        pass
    assert ids(url) == [f"d{i}" for i in reversed(range(2500))]
    found = LedgerReader.open(url).list(DecisionFilter(actor=RESEARCHER, subject=ALICE, limit=3))
    assert [one.decision_id for one in found] == ["d2499", "d2498", "d2497"]
    (report,) = verify(Store.open(url, Access.READ), keys=SealKeys())
    assert report.fault is None and report.records == 2500
