"""Read `policy.csv`: RFC 4180 rows, with every field's place kept.

Casbin's `#` comment lines and blanks around unquoted fields are read as Casbin does. What Casbin
loads damaged is a fault here: a byte order mark, an unquoted field with a quote or an open bracket
(a comma inside it would shift every later column), text after a closing quote, a literal that is
never closed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from authz_server.policy.source import FaultFound, FaultLog, Fragment, SourceFile

_BLANKS: Final = " \t"
_CLOSING: Final = {")": "(", "]": "[", "}": "{"}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029]|\r(?!\n)")
_PORTION_CHARS: Final = 64 * 1024
_PLAIN_LINE = re.compile(r'[^"()\[\]{}]*')


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its type (`p`, `g`, ...), its fields, and where it and each field begin.

    `line` is the id of a row of a table.
    """

    file: SourceFile
    kind: str
    start: int
    line: int
    values: tuple[str, ...]
    offsets: tuple[int, ...]

    def without_surplus(self, count: int) -> "Row":
        """Return the first `count` fields of a row of a table whose others are empty.

        A table has columns for the longest kind of row; some Casbin adapters leave those that a
        row does not use empty instead of NULL.
        """
        if not self.file.row_id or any(self.values[count:]):
            return self
        return replace(self, values=self.values[:count], offsets=self.offsets[:count])

    def fragment(self, column: int) -> Fragment:
        """Return one field as a fragment, its doubled quotes mapped to their places."""
        start = self.offsets[column]
        if self.file.text[start : start + 1] != '"':
            return Fragment(self.file, self.values[column], ((0, start),))
        text = self.values[column]
        pieces = [(0, start + 1)]
        shift = start + 1
        for at, char in enumerate(text):
            if char == '"':
                shift += 1
                pieces.append((at + 1, at + 1 + shift))
        return Fragment(self.file, text, tuple(pieces))

    def fault(self, column: int, message: str, severity: str = "error") -> FaultFound:
        """Return a fault at one field."""
        return FaultFound(self.file.fault(self.offsets[column], message, severity))

    def line_fault(self, message: str, severity: str = "error") -> FaultFound:
        """Return a fault at the beginning of the row."""
        return FaultFound(self.file.fault(self.start, message, severity))


def read_rows(file: SourceFile, log: FaultLog) -> Iterator[Row]:
    """Yield the rows of `file`; a damaged one goes to `log` and the next is read."""
    control_characters(file, log)
    at, line = 0, 1
    while at < len(file.text):
        end = _line_end(file.text, at)
        text = file.text[at:end].rstrip("\r")
        if not text.strip(_BLANKS) or text.lstrip(_BLANKS).startswith("#"):
            at, line = end + 1, line + 1
            continue
        reader = _RowReader(file, at, line)
        with log.collecting():
            yield reader.read()
        # After damage, resume on the next line: the place where a quote should have closed is
        # unknown, and every line that still reads well is worth its own faults.
        following = reader.end if reader.complete else end + 1
        line += file.text.count("\n", at, following)
        at = following


def control_characters(file: SourceFile, log: FaultLog) -> None:
    """Log every control character that no policy needs and no reader of it sees."""
    start = 0
    while start < len(file.text):
        # By portions that end with a line: one call over a file of some MiB holds up every thread.
        end = _line_end(file.text, start + _PORTION_CHARS) + 1
        for control in _CONTROL.finditer(file.text, start, end):
            message = f"control character {control[0]!a}"
            log.add(file.fault(control.start(), message))
        start = end


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


class _RowReader:
    """Reads one row that begins at `start`; `end` is the offset after its line break."""

    def __init__(self, file: SourceFile, start: int, line: int) -> None:
        self._file = file
        self._text = file.text
        self._line = line
        self._at = start
        self.end = start
        self.complete = False

    def read(self) -> Row:
        values: list[str] = []
        offsets: list[int] = []
        more = True
        while more:
            self._skip_blanks()
            offsets.append(self._at)
            quoted = self._text[self._at : self._at + 1] == '"'
            values.append(self._quoted() if quoted else self._unquoted())
            more = self._separator()
        self.end = self._at
        self.complete = True
        kind, *fields = values
        start, *places = offsets
        return Row(self._file, kind, start, self._line, tuple(fields), tuple(places))

    def _fault(self, at: int, message: str) -> FaultFound:
        return FaultFound(self._file.fault(at, message))

    def _skip_blanks(self) -> None:
        while self._text[self._at : self._at + 1] in {" ", "\t"}:
            self._at += 1

    def _separator(self) -> bool:
        """Step over the comma or line break; return whether another field follows."""
        self._skip_blanks()
        if self._text.startswith(",", self._at):
            self._at += 1
            return True
        if self._text.startswith("\r\n", self._at):
            self._at += 2
        elif self._text.startswith("\n", self._at):
            self._at += 1
        elif self._at < len(self._text):
            raise self._fault(self._at, "text after a closing quote")
        return False

    def _quoted(self) -> str:
        start = self._at
        at = start + 1
        parts: list[str] = []
        while True:
            end = self._text.find('"', at)
            if end < 0:
                raise self._fault(start, "the field has no closing quote")
            parts.append(self._text[at:end])
            if self._text[end + 1 : end + 2] != '"':
                break
            parts.append('"')
            at = end + 2
        self._at = end + 1
        return "".join(parts)

    def _unquoted(self) -> str:
        start = self._at
        end = _line_end(self._text, start)
        comma = self._text.find(",", start, end)
        self._at = end if comma < 0 else comma
        if self._text[self._at - 1 : self._at] == "\r" and comma < 0:
            self._at -= 1
        field = self._text[start : self._at].rstrip(_BLANKS)
        if _PLAIN_LINE.fullmatch(field) is None:
            self._check_unquoted(field, start)
        return field

    def _check_unquoted(self, field: str, start: int) -> None:
        opened: list[str] = []
        for at, char in enumerate(field):
            if char == '"':
                message = 'a quote inside an unquoted field; quote the field and double it: `""`'
                raise self._fault(start + at, message)
            if char in "([{":
                opened.append(char)
            elif char in ")]}" and (not opened or opened.pop() != _CLOSING[char]):
                raise self._fault(start + at, _UNBALANCED)
        if opened:
            raise self._fault(start + field.index(opened[-1]), _UNBALANCED)


_UNBALANCED: Final = "unbalanced bracket; a field that holds a comma must be quoted"
