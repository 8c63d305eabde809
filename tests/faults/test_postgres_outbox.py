"""A shared ledger that is gone, slow or foreign: nothing lost, nothing twice, no restart needed."""

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, text

from authz_server.core.errors import LedgerError
from authz_server.ledger.backlog import Backlog
from authz_server.ledger.checkpoints import Checkpoints
from authz_server.ledger.database import Access, Store, open_shared_engine
from authz_server.ledger.migrate import migrate
from authz_server.ledger.query import DecisionFilter, LedgerReader
from authz_server.ledger.schema import METADATA, REVISION, Layout, schema_version
from authz_server.ledger.seal import SealKeys, SigningKey
from authz_server.ledger.ship import BATCH_RECORDS, Shipper
from authz_server.ledger.store import Ledger, LedgerOptions
from authz_server.ledger.verify import ChainReport, verify
from tests.ledger_samples import ALICE, RESEARCHER, allow, at, chain, deny, record
from tests.postgres_server import PostgresServer, postgres_server

pytestmark = pytest.mark.xdist_group("postgres")
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def empty(server: PostgresServer) -> str:
    return server.create(f"test_{secrets.token_hex(4)}")


@pytest.fixture
def url(empty: str) -> str:
    migrate(empty)
    return empty


class Outbox:
    """An outbox and its shipper; `ended` collects how each shipment ended."""

    def __init__(self, path: Path, url: str, *, records_max: int = 1_000_000) -> None:
        self.ended: list[LedgerError | None] = []
        self.backlog = Backlog(records_max=records_max)
        options = LedgerOptions(layout=Layout.OUTBOX, backlog=self.backlog, busy_timeout_ms=60_000)
        self.ledger = Ledger.open_file(path, options)
        self.shipper = Shipper(
            self.ledger, url=url, backlog=self.backlog, observe=self.ended.append
        )

    def close(self) -> None:
        self.shipper.stop()
        self.ledger.close()

    def commit(self, *ids: str) -> None:
        self.ledger.commit([record(allow(time=at(number)), id_) for number, id_ in enumerate(ids)])

    def ship_all(self) -> None:
        while self.shipper.ship():
            pass


@pytest.fixture
def outbox(tmp_path: Path, url: str) -> Iterator[Outbox]:
    with closing(Outbox(tmp_path / "outbox.db", url)) as outbox:
        yield outbox


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def ids(url: str) -> list[str]:
    """Return the recorded ids in the order of the chain."""
    found = LedgerReader.open(url).list(DecisionFilter())
    return [one.decision_id for one in sorted(found, key=lambda one: one.seq)]


def report(url: str) -> ChainReport:
    (report,) = verify(Store.open(url, Access.READ), keys=SealKeys())
    return report


def waiting(outbox: Outbox) -> int:
    """Return how many records the outbox still holds."""
    with Store.of_file(outbox.ledger.path, Access.READ).transaction() as connection:
        return int(connection.execute(text("SELECT count(*) FROM decisions")).scalar_one())


def test_ships_in_order_and_keeps_nothing_back(outbox: Outbox, url: str) -> None:
    expected = [f"d{number}" for number in range(2 * BATCH_RECORDS + 1)]
    for start in range(0, len(expected), 100):
        outbox.commit(*expected[start : start + 100])
    outbox.ship_all()
    assert ids(url) == expected
    assert waiting(outbox) == 0
    assert outbox.backlog.records == 0
    assert (report(url).records, report(url).fault) == (len(expected), None)


def test_the_migrated_schema_is_that_of_the_program(empty: str) -> None:
    with pytest.raises(LedgerError, match="run `authz-server ledger migrate`"):
        LedgerReader.open(empty)
    assert migrate(empty) == REVISION
    assert migrate(empty) == REVISION, "again, it finds nothing to do"
    engine = open_shared_engine(empty, statement_timeout_ms=1000)
    for table in METADATA.sorted_tables:
        if table is not schema_version:
            found = [column["name"] for column in inspect(engine).get_columns(table.name)]
            assert found == [column.name for column in table.c], table.name


def test_finds_in_a_shared_ledger_what_it_finds_in_a_file(outbox: Outbox, url: str) -> None:
    outbox.ledger.commit(
        [
            record(allow(time=at(1)), "a"),
            record(deny(time=at(2), chain=chain(RESEARCHER, subject="bob", txn="t2")), "b"),
            record(allow(time=at(40 * 86400)), "c"),
            record(deny(time=at(4), chain=None), "d"),
        ]
    )
    outbox.ship_all()
    reader = LedgerReader.open(url)
    for wanted, expected in (
        (DecisionFilter(), "cdba"),
        (DecisionFilter(limit=2), "cd"),
        (DecisionFilter(subject=ALICE), "ca"),
        (DecisionFilter(subject="bo*"), "b"),
        (DecisionFilter(actor=RESEARCHER), "cba"),
        (DecisionFilter(actor="spiffe://*", rule="support-read"), "cba"),
        (DecisionFilter(rule="support-*", since=at(3)), "cd"),
        (DecisionFilter(txn="t2", until=at(3)), "b"),
        (DecisionFilter(resource="crm*", limit=1), "c"),
    ):
        assert "".join(one.decision_id for one in reader.list(wanted)) == expected, wanted
    stored = reader.get("b")
    assert stored is not None
    assert stored.document["reason"] == "DENIED_BY_RULE"
    assert reader.find("c").decision_id == "c"


@pytest.mark.parametrize(
    "hostile",
    ["\x00", "\udc80", "\U0001f600" * 2000, "\u202e", "\\", "a\tb\nc\\N", "\u00e9" * 1024, ""],
)
def test_ships_whatever_a_caller_can_write(outbox: Outbox, url: str, hostile: str) -> None:
    decision = allow(bundle=hostile, chain=chain(hostile, subject=hostile), rules=(hostile,))
    outbox.ledger.commit([record(decision, "hostile")])
    outbox.ship_all()
    (stored,) = LedgerReader.open(url).list(DecisionFilter(subject=hostile[:200] + "*"))
    assert stored.document["bundle"] == hostile
    assert report(url).fault is None


def test_a_naive_shipper_doubles_what_a_kill_left_here(outbox: Outbox, url: str) -> None:
    outbox.commit("a", "b")
    with Store.open(url, Access.WRITE).transaction() as shared:
        shared.execute(text("CREATE TABLE naive (decision_id text)"))
    for _ in range(2):  # killed after the first commit there, before the delete here
        with Store.of_file(outbox.ledger.path, Access.READ).transaction() as here:
            rows = here.execute(text("SELECT decision_id FROM decisions")).scalars().all()
        with Store.open(url, Access.WRITE).transaction() as shared:
            shared.execute(text("INSERT INTO naive VALUES (:id)"), [{"id": row} for row in rows])
    with Store.open(url, Access.READ).transaction() as shared:
        there = shared.execute(text("SELECT decision_id FROM naive")).scalars().all()
    assert sorted(there) == ["a", "a", "b", "b"]


def test_a_checkpoint_made_while_shipping_is_shipped_next(
    outbox: Outbox, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = SigningKey.load_or_create(tmp_path / "key.pem")
    checkpoints = Checkpoints(outbox.ledger, key=key, sinks=())
    transact = outbox.ledger.transact
    outbox.commit("a", "b")

    def checkpoint_first(doing: str, job: Any) -> Any:
        monkeypatch.undo()
        checkpoints.make(at(1))
        return transact(doing, job)

    monkeypatch.setattr(outbox.ledger, "transact", checkpoint_first)
    assert outbox.shipper.ship() == 2
    (found,) = verify(Store.open(url, Access.READ), keys=SealKeys.of([key.public]))
    assert (found.records, found.sealed_through) == (2, 0)
    outbox.ship_all()
    (found,) = verify(Store.open(url, Access.READ), keys=SealKeys.of([key.public]))
    assert (found.records, found.sealed_through, found.fault) == (2, 2, None)
    with Store.of_file(outbox.ledger.path, Access.READ).transaction() as here:
        assert here.execute(text("SELECT count(*) FROM statements")).scalar_one() == 0


def test_a_kill_between_the_two_commits_ships_nothing_twice(
    outbox: Outbox, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.commit("a", "b")
    with monkeypatch.context() as patch:
        patch.setattr(outbox.ledger, "transact", _die)
        with pytest.raises(KeyboardInterrupt):
            outbox.shipper.ship()
    assert (ids(url), waiting(outbox)) == (["a", "b"], 2), "there already, and still here"
    outbox.commit("c")
    outbox.ship_all()
    assert (ids(url), waiting(outbox)) == (["a", "b", "c"], 0)


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def load(outbox: Outbox, done: threading.Event) -> tuple[threading.Thread, list[str]]:
    """Commit from a thread until `done`; return it and the ids acknowledged so far."""
    acknowledged: list[str] = []

    def work() -> None:
        number = 0
        while not done.is_set():
            batch = [f"r{number + offset:07d}" for offset in range(8)]
            outbox.commit(*batch)
            acknowledged.extend(batch)
            number += 8
            done.wait(0.002)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, acknowledged


@pytest.mark.parametrize(
    "gone_s", [0.0, pytest.param(60.0, marks=[pytest.mark.deep, pytest.mark.timeout(600)])]
)
def test_a_killed_database_loses_nothing_and_doubles_nothing(
    server: PostgresServer, outbox: Outbox, url: str, gone_s: float
) -> None:
    outbox.shipper.start()
    done = threading.Event()
    thread, acknowledged = load(outbox, done)
    try:
        wait_until(lambda: outbox.backlog.shipped_seq > 50)
        server.kill()
        more, until = len(acknowledged) + 200, time.monotonic() + gone_s
        wait_until(lambda: len(acknowledged) > more)
        wait_until(lambda: bool(outbox.ended) and outbox.ended[-1] is not None)
        while time.monotonic() < until:
            done.wait(0.1)
        server.start()
    finally:
        done.set()
        thread.join()
    wait_until(lambda: outbox.backlog.records == 0)
    assert ids(url) == acknowledged
    assert report(url).fault is None


@pytest.mark.parametrize(
    "pause_s", [1.0, pytest.param(60.0, marks=[pytest.mark.deep, pytest.mark.timeout(600)])]
)
def test_a_database_that_stands_still_loses_nothing_and_doubles_nothing(
    server: PostgresServer, outbox: Outbox, url: str, pause_s: float
) -> None:
    outbox.shipper.start()
    done = threading.Event()
    thread, acknowledged = load(outbox, done)
    try:
        wait_until(lambda: outbox.backlog.shipped_seq > 50)
        server.pause()
        count, until = len(acknowledged), time.monotonic() + pause_s
        wait_until(lambda: len(acknowledged) > count + 200)
        while time.monotonic() < until:
            done.wait(0.1)
        server.resume()
    finally:
        server.resume()
        done.set()
        thread.join()
    wait_until(lambda: outbox.backlog.records == 0)
    assert ids(url) == acknowledged
    assert report(url).fault is None


def test_a_full_outbox_refuses_and_heals_without_a_restart(
    server: PostgresServer, tmp_path: Path, url: str
) -> None:
    with closing(Outbox(tmp_path / "small.db", url, records_max=10)) as outbox:
        server.kill()
        try:
            outbox.shipper.start()
            outbox.commit(*(f"d{number}" for number in range(10)))
            with pytest.raises(LedgerError, match="outbox is full: 10 records wait"):
                outbox.commit("refused")
            with pytest.raises(LedgerError, match="outbox is full"):
                outbox.ledger.ping()
        finally:
            server.start()
        wait_until(lambda: outbox.backlog.records == 0)
        outbox.ledger.ping()
        outbox.commit("after")
        wait_until(lambda: outbox.backlog.records == 0)
        assert ids(url) == [*(f"d{number}" for number in range(10)), "after"]


def test_what_waits_is_counted_again_after_a_restart(tmp_path: Path, url: str) -> None:
    with closing(Outbox(tmp_path / "outbox.db", url)) as first:
        first.commit("a", "b")
        first.ship_all()
        first.commit("c", "d", "e")
    with closing(Outbox(tmp_path / "outbox.db", "postgresql:///?host=/nowhere")) as second:
        second.shipper.start()
        assert second.backlog.records == 3


def copied(outbox: Outbox, target: Path) -> Path:
    with Store.of_file(outbox.ledger.path, Access.READ).transaction() as connection:
        connection.exec_driver_sql("SELECT 1")
    outbox.ledger.transact("copy", lambda driver: None)
    outbox.ledger._give_up_writer()  # the log is copied into the file
    for file in outbox.ledger.path.parent.glob(outbox.ledger.path.name + "*"):
        shutil.copy(file, target.with_name(file.name.replace("outbox.db", target.name)))
    return target


def test_a_second_server_on_a_copy_of_an_outbox_is_refused(
    outbox: Outbox, tmp_path: Path, url: str
) -> None:
    """Case audit-08: two servers that append to one chain; the first to ship keeps it."""
    outbox.commit("a", "b")
    outbox.ship_all()
    with closing(Outbox(copied(outbox, tmp_path / "copy.db"), url)) as copy:
        outbox.commit("c", "d")
        outbox.ship_all()
        for forged in (["x"], ["y"], ["z"]):
            copy.commit(*forged)
            with pytest.raises(LedgerError, match="does not continue the shared ledger"):
                copy.shipper.ship()
        assert waiting(copy) == 3, "nothing of it is given up"
    assert ids(url) == ["a", "b", "c", "d"]
    assert report(url).fault is None


def test_a_database_restored_from_an_old_copy_is_noticed(outbox: Outbox, url: str) -> None:
    outbox.commit("a", "b")
    outbox.ship_all()
    with Store.open(url, Access.WRITE).transaction() as connection:
        connection.execute(text("DELETE FROM decisions WHERE seq = 2"))
        connection.execute(
            text("UPDATE chains SET seq = 1, hash = (SELECT hash FROM decisions WHERE seq = 1)")
        )
    outbox.commit("c")
    with pytest.raises(LedgerError, match="restored from an old copy"):
        outbox.shipper.ship()


def test_an_outbox_is_no_ledger_and_a_ledger_no_outbox(tmp_path: Path, url: str) -> None:
    Ledger.open(f"sqlite:///{tmp_path}/authz.db", approval_ttl_s=900).close()
    with pytest.raises(LedgerError, match="not an authz-server outbox"):
        Outbox(tmp_path / "authz.db", url)
    Outbox(tmp_path / "outbox.db", url).close()
    with pytest.raises(LedgerError, match="not an authz-server ledger"):
        Ledger.open(f"sqlite:///{tmp_path}/outbox.db", approval_ttl_s=900)
