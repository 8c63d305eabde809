r"""Read `model.conf`: Casbin's ini dialect, with every entry's place kept.

A line ending in `\` continues on the next; lines that are blank or begin with `#` or `;` are
skipped, and in effects and matchers a `#` outside quotes begins a comment. Where Casbin guesses,
this reader refuses: a stray line, a key or section given twice, a comment or blank line inside a
continued entry (Casbin silently drops what follows and so widens the matcher).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from authz_server.core.suggestion import did_you_mean
from authz_server.policy.source import FaultFound, FaultLog, Fragment, SourceFile

SECTIONS: Final[Mapping[str, str]] = {
    "request_definition": "r",
    "policy_definition": "p",
    "role_definition": "g",
    "policy_effect": "e",
    "matchers": "m",
}
_KEY = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=(?!=)")
_COMMENT_MARKS: Final = ("#", ";")


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key = value`. `at` is the key's offset in the file."""

    section: str
    key: str
    at: int
    value: Fragment


def parse_ini(file: SourceFile, log: FaultLog) -> tuple[Entry, ...]:
    """Return the entries of `file` in order; every stray, doubled or unknown part goes to `log`."""
    reader = _Reader(file)
    for line in _lines(file.text):
        with log.collecting():
            reader.read(*line)
    with log.collecting():
        reader.finish()
    return tuple(reader.entries)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    for line in text.split("\n"):
        yield start, line.removesuffix("\r")
        start += len(line) + 1


class _Reader:
    """The state between two lines: the section, and the pieces of an entry not yet complete."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._section: str | None = None
        self._skipping = False  # in an unknown section: one fault, not one for each of its lines
        self._seen: set[tuple[str, str]] = set()
        self._pieces: list[tuple[int, str]] = []
        self.entries: list[Entry] = []

    def read(self, start: int, line: str) -> None:
        stripped = line.strip()
        start += len(line) - len(line.lstrip())
        if self._pieces:
            self._continue(start, stripped)
        elif not stripped or stripped.startswith(_COMMENT_MARKS):
            return
        elif stripped.startswith("["):
            self._begin_section(start, stripped)
        else:
            self._begin_entry(start, stripped)

    def finish(self) -> None:
        if self._pieces:
            at, text = self._pieces[-1]
            raise FaultFound(self._file.fault(at + len(text), "the continued line is missing"))

    def _begin_section(self, start: int, text: str) -> None:
        name = text[1:-1].strip() if text.endswith("]") else ""
        self._section = None
        self._skipping = True
        if name not in SECTIONS:
            hint = did_you_mean(name, SECTIONS)
            raise FaultFound(self._file.fault(start, f"unknown section `{text}`{hint}"))
        if (name, "") in self._seen:
            raise FaultFound(self._file.fault(start, f"section `{name}` is given twice"))
        self._seen.add((name, ""))
        self._section = name
        self._skipping = False

    def _begin_entry(self, start: int, text: str) -> None:
        if _KEY.match(text) is None:
            message = "stray line: expected `key = value`; to continue a line, end it with `\\`"
            raise FaultFound(self._file.fault(start, message))
        self._continue(start, text)

    def _continue(self, start: int, text: str) -> None:
        if not text or text.startswith((*_COMMENT_MARKS, "[")):
            self._pieces.clear()
            raise FaultFound(self._file.fault(start, "the line before says that it continues here"))
        if text.endswith("\\"):
            self._pieces.append((start, text[:-1].rstrip()))
            return
        pieces = [*self._pieces, (start, text)]
        self._pieces.clear()
        self._finish_entry(pieces)

    def _finish_entry(self, pieces: list[tuple[int, str]]) -> None:
        at, first = pieces[0]
        match = _KEY.match(first)
        assert match is not None
        key, section = match[1], self._section
        if self._skipping:
            return
        if section is None:
            raise FaultFound(self._file.fault(at, "an entry must stand in a section"))
        if (section, key) in self._seen:
            raise FaultFound(self._file.fault(at, f"`{key}` is given twice in `{section}`"))
        self._seen.add((section, key))
        end = match.end()
        head = first[end:].lstrip()
        value = self._join([(at + len(first) - len(head), head), *pieces[1:]], section)
        if not value.text:
            raise FaultFound(self._file.fault(at, f"`{key}` has no value"))
        self.entries.append(Entry(section, key, at, value))

    def _join(self, pieces: list[tuple[int, str]], section: str) -> Fragment:
        texts: list[str] = []
        origins: list[tuple[int, int]] = []
        length = 0
        commented = section in {"matchers", "policy_effect"}
        for index, (start, line) in enumerate(pieces):
            text = _without_comment(line).rstrip() if commented else line
            if len(text) < len(line) and index < len(pieces) - 1:
                message = "a comment inside a continued line; Casbin would drop all that follows"
                raise FaultFound(self._file.fault(start + len(text), message))
            origins.append((length, start))
            texts.append(text)
            length += len(text) + 1
        return Fragment(self._file, " ".join(texts).rstrip(), tuple(origins))


def _without_comment(text: str) -> str:
    """Return `text` up to the first `#` that is not inside a quoted literal."""
    quote = ""
    escaped = False
    for at, char in enumerate(text):
        if escaped:
            escaped = False
        elif quote:
            escaped = char == "\\"
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#":
            return text[:at]
    return text
