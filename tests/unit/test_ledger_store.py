"""The ledger keeps what it is given, whole batches at a time, in a file only its owner reads."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from authz_server.core.decision import Decision
from authz_server.core.enforcement import Mode
from authz_server.core.errors import LedgerError, Reason
from authz_server.core.record import decision_json
from authz_server.ledger.query import DecisionFilter
from authz_server.ledger.record import RecordFault
from authz_server.ledger.schema import SCHEMA_VERSION
from authz_server.ledger.store import Ledger
from tests.ledger_samples import TTL_S, allow, deny, escalation, record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "authz.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(f"sqlite:///{path}", approval_ttl_s=TTL_S)
    yield ledger
    ledger.close()


def ids(ledger: Ledger) -> list[str]:
    return [stored.decision_id for stored in ledger.list(DecisionFilter())]


def test_keeps_the_decision_document_as_it_is(ledger: Ledger) -> None:
    batch = [record(allow()), record(deny(Reason.NO_PRINCIPAL, principal=None, chain=None))]
    assert ledger.commit(batch) == [batch[0].decision, batch[1].decision]
    for one in batch:
        stored = ledger.get(one.decision_id)
        assert stored is not None
        assert stored.document == decision_json(
            one.decision, decision_id=one.decision_id, duration_us=one.duration_us
        )
    assert ledger.get("decision-") is None


def test_an_empty_batch_writes_nothing(ledger: Ledger) -> None:
    assert ledger.commit([]) == []
    assert ids(ledger) == []


def test_numbers_rows_without_gaps_across_batches_failures_and_restarts(
    path: Path, ledger: Ledger
) -> None:
    ledger.commit([record(allow()), record(allow())])
    with pytest.raises(RecordFault):
        ledger.commit([record(allow(), "same"), record(allow(), "same")])
    ledger.close()
    again = Ledger.open(f"sqlite:///{path}", approval_ttl_s=TTL_S)
    again.commit([record(allow()), record(allow())])
    assert [stored.seq for stored in again.list(DecisionFilter())] == [4, 3, 2, 1]
    again.close()


def test_refuses_a_decision_id_that_is_recorded_already(ledger: Ledger) -> None:
    ledger.commit([record(deny(), "a")])
    with pytest.raises(RecordFault, match="decision_id"):
        ledger.commit([record(allow(), "b"), record(allow(), "a")])
    assert ids(ledger) == ["a"], "nothing of the failed batch is written"
    ledger.commit([record(allow(), "b")])
    assert ids(ledger) == ["b", "a"]


def test_creates_the_file_and_its_companions_for_the_owner_alone(
    path: Path, ledger: Ledger
) -> None:
    ledger.commit([record(allow())])
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == {"authz.db": 0o600, "authz.db-wal": 0o600, "authz.db-shm": 0o600}


@pytest.mark.parametrize(("synchronous", "code"), [("NORMAL", 1), ("FULL", 2)])
def test_writes_with_the_synchronous_mode_asked_for(
    path: Path, synchronous: str, code: int
) -> None:
    # A power cut cannot be staged here; that the setting reaches SQLite can be read back.
    ledger = Ledger.open(f"sqlite:///{path}", approval_ttl_s=TTL_S, synchronous=synchronous)
    assert ledger._writer is not None
    driver = ledger._writer.driver
    assert driver.execute("PRAGMA synchronous").fetchone() == (code,)
    assert driver.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    ledger.close()


def test_stores_canonical_text_and_printable_columns(path: Path, ledger: Ledger) -> None:
    subject = "eve\n2026-07-01 ---> True\x1b[31m\u202e\x00\udc80é"
    chain = allow().chain
    assert chain is not None
    one = record(allow(chain=replace(chain, subject=subject)))
    ledger.commit([one])
    with sqlite3.connect(path) as reader:
        text, column = reader.execute("SELECT record, subject FROM decisions").fetchone()
    reader.close()
    assert json.loads(text)["chain"]["subject"] == subject
    assert "\n" not in text
    assert column == r"eve\n2026-07-01 ---> True\x1b[31m\u202e\x00\udc80é"


def test_a_very_long_string_is_cut_in_its_column_only(path: Path, ledger: Ledger) -> None:
    one = record(allow(bundle="b" * 5000))
    ledger.commit([one])
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT length(bundle) FROM decisions").fetchone() == (1024,)
    reader.close()
    stored = ledger.get(one.decision_id)
    assert stored is not None
    assert stored.document["bundle"] == "b" * 5000


@pytest.mark.parametrize(
    "decision",
    [
        pytest.param(escalation(fingerprint=None), id="bound to no exact action"),
        pytest.param(escalation(mode=Mode.SHADOW), id="only in shadow"),
    ],
)
def test_an_escalation_that_cannot_be_approved_stays_as_it_is(
    path: Path, ledger: Ledger, decision: Decision
) -> None:
    """Case approval-08: a body that was seen in part gives no exact action to approve."""
    assert ledger.commit([record(decision)]) == [decision]
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT count(*) FROM approvals").fetchone() == (0,)
    reader.close()


def test_a_closed_ledger_says_so(ledger: Ledger) -> None:
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.commit([record(allow())])
    with pytest.raises(LedgerError, match="closed"):
        ledger.ping()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("authz.db", "not a database URL"),
        ("mysql://db/authz", "not supported"),
        ("sqlite://", "plain file"),
        ("sqlite:///:memory:", "plain file"),
        ("sqlite:///authz.db?mode=ro", "plain file"),
        ("sqlite:////nowhere/at/all/authz.db", "No such file or directory"),
        ("sqlite:////", "Is a directory"),
    ],
)
def test_refuses_to_open_what_cannot_be_a_ledger(url: str, message: str) -> None:
    with pytest.raises(LedgerError, match=message):
        Ledger.open(url, approval_ttl_s=TTL_S)


def test_refuses_a_file_that_is_no_database(path: Path) -> None:
    path.write_text("ceci n'est pas une base de données\n" * 40)
    with pytest.raises(LedgerError, match="not a database"):
        Ledger.open(f"sqlite:///{path}", approval_ttl_s=TTL_S)


def test_refuses_a_database_of_something_else(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE customers (name TEXT)")
    other.close()
    with pytest.raises(LedgerError, match="not an authz-server ledger"):
        Ledger.open(f"sqlite:///{path}", approval_ttl_s=TTL_S)


def test_refuses_the_schema_of_another_version(path: Path, ledger: Ledger) -> None:
    ledger.close()
    with sqlite3.connect(path) as other:
        other.execute("UPDATE schema_version SET version = 99")
    other.close()
    needed = f"schema version 99, this program needs {SCHEMA_VERSION}"
    with pytest.raises(LedgerError, match=needed):
        Ledger.open(f"sqlite:///{path}", approval_ttl_s=TTL_S)


def test_an_open_ledger_pings(ledger: Ledger, path: Path) -> None:
    ledger.ping()
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        ledger.ping()  # a probe does not wait for the write lock
        other.execute("ROLLBACK")
    other.close()
