"""`decisions verify` names the first bad sequence number, whatever was done to the ledger."""

import hashlib
import json
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import rfc8785
from click.testing import CliRunner

from authz_server.cli.decisions import group
from authz_server.core.errors import LedgerError
from authz_server.ledger.chain import GENESIS, Link, hash_of, leaf_of
from authz_server.ledger.checkpoints import Checkpoints
from authz_server.ledger.database import Access, Store
from authz_server.ledger.record import decision_row
from authz_server.ledger.schema import COMMITTED
from authz_server.ledger.seal import SealFault, SealKeys, SigningKey, Statement, StatementKind
from authz_server.ledger.sinks import FileSink
from authz_server.ledger.store import Ledger
from authz_server.ledger.verify import (
    ChainReport,
    FaultKind,
    read_statements,
    verify,
)
from tests.ledger_samples import NOON, TTL_S, allow, at, deny, record

RECORDS = 40
# Checkpoints were made after these; the last three records have none.
SEALED = (10, 20, 37)
_STARTING = 8


class Site:
    """A ledger of `RECORDS` records with checkpoints, kept here and elsewhere."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "authz.db"
        self.kept = directory / "kept.jsonl"
        self.key_file = directory / "signing.pem"
        self.key = SigningKey.load_or_create(self.key_file)
        with closing(Ledger.open(f"sqlite:///{self.path}", approval_ttl_s=TTL_S)) as ledger:
            checkpoints = Checkpoints(ledger, key=self.key, sinks=(FileSink(self.kept),))
            for number in range(1, RECORDS + 1):
                ledger.commit([record(allow(time=at(number)), f"decision-{number}")])
                if number in SEALED:
                    checkpoints.make(at(number))

    def execute(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    @property
    def keys(self) -> SealKeys:
        return SealKeys.of([self.key.public])

    def elsewhere(self) -> Sequence[Statement]:
        return list(read_statements(self.kept, self.keys))

    def report(self, *, elsewhere: Sequence[Statement] = ()) -> ChainReport:
        store = Store.of_file(self.path, Access.READ)
        (report,) = verify(store, keys=self.keys, elsewhere=elsewhere)
        return report

    def rewrite(self, first: int) -> None:
        """Turn every verdict from `first` on into an allow, with hashes that hold together."""
        with closing(sqlite3.connect(self.path)) as connection:
            names = ", ".join(COMMITTED)
            writer, previous = connection.execute(
                "SELECT writer, hash FROM decisions WHERE seq = ?", (first - 1,)
            ).fetchone()
            rows = connection.execute(
                f"SELECT seq, salt, record, {names} FROM decisions WHERE seq >= ? ORDER BY seq",
                (first,),
            ).fetchall()
            for seq, salt, text, *columns in rows:
                forged = text.replace('"owner":"team-research"', '"owner":"team-nobody"')
                assert forged != text
                previous = hash_of(writer, seq, previous, leaf_of(salt, columns, forged))
                connection.execute(
                    "UPDATE decisions SET record = ?, hash = ? WHERE seq = ?",
                    (forged, previous, seq),
                )
            connection.execute("UPDATE chains SET hash = ?", (previous,))
            connection.commit()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_whole_ledger(site: Site) -> None:
    report = site.report(elsewhere=site.elsewhere())
    assert (report.records, report.last, report.sealed_through) == (RECORDS, RECORDS, 37)
    assert report.fault is None


def test_an_empty_ledger_is_whole(tmp_path: Path) -> None:
    Ledger.open(f"sqlite:///{tmp_path}/a.db", approval_ttl_s=TTL_S).close()
    store = Store.of_file(tmp_path / "a.db", Access.READ)
    (report,) = verify(store, keys=SealKeys())
    assert (report.records, report.fault) == (0, None)


EDITS = {
    "verdict in the record": """UPDATE decisions SET record =
        replace(record, '"verdict":"allow"', '"verdict":"deny"') WHERE seq = 7""",
    "one character": "UPDATE decisions SET record = replace(record, '4711', '4712') WHERE seq = 7",
    "column it is found by": "UPDATE decisions SET subject = 'eve@example.org' WHERE seq = 7",
    "time column": "UPDATE decisions SET time_us = time_us + 1 WHERE seq = 7",
    "column set to null": "UPDATE decisions SET txn = NULL WHERE seq = 7",
    "salt": "UPDATE decisions SET salt = zeroblob(16) WHERE seq = 7",
    "hash": "UPDATE decisions SET hash = zeroblob(32) WHERE seq = 7",
    "emptied": "UPDATE decisions SET record = NULL, salt = NULL, leaf = zeroblob(32) WHERE seq = 7",
    "emptied without a leaf": "UPDATE decisions SET record = NULL, salt = NULL WHERE seq = 7",
    "writer": "UPDATE decisions SET writer = 'ffffffffffffffff' WHERE seq = 7",
    "first record": "UPDATE decisions SET rules = 'x' WHERE seq = 1",
    "last record": f"UPDATE decisions SET rules = 'x' WHERE seq = {RECORDS}",
}


@pytest.mark.parametrize("edit", EDITS)
def test_names_an_edited_record(site: Site, edit: str) -> None:
    site.execute(EDITS[edit])
    fault = site.report().fault
    assert fault is not None
    expected = {"first record": 1, "last record": RECORDS}.get(edit, 7)
    assert (fault.kind, fault.seq) == (FaultKind.ALTERED, expected)


@pytest.mark.parametrize(("first", "last"), [(7, 7), (1, 1), (1, 12), (12, 39)])
def test_names_the_first_deleted_record(site: Site, first: int, last: int) -> None:
    site.execute(f"DELETE FROM decisions WHERE seq BETWEEN {first} AND {last}")
    fault = site.report().fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.MISSING, first)


def test_names_the_first_of_two_swapped_records(site: Site) -> None:
    site.execute(
        "UPDATE decisions SET seq = -1 WHERE seq = 12",
        "UPDATE decisions SET seq = 12 WHERE seq = 25",
        "UPDATE decisions SET seq = 25 WHERE seq = -1",
    )
    fault = site.report().fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.ALTERED, 12)


def test_names_where_deleted_records_were_closed_up(site: Site) -> None:
    site.execute(
        "DELETE FROM decisions WHERE seq = 12",
        "UPDATE decisions SET seq = -seq WHERE seq > 12",
        "UPDATE decisions SET seq = -seq - 1 WHERE seq < 0",
    )
    fault = site.report().fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.ALTERED, 12)


CUT = (
    "DELETE FROM decisions WHERE seq > 30",
    "UPDATE chains SET seq = 30, hash = (SELECT hash FROM decisions WHERE seq = 30)",
    "DELETE FROM statements WHERE last_seq > 30",
)


def test_a_cut_tail_needs_a_checkpoint_kept_elsewhere(site: Site) -> None:
    """Case audit-04: the last rows deleted with everything in the ledger that speaks of them."""
    kept = site.elsewhere()
    site.execute(*CUT)
    assert site.report().fault is None, "a bare chain cannot see it"
    fault = site.report(elsewhere=kept).fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.CUT, 31)
    assert "reached 37" in fault.detail


@pytest.mark.parametrize("statements", [CUT[:1], CUT[:2]], ids=["rows only", "rows and note"])
def test_a_careless_cut_shows_in_the_ledger_itself(site: Site, statements: Sequence[str]) -> None:
    site.execute(*statements)
    fault = site.report().fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.CUT, 31)


def test_a_chain_that_is_gone_altogether_is_known_elsewhere(site: Site) -> None:
    kept = site.elsewhere()
    for file in site.path.parent.glob("authz.db*"):
        file.unlink()
    Ledger.open(f"sqlite:///{site.path}", approval_ttl_s=TTL_S).close()
    store = Store.of_file(site.path, Access.READ)
    reports = {one.writer: one for one in verify(store, keys=site.keys, elsewhere=kept)}
    fault = reports[kept[0].writer].fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.CUT, 1)


@pytest.mark.parametrize(("first", "named"), [(5, 1), (12, 11), (25, 21), (37, 21)])
def test_a_rewrite_is_named_to_the_last_checkpoint_that_fits(
    site: Site, first: int, named: int
) -> None:
    site.rewrite(first)
    fault = site.report().fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.REWRITTEN, named)
    kept = site.elsewhere()
    site.execute("DELETE FROM statements")
    assert site.report().fault is None, "without checkpoints elsewhere nobody could tell"
    fault = site.report(elsewhere=kept).fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.REWRITTEN, named)


def test_two_servers_on_one_chain_are_found_by_their_checkpoints(site: Site) -> None:
    """Case audit-08: a second server went on from a copy and signed another record 38."""
    (kept, *_) = site.elsewhere()
    fork = Statement(
        kind=StatementKind.CHECKPOINT,
        writer=kept.writer,
        first=1,
        last=38,
        hash=b"f" * 32,
        time=NOON,
    )
    fault = site.report(elsewhere=[fork]).fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.REWRITTEN, 38)


def test_servers_that_share_a_file_append_to_one_chain(site: Site) -> None:
    """Case audit-08: each transaction reads the end under the write lock."""
    url = f"sqlite:///{site.path}"
    with (
        closing(Ledger.open(url, approval_ttl_s=TTL_S)) as one,
        closing(Ledger.open(url, approval_ttl_s=TTL_S)) as two,
    ):
        for number in range(10):
            (one, two)[number % 2].commit([record(allow()), record(deny())])
    report = site.report()
    assert (report.records, report.fault) == (RECORDS + 20, None)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (('a","b', "c"), ("a", 'b","c')),
        (("a", None), ("a", "null")),
        (("a", None), (None, "a")),
        ((1, "2"), ("1", 2)),
    ],
)
def test_no_value_moves_into_its_neighbour(
    one: Sequence[str | int | None], other: Sequence[str | int | None]
) -> None:
    """Case audit-09: 'ab|c' and 'a|bc' are two leaves."""
    naive = ["".join(map(str, values)) for values in (("ab", "c"), ("a", "bc"))]
    assert naive[0] == naive[1], "the naive version must fail this test"
    assert leaf_of(bytes(16), one, "{}") != leaf_of(bytes(16), other, "{}")


def test_what_is_hashed_is_canonical_json() -> None:
    columns: list[str | int | None] = ['a\u20ac"\\\n\x1f', 2**53 - 1, None]
    text = '{"b":1}'
    committed = rfc8785.dumps({"columns": columns, "record": json.loads(text)})
    leaf = hashlib.sha256(bytes(16) + committed).digest()
    assert leaf_of(bytes(16), columns, text) == leaf
    link = rfc8785.dumps({"writer": "0a", "seq": 1, "prev": GENESIS.hex(), "leaf": leaf.hex()})
    assert hash_of("0a", 1, GENESIS, leaf) == hashlib.sha256(link).digest()


def test_the_same_decision_twice_has_two_leaves() -> None:
    one = record(allow())
    first, _ = decision_row("0a", Link(0, GENESIS), bytes(16), one, one.decision)
    second, _ = decision_row("0a", Link(0, GENESIS), b"\x01" * 16, one, one.decision)
    assert first[-2] != second[-2]


def test_statements_of_strangers_vouch_for_nothing(site: Site, tmp_path: Path) -> None:
    stranger = SigningKey.load_or_create(tmp_path / "stranger.pem")
    removal = Statement(
        kind=StatementKind.RETENTION,
        writer=site.elsewhere()[0].writer,
        first=1,
        last=12,
        hash=b"f" * 32,
        time=NOON,
    )
    with closing(sqlite3.connect(site.path)) as connection:
        connection.execute(
            "INSERT INTO statements VALUES (?, 'retention', 12, 1, ?)",
            (removal.writer, stranger.sign(removal)),
        )
        connection.commit()
    site.execute("DELETE FROM decisions WHERE seq <= 12")
    fault = site.report().fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.MISSING, 1)


def test_every_flipped_character_of_a_statement_is_refused(site: Site) -> None:
    jws = json.loads(site.kept.read_text().splitlines()[0])["jws"]
    assert site.keys.verify(jws).last == 10
    for place in range(0, len(jws), 7):
        flipped = jws[:place] + ("A" if jws[place] != "A" else "B") + jws[place + 1 :]
        with pytest.raises(SealFault):
            site.keys.verify(flipped)


@pytest.mark.parametrize("text", ["", "a", "a.b", "a.b.c", "..", "a" * 70_000, "é.é.é", '{"a"'])
def test_what_is_no_statement_is_refused(site: Site, text: str) -> None:
    with pytest.raises(SealFault):
        site.keys.verify(text)


def test_a_signing_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    first = SigningKey.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load_or_create(path).public_pem() == first.public_pem()
    path.write_text("no key")
    with pytest.raises(LedgerError, match="no unencrypted private key"):
        SigningKey.load_or_create(path)


def test_servers_that_start_together_make_one_signing_key(tmp_path: Path) -> None:
    """Two servers on one machine may share a file, and find no key beside it."""
    together = threading.Barrier(_STARTING)

    def start(path: Path) -> bytes:
        together.wait()
        return SigningKey.load_or_create(path).public_pem()

    with ThreadPoolExecutor(_STARTING) as pool:
        for attempt in range(30):
            path = tmp_path / f"{attempt}.pem"
            assert len(set(pool.map(start, [path] * _STARTING))) == 1
            assert path.stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 30, "nothing is left of those that came second"


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(group, ["verify", *arguments], standalone_mode=True)
    return result.exit_code, result.output


def test_the_command_says_whole_or_names_the_record(site: Site, tmp_path: Path) -> None:
    public = tmp_path / "public.pem"
    public.write_bytes(site.key.public_pem())
    arguments = (
        "--ledger", f"sqlite:///{site.path}", "--key", str(public),
        "--checkpoints", str(site.kept), "--output", "json",
    )  # fmt: skip
    status, output = run(*arguments)
    assert (status, json.loads(output)["fault"]) == (0, None)
    site.execute(*CUT)
    status, output = run(*arguments)
    assert status == 1
    assert json.loads(output)["fault"]["seq"] == 31
    status, output = run("--ledger", f"sqlite:///{site.path}")
    assert status == 0, "without key and checkpoints only the chain itself is verified"
