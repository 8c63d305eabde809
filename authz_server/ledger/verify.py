"""Verifying a ledger: every chain from its first record to its end, and the first bad sequence.

What is found, and by what:

- *altered*: a record, or a column it is found by, does not hash to what stands beside it; so does
  one in the place of another.
- *missing*: a number is skipped and no signed `retention` statement covers it.
- *cut*: the chain ends before a record that a checkpoint, or the ledger's own note of the end,
  says there was.
- *rewritten*: the chain holds together, but not with a signed checkpoint. What was changed lies
  between the last checkpoint that fits and this one; the first number after the former is named.

SECURITY: only statements signed by a key the caller trusts count. Checkpoints that were kept
elsewhere are what shows a cut or rewritten chain to someone who could write the whole database.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from sqlalchemy import func, select

from authz_server.core.errors import LedgerError
from authz_server.ledger.chain import START, Link, hash_of, leaf_of
from authz_server.ledger.database import Store, converted
from authz_server.ledger.schema import COMMITTED, chains, check, decisions, statements
from authz_server.ledger.seal import SealFault, SealKeys, Statement, StatementKind

# Each page is a read of its own, so that a long verification keeps no snapshot of the database.
_PAGE_ROWS: Final = 4_096


class FaultKind(StrEnum):
    """What is wrong with a chain; see the module."""

    ALTERED = "altered"
    MISSING = "missing"
    CUT = "cut"
    REWRITTEN = "rewritten"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFault:
    """The first thing that is wrong with a chain. `seq` is the first bad sequence number."""

    kind: FaultKind
    seq: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """What was found in one chain. Records after a fault were not looked at.

    `sealed_through` is the last record that a trusted checkpoint vouches for; 0 without one.
    """

    writer: str
    records: int
    last: int
    erased: int
    removed: int
    sealed_through: int
    fault: ChainFault | None


@dataclass(slots=True)
class _Vouched:
    """What trusted statements say of one chain."""

    checkpoints: dict[int, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    removals: list[Statement] = field(default_factory=list)
    erased: set[int] = field(default_factory=set)

    def add(self, statement: Statement) -> None:
        if statement.kind is StatementKind.CHECKPOINT and statement.hash is not None:
            self.checkpoints[statement.last].add(statement.hash)
        elif statement.kind is StatementKind.RETENTION:
            self.removals.append(statement)
        else:
            self.erased.update(statement.seqs)

    @property
    def reach(self) -> int:
        """The last record there was, as far as statements tell."""
        return max([0, *self.checkpoints, *(removal.last for removal in self.removals)])


class _Broken(Exception):
    """Ends the walk along a chain."""

    def __init__(self, kind: FaultKind, seq: int, detail: str) -> None:
        super().__init__(detail)
        self.fault = ChainFault(kind=kind, seq=seq, detail=detail)


def verify(
    store: Store, *, keys: SealKeys, elsewhere: Iterable[Statement] = ()
) -> Iterator[ChainReport]:
    """Yield a report on every chain of the ledger, and on every one that is known elsewhere.

    `keys` are trusted to sign statements; `elsewhere` are verified checkpoints that were kept
    outside. Memory does not grow with the ledger. Raises `LedgerError`.
    """
    with converted("verify the ledger"):
        with store.transaction() as connection:
            check(connection)
        vouched = _vouched(store, keys, elsewhere)
        ends = _ends(store)
        for writer in sorted({*vouched, *ends, *_writers(store)}):
            yield _Walk(writer, store, vouched.get(writer) or _Vouched(), ends.get(writer)).report()


def read_statements(path: Path, keys: SealKeys) -> Iterator[Statement]:
    """Yield the statements that a file sink kept, one JSON document a line.

    Raises `LedgerError` for a file that cannot be read, or a line that no trusted key signed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise LedgerError(f"cannot read `{path}`: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            yield keys.verify(json.loads(line)["jws"])
        except (SealFault, ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{path}:{number}: no statement of a trusted key") from error


class _Walk:
    """One way along one chain."""

    def __init__(self, writer: str, store: Store, vouched: _Vouched, end: Link | None) -> None:
        self._writer = writer
        self._store = store
        self._vouched = vouched
        self._noted_end = end
        self._at: Link = START
        self._trusted = True  # whether the hash of `_at` is known, not only its number
        self._sealed = self._records = self._erased = self._removed = 0

    def report(self) -> ChainReport:
        """Walk to the end or to the first fault."""
        fault = None
        try:
            for rows in _pages(self._store, self._writer):
                self._follow(rows)
            self._arrive()
        except _Broken as broken:
            fault = broken.fault
        return ChainReport(
            writer=self._writer,
            records=self._records,
            last=self._at.seq,
            erased=self._erased,
            removed=self._removed,
            sealed_through=self._sealed,
            fault=fault,
        )

    def _follow(self, rows: Sequence[Any]) -> None:
        """Take a page of rows. This is the loop that decides how fast a ledger is verified."""
        checkpoints = self._vouched.checkpoints
        writer = self._writer
        for seq, record, salt, leaf, stored, owner, *columns in rows:
            if seq != self._at.seq + 1:
                self._step_over(seq)
            if owner != writer:
                raise _Broken(FaultKind.ALTERED, seq, "belongs to another chain")
            if record is None or salt is None:
                leaf = self._erased_leaf(seq, leaf)  # noqa: PLW2901
            else:
                leaf = leaf_of(salt, columns, record)  # noqa: PLW2901
            expected = hash_of(writer, seq, self._at.hash, leaf)
            if expected != stored and self._trusted:
                raise _Broken(FaultKind.ALTERED, seq, "does not hash to what the chain says")
            self._trusted = True
            self._at = Link(seq, bytes(stored))
            self._records += 1
            if seq in checkpoints:
                self._check_seal()

    def _erased_leaf(self, seq: int, leaf: bytes | None) -> bytes:
        if leaf is None or seq not in self._vouched.erased:
            raise _Broken(FaultKind.ALTERED, seq, "is empty, and no signed statement erased it")
        self._erased += 1
        return leaf

    def _step_over(self, seq: int) -> None:
        """Go to just before `seq` if all that lies between was removed by retention."""
        missing = self._at.seq + 1
        if seq < missing:
            raise _Broken(FaultKind.ALTERED, seq, "stands twice")
        while self._at.seq + 1 < seq:
            removal = self._removal_of(self._at.seq + 1)
            last = min(removal.last, seq - 1)
            self._removed += last - self._at.seq
            # A removal that was interrupted leaves rows whose predecessor is gone.
            self._trusted = last == removal.last
            self._at = Link(last, removal.hash or b"")
        if self._trusted and self._at.seq in self._vouched.checkpoints:
            self._check_seal()

    def _removal_of(self, seq: int) -> Statement:
        for removal in self._vouched.removals:
            if removal.first <= seq <= removal.last:
                return removal
        raise _Broken(FaultKind.MISSING, seq, "is missing, and no signed statement removed it")

    def _check_seal(self) -> None:
        seq = self._at.seq
        if self._vouched.checkpoints[seq] != {self._at.hash}:
            detail = (
                f"written anew somewhere from {self._sealed + 1} to {seq}: a checkpoint differs"
            )
            raise _Broken(FaultKind.REWRITTEN, self._sealed + 1, detail)
        self._sealed = seq

    def _arrive(self) -> None:
        """Check that the chain does not end too early."""
        noted = self._noted_end
        reach = max(self._vouched.reach, noted.seq if noted else 0)
        while self._at.seq < reach and self._vouched.removals:
            if not any(one.first <= self._at.seq + 1 <= one.last for one in self._vouched.removals):
                break
            self._step_over(self._removal_of(self._at.seq + 1).last + 1)
        if self._at.seq < reach:
            detail = f"the chain ends here, but reached {reach}"
            raise _Broken(FaultKind.CUT, self._at.seq + 1, detail)
        if noted is None:
            detail = "the ledger's note of the end of this chain is missing"
            raise _Broken(FaultKind.CUT, self._at.seq + 1, detail)
        # Records may have been added since the note was read; it is then an earlier one.
        if noted.seq == self._at.seq and noted.hash != self._at.hash and self._trusted:
            raise _Broken(FaultKind.ALTERED, noted.seq, "the ledger's note of the end differs")


def _pages(store: Store, writer: str) -> Iterator[Sequence[Any]]:
    """Yield the rows of a chain in the order of their numbers."""
    columns = (decisions.c[name] for name in COMMITTED)
    read = select(
        decisions.c.seq,
        decisions.c.record,
        decisions.c.salt,
        decisions.c.leaf,
        decisions.c.hash,
        decisions.c.writer,
        *columns,
    ).order_by(decisions.c.seq)
    if store.path is None:  # a file holds one chain, and no index by writer
        read = read.where(decisions.c.writer == writer)
    last = 0
    while True:
        with store.transaction() as connection:
            rows = connection.execute(read.where(decisions.c.seq > last).limit(_PAGE_ROWS)).all()
        if not rows:
            return
        yield rows
        last = rows[-1].seq


def _vouched(
    store: Store, keys: SealKeys, elsewhere: Iterable[Statement]
) -> Mapping[str, _Vouched]:
    found: dict[str, _Vouched] = defaultdict(_Vouched)
    for statement in elsewhere:
        found[statement.writer].add(statement)
    with store.transaction() as connection:
        texts = connection.execute(select(statements.c.jws)).scalars().all()
    for text in texts:
        try:
            statement = keys.verify(text)
        except SealFault:
            continue  # vouches for nothing
        found[statement.writer].add(statement)
    return found


def _ends(store: Store) -> Mapping[str, Link]:
    with store.transaction() as connection:
        rows = connection.execute(select(chains.c.writer, chains.c.seq, chains.c.hash))
        return {writer: Link(seq, bytes(value)) for writer, seq, value in rows}


def _writers(store: Store) -> Iterator[str]:
    """Yield every writer that has records: one look into the index each, not one at every row."""
    if store.path is not None:
        return
    last = ""
    while True:
        with store.transaction() as connection:
            following = select(func.min(decisions.c.writer)).where(decisions.c.writer > last)
            writer = connection.execute(following).scalar()
        if writer is None:
            return
        yield writer
        last = writer
