"""Every filter finds exactly its decisions, newest first, and along an index."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from authz_server.core.decision import ResourceRecord, Verdict
from authz_server.core.errors import LedgerError, Reason
from authz_server.ledger import query
from authz_server.ledger.query import DecisionFilter, LedgerReader, LookupFault
from authz_server.ledger.store import Ledger
from tests.ledger_samples import (
    ASSISTANT,
    RESEARCHER,
    TTL_S,
    allow,
    at,
    chain,
    deny,
    escalation,
    record,
)

OTHER_AGENT = "spiffe://prod.example.org/agent/writer"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ledger with one decision that differs for each filter."""
    url = f"sqlite:///{tmp_path_factory.mktemp('ledger')}/authz.db"
    ledger = Ledger.open(url, approval_ttl_s=TTL_S)
    http = ResourceRecord(type="http", host="data.example.org", path="/exports/1")
    ledger.commit(
        [
            record(allow(), "plain"),
            record(deny(Reason.SCOPE_WIDENED, time=at(1)), "widened"),
            record(escalation(time=at(2)), "asked"),
            record(allow(chain=chain(subject="dora@example.org"), time=at(3)), "dora"),
            record(allow(chain=chain(ASSISTANT, OTHER_AGENT), time=at(4)), "writer"),
            record(allow(chain=chain(txn="txn-2"), time=at(5)), "second-txn"),
            record(allow(resource=http, time=at(6)), "export"),
            record(allow(rules=("r1", "r2", "r1"), time=at(7)), "two-rules"),
            record(allow(bundle="data", time=at(8)), "data"),
            record(deny(Reason.NO_PRINCIPAL, principal=None, chain=None, time=at(9)), "nobody"),
        ]
    )
    ledger.close()
    return url


@pytest.fixture
def reader(url: str) -> LedgerReader:
    return LedgerReader.open(url)


def found(reader: LedgerReader, wanted: DecisionFilter) -> list[str]:
    return [stored.decision_id for stored in reader.list(wanted)]


ALL = [
    "nobody",
    "data",
    "two-rules",
    "export",
    "second-txn",
    "writer",
    "dora",
    "asked",
    "widened",
    "plain",
]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (DecisionFilter(), ALL),
        (DecisionFilter(limit=3), ALL[:3]),
        (DecisionFilter(since=at(8)), ["nobody", "data"]),
        (DecisionFilter(until=at(2)), ["widened", "plain"]),
        (DecisionFilter(since=at(1), until=at(3)), ["asked", "widened"]),
        (DecisionFilter(verdict=Verdict.ESCALATE), ["asked"]),
        (DecisionFilter(verdict=Verdict.DENY), ["nobody", "widened"]),
        (DecisionFilter(reason=Reason.SCOPE_WIDENED), ["widened"]),
        (DecisionFilter(subject="dora@example.org"), ["dora"]),
        (DecisionFilter(subject="dora"), []),
        (DecisionFilter(subject="dora*"), ["dora"]),
        (DecisionFilter(subject="*", limit=1), ["data"]),
        (DecisionFilter(actor=OTHER_AGENT), ["writer"]),
        (DecisionFilter(actor="spiffe://prod.example.org/agent/w*"), ["writer"]),
        (DecisionFilter(actor=ASSISTANT, limit=2), ["data", "two-rules"]),
        (DecisionFilter(actor=ASSISTANT, since=at(1), until=at(2)), ["widened"]),
        (DecisionFilter(principal=RESEARCHER), ALL[1:]),
        (DecisionFilter(resource="data.example.org /exports/1"), ["export"]),
        (DecisionFilter(resource="data.example.org*"), ["export"]),
        (DecisionFilter(rule="r2"), ["two-rules"]),
        (DecisionFilter(rule="r1"), ["two-rules"]),
        (DecisionFilter(rule="r*"), ["two-rules"]),
        (DecisionFilter(rule="r1", actor=ASSISTANT), ["two-rules"]),
        (DecisionFilter(rule="r1", actor=OTHER_AGENT), []),
        (DecisionFilter(txn="txn-2"), ["second-txn"]),
        (DecisionFilter(bundle="data"), ["data"]),
        (DecisionFilter(bundle="data", verdict=Verdict.DENY), []),
    ],
)
def test_finds(reader: LedgerReader, wanted: DecisionFilter, expected: list[str]) -> None:
    assert found(reader, wanted) == expected


@pytest.mark.parametrize("hostile", ["' OR 1=1 --", "%", "_lain", "a\\", "\x00", "\udc80"])
def test_a_filter_is_only_ever_compared(reader: LedgerReader, hostile: str) -> None:
    assert found(reader, DecisionFilter(subject=hostile)) == []


def test_pages_through_more_than_one_read(
    reader: LedgerReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "_PAGE_ROWS", 3)
    assert found(reader, DecisionFilter()) == ALL
    assert found(reader, DecisionFilter(limit=7)) == ALL[:7]
    assert found(reader, DecisionFilter(actor=ASSISTANT)) == ALL[1:]


def test_lists_equal_times_in_reverse_order_of_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "_PAGE_ROWS", 2)
    ledger = Ledger.open(f"sqlite:///{tmp_path}/authz.db", approval_ttl_s=TTL_S)
    ledger.commit([record(allow(), f"d{number}") for number in range(7)])
    assert [one.decision_id for one in ledger.list(DecisionFilter())] == [
        f"d{number}" for number in reversed(range(7))
    ]
    ledger.close()


def test_finds_by_the_beginning_of_an_id(reader: LedgerReader) -> None:
    assert reader.find("plain").decision_id == "plain"
    assert reader.find("wi").decision_id == "widened"
    with pytest.raises(LookupFault, match="more than one decision"):
        reader.find("w")
    with pytest.raises(LookupFault, match="no decision"):
        reader.find("x")


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (DecisionFilter(), "decisions_time"),
        (DecisionFilter(since=at(0), verdict=Verdict.DENY), "decisions_time (time_us>?)"),
        (DecisionFilter(subject="a"), "decisions_subject_time (subject=?)"),
        (DecisionFilter(subject="a", since=at(0)), "decisions_subject_time (subject=? AND time_us"),
        (DecisionFilter(principal="a"), "decisions_principal_time (principal=?)"),
        (DecisionFilter(resource="a"), "decisions_resource_time (resource=?)"),
        (DecisionFilter(txn="a"), "decisions_txn_time (txn=?)"),
        (DecisionFilter(actor="a"), "PRIMARY KEY (kind=? AND value=?)"),
        (DecisionFilter(rule="a", since=at(0)), "PRIMARY KEY (kind=? AND value=? AND time_us>?)"),
    ],
)
def test_reads_along_an_index_in_the_order_wanted(
    url: str, wanted: DecisionFilter, index: str
) -> None:
    statement, clock = query._matching(wanted)
    ordered = statement.order_by(*(column.desc() for column in clock)).limit(10)
    text = str(ordered.compile(compile_kwargs={"literal_binds": True}))
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}")]
    connection.close()
    assert any(index in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan
    assert not any(step == "SCAN decisions" for step in plan), plan


def test_reads_while_a_server_writes(url: str, tmp_path: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/authz.db", approval_ttl_s=TTL_S)
    ledger.commit([record(allow(), "first")])
    listing: Iterator[object] = iter(ledger.list(DecisionFilter()))
    next(listing)
    ledger.commit([record(allow(), "second")])  # an unfinished listing holds nothing up
    assert list(listing) == []
    ledger.close()


def test_says_what_is_wrong_with_a_ledger_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="does not exist"):
        LedgerReader.open(f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == [], "reading creates nothing"


def test_a_record_that_is_no_document_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "authz.db"
    ledger = Ledger.open(f"sqlite:///{path}", approval_ttl_s=TTL_S)
    ledger.commit([record(replace(allow()), "a")])
    with sqlite3.connect(path) as vandal:
        vandal.execute("UPDATE decisions SET record = '{'")
    vandal.close()
    with pytest.raises(LedgerError, match="record 1"):
        ledger.get("a")
    ledger.close()
