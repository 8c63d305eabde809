"""`authz-server ledger`: what an administrator does to the ledger itself, from the command line."""

from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from authz_server.cli.decisions import group as decisions_group
from authz_server.cli.main import group
from authz_server.ledger.pseudonym import Pseudonyms
from authz_server.ledger.query import DecisionFilter, LedgerReader
from authz_server.ledger.seal import SigningKey
from authz_server.ledger.settlement import ApprovalTerms
from authz_server.ledger.store import Ledger, LedgerOptions
from tests.ledger_samples import ALICE, BOB, TTL_S, allow, chain, record
from tests.pdp_site import PdpSite


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(group, arguments)
    return result.exit_code, result.output


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/authz.db"
    with closing(Ledger.open(url, approval_ttl_s=TTL_S)) as ledger:
        ledger.commit([record(allow()), record(allow(chain=chain(subject=BOB)))])
    return url


def test_erases_one_person_and_says_how_many(url: str, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    SigningKey.load_or_create(key)
    order = ("--subject", ALICE, "--by", BOB, "--reason", "request 4711", "--key", str(key))
    assert run("ledger", "erase", "--ledger", url, *order) == (0, "erased 1 records\n")
    assert len(list(LedgerReader.open(url).list(DecisionFilter(subject=ALICE)))) == 0
    verify = ("verify", "--ledger", url, "--key", str(key))
    assert CliRunner().invoke(decisions_group, verify).exit_code == 0
    assert CliRunner().invoke(decisions_group, verify[:3]).exit_code == 1, "the key is needed"


def test_needs_a_key_to_erase(url: str) -> None:
    order = ("--subject", ALICE, "--by", BOB, "--reason", "request 4711")
    status, output = run("ledger", "erase", "--ledger", url, *order)
    assert status == 2
    assert "name the key that signs" in output


def test_finds_a_person_behind_the_pseudonym(tmp_path: Path) -> None:
    site = PdpSite.create(tmp_path / "site")
    key = site.directory / "subjects.key"
    key.write_bytes(b"k" * 32)
    text = site.configuration.read_text().replace(
        "url: sqlite:///state/authz.db",
        "url: sqlite:///state/authz.db\n  subject_key: subjects.key",
    )
    site.configuration.write_text(text)
    terms = ApprovalTerms(ttl=timedelta(seconds=TTL_S), single_use=True)
    options = LedgerOptions(approvals=terms, pseudonyms=Pseudonyms.load(key))
    with closing(Ledger.open_file(site.ledger, options)) as ledger:
        ledger.commit([record(allow()), record(allow(chain=chain(subject=BOB)))])
    listed = ("decisions", "list", "--config", str(site.configuration), "--output", "json")
    assert run(*listed)[1].count("hmac-sha256:") == 2
    assert run(*listed, "--subject", ALICE)[1].count("hmac-sha256:") == 1
    SigningKey.load_or_create(site.ledger.with_name("authz.db.key"))
    order = ("--subject", ALICE, "--by", BOB, "--reason", "request 4711")
    erased = run("ledger", "erase", "--config", str(site.configuration), *order)
    assert erased == (0, "erased 1 records\n")


@pytest.mark.parametrize("url", ["sqlite:///authz.db", "postgresql:///authz?host=/nowhere"])
def test_migrates_nothing_but_a_database_that_answers(url: str) -> None:
    status, output = run("ledger", "migrate", "--ledger", url)
    assert status == 2
    assert "error: " in output
