"""Months of a shared ledger that are dropped, people erased from it, and how it is searched."""

import re
import secrets
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from authz_server.ledger.backlog import Backlog
from authz_server.ledger.checkpoints import Checkpoints
from authz_server.ledger.database import Access, Store
from authz_server.ledger.erasure import ErasureOrder, erase
from authz_server.ledger.migrate import migrate
from authz_server.ledger.partitions import Month, ensure, existing_months
from authz_server.ledger.query import DecisionFilter, LedgerReader
from authz_server.ledger.retention import expire_shared
from authz_server.ledger.schema import Layout
from authz_server.ledger.seal import SealKeys, SigningKey
from authz_server.ledger.ship import Shipper
from authz_server.ledger.store import Ledger, LedgerOptions
from authz_server.ledger.verify import ChainReport, FaultKind, verify
from tests.ledger_samples import ALICE, BOB, NOON, allow, at, chain, record
from tests.postgres_server import PostgresServer, postgres_server

pytestmark = pytest.mark.xdist_group("postgres")

JUNE, JULY, AUGUST = Month(2026, 6), Month(2026, 7), Month(2026, 8)
DAY_S = 86_400


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def url(server: PostgresServer) -> str:
    url = server.create(f"test_{secrets.token_hex(4)}")
    migrate(url)
    return url


class Site:
    """Two servers with outboxes, and one shared ledger."""

    def __init__(self, directory: Path, url: str) -> None:
        self.url = url
        self.store = Store.open(url, Access.WRITE)
        self.key = SigningKey.load_or_create(directory / "key.pem")
        self._outboxes = []
        for name in ("one", "two"):
            backlog = Backlog(records_max=1_000_000)
            options = LedgerOptions(layout=Layout.OUTBOX, backlog=backlog)
            ledger = Ledger.open_file(directory / f"{name}.db", options)
            shipper = Shipper(ledger, url=url, backlog=backlog, observe=lambda _: None)
            self._outboxes.append((ledger, shipper))

    def commit(self, days: Sequence[float], *, server: int = 0, subject: str = ALICE) -> None:
        ledger, shipper = self._outboxes[server]
        ledger.commit(
            [record(allow(time=at(day * DAY_S), chain=chain(subject=subject))) for day in days]
        )
        Checkpoints(ledger, key=self.key, sinks=()).make(at(days[-1] * DAY_S))
        shipper.ship()
        shipper.ship()  # the checkpoint, which was made after the records

    def expire(self, moment: datetime) -> int:
        return expire_shared(self.store, self.key, cutoff=moment, now=at(100 * DAY_S))

    def reports(self) -> Sequence[ChainReport]:
        return list(verify(self.store, keys=SealKeys.of([self.key.public])))

    def months(self) -> Sequence[Month]:
        with self.store.transaction() as connection:
            return sorted(existing_months(connection))

    def close(self) -> None:
        for ledger, shipper in self._outboxes:
            shipper.stop()
            shipper._disconnect()
            ledger.close()


@pytest.fixture
def site(tmp_path: Path, url: str) -> Iterator[Site]:
    site = Site(tmp_path, url)
    yield site
    site.close()


def test_whole_months_are_dropped_and_the_rest_verifies(site: Site) -> None:
    site.commit([0, 1, 2, 31, 32])
    site.commit([3, 33], server=1)
    assert site.months() == [JULY, AUGUST, AUGUST.next]
    assert site.expire(at(10 * DAY_S)) == 0, "July is not over yet"
    assert site.expire(at(31 * DAY_S)) == 1
    assert site.months() == [AUGUST, AUGUST.next]
    found = sorted((one.removed, one.records, one.fault) for one in site.reports())
    assert found == [(1, 1, None), (3, 2, None)]
    site.commit([34])
    assert all(one.fault is None for one in site.reports())
    assert len(list(LedgerReader.open(site.url).list(DecisionFilter()))) == 4


def test_a_month_dropped_by_hand_is_missing(site: Site) -> None:
    site.commit([0, 31])
    with site.store.transaction() as connection:
        connection.execute(text("DROP TABLE decisions_y2026m07"))
    (fault,) = [one.fault for one in site.reports()]
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.MISSING, 1)


def test_a_clock_that_stepped_back_over_a_month_leaves_a_hole_that_verifies(site: Site) -> None:
    site.commit([0, 31, 1, 32])
    assert site.expire(at(31 * DAY_S)) == 1
    (report,) = site.reports()
    assert (report.removed, report.records, report.fault) == (2, 2, None)


def test_everything_may_be_dropped(site: Site) -> None:
    site.commit([0, 1])
    site.expire(at(90 * DAY_S))
    (report,) = site.reports()
    assert (report.removed, report.records, report.fault) == (2, 0, None)
    site.commit([95])
    (report,) = site.reports()
    assert (report.removed, report.records, report.fault) == (2, 1, None)


def test_erases_one_person_from_all_servers(site: Site) -> None:
    site.commit([0, 1, 31])
    site.commit([2], server=1)
    site.commit([3], server=1, subject=BOB)
    order = ErasureOrder(subjects=(ALICE,), by="carol@example.org", reason="request 4711")
    assert erase(site.store, site.key, order, now=at(50 * DAY_S)) == 4
    found = sorted((one.erased, one.records, one.fault) for one in site.reports())
    assert found == [(1, 2, None), (3, 3, None)]
    with site.store.transaction() as connection:
        rows = connection.execute(text("SELECT decisions::text FROM decisions")).scalars().all()
    assert sum("alice" in row for row in rows) == 0
    site.expire(at(31 * DAY_S))
    assert all(one.fault is None for one in site.reports())


def test_every_chain_is_verified_also_one_without_a_note(site: Site) -> None:
    site.commit([0])
    site.commit([0], server=1)
    with site.store.transaction() as connection:
        connection.execute(text("DELETE FROM chains"))
        connection.execute(text("DELETE FROM statements"))
    assert [one.fault.kind for one in site.reports() if one.fault] == [FaultKind.CUT] * 2


def test_months_follow_one_another() -> None:
    month, months = Month(2026, 11), []
    for _ in range(3):
        months.append((month.suffix, month.first_us))
        month = month.next
    assert [suffix for suffix, _ in months] == ["y2026m11", "y2026m12", "y2027m01"]
    assert Month.of_us(months[2][1]) == Month(2027, 1)
    assert Month.of_us(months[2][1] - 1) == Month(2026, 12)


_FILL = """
INSERT INTO decisions
SELECT n, 'd' || n, CAST(:start AS bigint) + n * CAST(:step AS bigint),
    CASE WHEN n % 10 = 0 THEN 'deny' ELSE 'allow' END, 'OK', 'person' || n % 20000,
    'spiffe://prod.example.org/agent/' || n % 50, 'crm tool-' || n % 300, 'mcp tools/call', 'tools',
    'r1', 'rule-' || n % 40, 'txn-' || n / 5, NULL, '{}', '\\x00', NULL, '\\x00', 'writer' || n % 3
FROM generate_series(1, :count) n
"""
_FILL_TERMS = """
INSERT INTO decision_terms
SELECT 'actor', 'spiffe://prod.example.org/agent/' || n % 50,
    CAST(:start AS bigint) + n * CAST(:step AS bigint), n, 'writer' || n % 3
FROM generate_series(1, :count) n
"""

QUERIES = {
    "newest": DecisionFilter(limit=50),
    "subject": DecisionFilter(subject="person77", limit=50),
    "beginning of a resource": DecisionFilter(resource="crm tool-29*", limit=50),
    "principal since": DecisionFilter(
        principal="spiffe://prod.example.org/agent/7", since=at(100 * DAY_S), limit=50
    ),
    "txn": DecisionFilter(txn="txn-1000", limit=50),
    "actor": DecisionFilter(actor="spiffe://prod.example.org/agent/7", limit=50),
    "denials of a day": DecisionFilter(since=at(100 * DAY_S), until=at(101 * DAY_S), limit=50),
}


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.deep)])
def test_every_query_reads_an_index_and_little_of_it(url: str, count: int) -> None:
    store = Store.open(url, Access.WRITE)
    span = timedelta(days=180)
    with store.transaction() as connection:
        first = Month.of_us(int(NOON.timestamp() * 1e6))
        months = [first]
        while len(months) < 6:
            months.append(months[-1].next)
        ensure(connection, months)
        values = {
            "start": int(NOON.timestamp() * 1e6),
            "step": int(span.total_seconds() * 1e6) // count,
            "count": count,
        }
        connection.execute(text(_FILL), values)
        connection.execute(text(_FILL_TERMS), values)
        connection.execute(text("ANALYZE"))
    for name, wanted in QUERIES.items():
        plan = explained(store, wanted)
        print(f"\n{name}\n{plan}")
        # A month that is scanned in sequence is read in full however little of it is wanted.
        scans = [line for line in plan.splitlines() if "Seq Scan on decision" in line]
        assert all("never executed" in line for line in scans), plan
        read = [int(rows) for rows in re.findall(r"actual rows=(\d+)", plan)]
        assert max(read) <= 8_000, plan


def explained(store: Store, wanted: DecisionFilter) -> str:
    """Return the plan of what the reader really asks."""
    asked: list[Any] = []

    def note(*arguments: object) -> None:
        asked.append(arguments[2:4])

    event.listen(store.engine, "before_cursor_execute", note)
    list(LedgerReader(store).list(wanted))
    event.remove(store.engine, "before_cursor_execute", note)
    statement, parameters = asked[0]
    options = "ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF"
    with store.transaction() as connection:
        lines = connection.exec_driver_sql(f"EXPLAIN ({options}) {statement}", parameters)
        return "\n".join(lines.scalars())
