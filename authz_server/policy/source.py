"""Text that remembers where in its file it stands, so that every fault has a line and a caret.

A `Fragment` is a piece of a file as its reader sees it: a matcher joined from continued lines, a
CSV field with its doubled quotes undone. `pieces` maps offsets in the fragment back to the file.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from authz_server.core.errors import AuthzError, Fault

SOURCE_CHARS_MAX: Final = 240  # a longer line is not shown under its fault
FAULTS_MAX: Final = 500  # per bundle; beyond it one more line says that there are others


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file's name and decoded text, or a table's name and one of its rows written as CSV."""

    name: str
    text: str
    row_id: int = 0  # of a row of a table: it stands where a file has its line

    @property
    def empty(self) -> str:
        """What is wrong with a file of rows that has none."""
        return "the file holds no rule; remove it if that is meant"

    def position(self, offset: int) -> tuple[int, int]:
        """Return line and column of `offset`, both from 1."""
        if self.row_id:
            return self.row_id, offset + 1
        start = self.text.rfind("\n", 0, offset) + 1
        return self.text.count("\n", 0, offset) + 1, offset - start + 1

    def fault(self, offset: int, message: str, severity: str = "error") -> Fault:
        """Return a fault whose caret stands under `offset`."""
        line, column = self.position(offset)
        start = offset - column + 1
        end = -1 if self.row_id else self.text.find("\n", start)
        source = self.text[start : len(self.text) if end < 0 else end].rstrip("\r")
        if "\n" in source:  # a row with a line break in a field: no caret can stand under it
            source = ""
        return Fault(
            file=self.name,
            line=line,
            column=column,
            message=message,
            source=source if len(source) <= SOURCE_CHARS_MAX else "",
            severity=severity,
        )


@dataclass(frozen=True, slots=True)
class Fragment:
    """A text cut out of a file.

    `pieces` are pairs (offset in `text`, offset in the file), ascending: from each first offset up
    to the next, both texts run in step.
    """

    file: SourceFile
    text: str
    pieces: tuple[tuple[int, int], ...]

    def offset(self, at: int) -> int:
        """Return the offset in the file of position `at` of this text."""
        index = bisect_right(self.pieces, (at, len(self.file.text))) - 1
        start, origin = self.pieces[max(index, 0)]
        return min(origin + at - start, len(self.file.text))

    def fault(self, at: int, message: str, severity: str = "error") -> Fault:
        """Return a fault whose caret stands under position `at` of this text."""
        return self.file.fault(self.offset(at), message, severity)


class FaultFound(AuthzError):
    """One fault that ends the reading of one part; the parts beside it are still read."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


@dataclass(slots=True)
class FaultLog:
    """Every fault and warning of one bundle, each once."""

    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)
    _seen: set[Fault] = field(default_factory=set)
    _left_out: int = 0

    def add(self, fault: Fault) -> None:
        """Keep `fault` unless it is known already or there are too many."""
        if fault in self._seen:
            return
        if len(self._seen) >= FAULTS_MAX:
            self._left_out += fault.severity == "error"
            return
        self._seen.add(fault)
        (self.warnings if fault.severity == "warning" else self.faults).append(fault)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Turn a `FaultFound` raised inside into an entry of this log."""
        try:
            yield
        except FaultFound as found:
            self.add(found.fault)

    def errors(self) -> tuple[Fault, ...]:
        """Return the faults in the order of file and place."""
        found = sorted(self.faults, key=lambda fault: (fault.file, fault.line, fault.column))
        if self._left_out:
            message = f"{self._left_out} more faults are not shown"
            found.append(Fault(file=found[0].file, message=message))
        return tuple(found)
