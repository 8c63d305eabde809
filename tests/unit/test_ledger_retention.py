"""Records that were removed or erased on purpose leave a chain that verifies; others do not."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from authz_server.core.errors import LedgerError
from authz_server.ledger.checkpoints import Checkpoints
from authz_server.ledger.database import Access, Store
from authz_server.ledger.erasure import ErasureOrder, erase
from authz_server.ledger.pseudonym import PREFIX, Pseudonyms
from authz_server.ledger.query import ERASED, DecisionFilter, LedgerReader
from authz_server.ledger.retention import expire_file
from authz_server.ledger.seal import SealKeys, SigningKey
from authz_server.ledger.settlement import ApprovalTerms
from authz_server.ledger.store import Ledger, LedgerOptions
from authz_server.ledger.verify import ChainReport, FaultKind, verify
from tests.ledger_samples import (
    ALICE,
    BOB,
    NOON,
    RESEARCHER,
    TTL_S,
    allow,
    at,
    chain,
    escalation,
    record,
)

ORDER = ErasureOrder(subjects=(ALICE,), by=BOB, reason="request 4711")


class Site:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "authz.db"
        self.key = SigningKey.load_or_create(directory / "key.pem")
        self.ledger = Ledger.open(f"sqlite:///{self.path}", approval_ttl_s=TTL_S)
        self.checkpoints = Checkpoints(self.ledger, key=self.key, sinks=())

    def commit(self, *seconds: float, subject: str = ALICE) -> None:
        for second in seconds:
            one = record(allow(time=at(second), chain=chain(subject=subject)))
            self.ledger.commit([one])

    def expire(self, seconds: float) -> int:
        return expire_file(self.ledger, self.key, cutoff=at(seconds), now=at(1_000))

    def erase(self, order: ErasureOrder = ORDER) -> int:
        return erase(Store.of_file(self.path, Access.WRITE), self.key, order, now=at(1_000))

    def report(self) -> ChainReport:
        store = Store.of_file(self.path, Access.READ)
        (report,) = verify(store, keys=SealKeys.of([self.key.public]))
        return report

    def execute(self, statement: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute(statement)
            connection.commit()

    def seqs(self) -> list[int]:
        reader = LedgerReader.open(f"sqlite:///{self.path}")
        return sorted(one.seq for one in reader.list(DecisionFilter()))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.ledger.close()


def test_a_naive_removal_breaks_the_chain(site: Site) -> None:
    site.commit(1, 2, 3)
    site.execute("DELETE FROM decisions WHERE seq = 1")
    fault = site.report().fault
    assert fault is not None
    assert fault.kind is FaultKind.MISSING


def test_removes_what_is_older_and_the_rest_verifies(site: Site) -> None:
    site.commit(*range(250))
    site.checkpoints.make(at(250))
    assert site.expire(120) == 120
    assert site.seqs() == list(range(121, 251))
    report = site.report()
    assert (report.removed, report.records, report.sealed_through) == (120, 130, 250)
    assert report.fault is None
    reader = LedgerReader.open(f"sqlite:///{site.path}")
    found = list(reader.list(DecisionFilter(actor=RESEARCHER)))
    assert len(found) == 130, "look-up terms went with their records"
    with closing(sqlite3.connect(site.path)) as connection:
        terms = connection.execute("SELECT count(*) FROM decision_terms").fetchone()
    assert terms == (3 * 130,)


def test_removes_again_and_again_and_everything(site: Site) -> None:
    site.commit(1, 2, 3, 4)
    assert [site.expire(2), site.expire(3), site.expire(3), site.expire(99)] == [1, 1, 0, 2]
    report = site.report()
    assert (report.removed, report.records, report.fault) == (4, 0, None)
    site.commit(200)
    report = site.report()
    assert (report.removed, report.records, report.fault) == (4, 1, None)


def test_the_record_after_a_removal_is_still_held_to_its_predecessor(site: Site) -> None:
    site.commit(1, 2, 3, 4)
    site.expire(3)
    site.execute("UPDATE decisions SET subject = 'eve' WHERE seq = 3")
    fault = site.report().fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.ALTERED, 3)


def test_nothing_but_what_was_stated_may_be_gone(site: Site) -> None:
    site.commit(1, 2, 3, 4)
    site.expire(3)
    site.execute("DELETE FROM decisions WHERE seq = 3")
    fault = site.report().fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.MISSING, 3)


def test_a_removal_that_was_interrupted_verifies(site: Site, tmp_path: Path) -> None:
    site.commit(1, 2, 3, 4, 5)
    site.execute("CREATE TABLE saved AS SELECT * FROM decisions WHERE seq IN (2, 3)")
    site.expire(4)
    site.execute("INSERT INTO decisions SELECT * FROM saved")
    assert site.seqs() == [2, 3, 4, 5]
    assert site.report().fault is None
    assert site.expire(4) == 2
    assert site.report().fault is None


def test_a_clock_that_stepped_back_keeps_the_older_behind_the_younger(site: Site) -> None:
    site.commit(1, 100, 2, 3)
    assert site.expire(50) == 1
    assert site.seqs() == [2, 3, 4]
    assert site.report().fault is None


def test_old_approvals_go_too(site: Site) -> None:
    site.ledger.commit([record(escalation())])
    site.expire(TTL_S)
    with closing(sqlite3.connect(site.path)) as connection:
        assert connection.execute("SELECT count(*) FROM approvals").fetchone() == (1,)
    site.expire(TTL_S + 1)
    with closing(sqlite3.connect(site.path)) as connection:
        assert connection.execute("SELECT count(*) FROM approvals").fetchone() == (0,)


def test_erases_one_person_and_the_chain_verifies(site: Site) -> None:
    site.commit(1, 2)
    site.commit(3, subject="carol@example.org")
    site.ledger.commit([record(escalation(time=at(4)))])
    site.checkpoints.make(at(5))
    assert site.erase() == 3
    assert site.erase() == 0
    report = site.report()
    assert (report.records, report.erased, report.fault) == (4, 3, None)
    site.ledger.close()
    for file in site.path.parent.glob("authz.db"):
        assert b"alice" not in file.read_bytes()
    found = LedgerReader.open(f"sqlite:///{site.path}").list(DecisionFilter())
    assert [one.document.get("detail") == ERASED for one in found] == [True, False, True, True]


def test_erasing_without_a_statement_is_an_alteration(site: Site) -> None:
    site.commit(1, 2)
    site.erase()
    site.execute("DELETE FROM statements")
    fault = site.report().fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.ALTERED, 1)


def test_erased_records_expire_like_others(site: Site) -> None:
    site.commit(1, 2, 3)
    site.erase()
    assert site.expire(3) == 2
    assert site.report().fault is None


def test_subjects_are_recorded_under_a_pseudonym(tmp_path: Path) -> None:
    key = tmp_path / "subjects.key"
    key.write_bytes(b"k" * 32)
    pseudonyms = Pseudonyms.load(key)
    terms = ApprovalTerms(ttl=timedelta(seconds=TTL_S), single_use=True)
    options = LedgerOptions(approvals=terms, pseudonyms=pseudonyms)
    ledger = Ledger.open_file(tmp_path / "authz.db", options)
    one = record(allow())
    assert ledger.commit([one]) == [one.decision], "the answer names the subject"
    ledger.close()
    assert b"alice" not in (tmp_path / "authz.db").read_bytes()
    (stored,) = LedgerReader.open(f"sqlite:///{tmp_path}/authz.db").list(
        DecisionFilter(subject=pseudonyms.of(ALICE))
    )
    assert pseudonyms.of(ALICE).startswith(PREFIX)
    assert pseudonyms.of(ALICE) == Pseudonyms.load(key).of(ALICE)
    assert pseudonyms.of(ALICE) != pseudonyms.of(BOB)
    assert stored.document["detail"] == one.decision.detail


@pytest.mark.parametrize("content", [b"", b"short", b"k" * 5000])
def test_a_pseudonym_key_of_the_wrong_size_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="must hold 32 to 4096 bytes"):
        Pseudonyms.load(path)
    with pytest.raises(LedgerError, match="No such file"):
        Pseudonyms.load(tmp_path / "missing")


def test_a_decision_without_a_chain_has_no_subject_to_hide(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * 32)
    decision = replace(allow(), chain=None, time=NOON)
    assert Pseudonyms.load(path).applied(decision) is decision
