"""Read YAML or JSON as Envoy does, into values that know their line and column.

Unlike our own configuration (`core.yaml_document`) this is written for another reader. What Envoy
takes for true (`yes`, `on`) is true here, aliases mean what they point to, and both forms nest as
deeply as a configuration dump does.
"""

import bisect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Final

import yaml

from authz_server.core.errors import ConfigurationError, Fault

try:  # libyaml is ten times as fast and ships with every wheel of PyYAML
    from yaml import CSafeLoader as _Loader
except ImportError:
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

# A configuration dump of a gateway with ten thousand routes has some 20 MB.
SOURCE_BYTES_MAX: Final = 64 * 1024 * 1024
DEPTH_MAX: Final = 200  # a matcher tree in a dump reaches some 60; bounds the recursion below
SOURCE_CHARS_MAX: Final = 200  # a longer line is not shown under its finding

_SECRET: Final = re.compile(
    r"inline_?(string|bytes)|private_?key|passw|secret|token|@.*://", re.IGNORECASE
)

Scalar = str | int | float | bool | None
Place = tuple[int, int]  # line and column, both from 1


@dataclass(frozen=True, slots=True)
class Raw:
    """One value. `at` is where it begins; for a list or mapping under a key, where the key does."""

    value: "Scalar | list[Raw] | dict[str, Raw]"
    at: Place


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One text that was read. `name` is how findings call it."""

    name: str
    root: Raw = field(repr=False)
    lines: tuple[str, ...] = field(repr=False)

    def line(self, at: Place) -> str:
        """Return the line at `at`, or nothing if it is too long, or may hold a secret."""
        text = self.lines[at[0] - 1] if 0 < at[0] <= len(self.lines) else ""
        # SECURITY: findings are printed, and end in the logs of a pipeline.
        return "" if len(text) > SOURCE_CHARS_MAX or _SECRET.search(text) else text


def read_source(data: bytes, *, name: str) -> Source:
    """Return what `data` says. Raises `ConfigurationError` when it is neither YAML nor JSON."""
    if len(data) > SOURCE_BYTES_MAX:
        raise _error(name, (0, 0), f"longer than {SOURCE_BYTES_MAX // 1024 // 1024} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _error(name, (data.count(b"\n", 0, error.start) + 1, 0), "not UTF-8") from error
    if text.lstrip()[:1] in ("{", "[") and (name.endswith(".json") or _is_json(text)):
        reader = _JsonReader(text, name)
        return Source(name, reader.read(), tuple(text.split("\n")))
    return Source(name, _YamlReader(name).read(text), tuple(_LINE_BREAK.split(text)))


def _error(name: str, at: Place, message: str) -> ConfigurationError:
    return ConfigurationError([Fault(file=name, line=at[0], column=at[1], message=message)])


# --- JSON ---------------------------------------------------------------------------------------

_BLANK: Final = re.compile(r"[ \t\n\r]*")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d{0,30})(\.\d{1,30})?([eE][-+]?\d{1,3})?", re.ASCII)
_WORDS: Final = {"true": True, "false": False, "null": None}


def _is_json(text: str) -> bool:
    """Tell whether a text is JSON rather than YAML in flow style."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


class _JsonReader:
    """A strict reader (RFC 8259) that keeps places. The standard library's keeps none."""

    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._name = name
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._at = 0

    def read(self) -> Raw:
        self._skip()
        root = self._value(0, None)
        self._skip()
        if self._at != len(self._text):
            raise self._refuse("text after the end of the document")
        return root

    def _value(self, depth: int, key: Place | None) -> Raw:
        if depth > DEPTH_MAX:
            raise self._refuse(f"nested deeper than {DEPTH_MAX} levels")
        char = self._text[self._at : self._at + 1]
        if char == "{":
            return Raw(self._object(depth), key or self._place(self._opened))
        if char == "[":
            return Raw(self._array(depth), key or self._place(self._opened))
        at = self._place(self._at)
        if char == '"':
            return Raw(self._string(), at)
        for word, value in _WORDS.items():
            if self._text.startswith(word, self._at):
                self._at += len(word)
                return Raw(value, at)
        match = _NUMBER.match(self._text, self._at)
        if match is None:
            raise self._refuse("not JSON: a value must stand here")
        self._at = match.end()
        return Raw(float(match[0]) if match[1] or match[2] else int(match[0]), at)

    def _object(self, depth: int) -> dict[str, Raw]:
        opened = self._at
        found: dict[str, Raw] = {}
        for _ in self._items("}"):
            at = self._at
            if self._text[at : at + 1] != '"':
                raise self._refuse("not JSON: a key in quotes must stand here")
            key = self._string()
            if key in found:
                self._at = at
                raise self._refuse(f"key `{key[:64]}` stands twice")
            self._skip()
            self._expect(":")
            self._skip()
            found[key] = self._value(depth + 1, self._place(at))
        self._opened = opened
        return found

    def _array(self, depth: int) -> list[Raw]:
        opened = self._at
        found = [self._value(depth + 1, None) for _ in self._items("]")]
        self._opened = opened
        return found

    def _items(self, end: str) -> Iterator[None]:
        """Stop at the beginning of each item, until `end`."""
        self._at += 1
        self._skip()
        if self._text.startswith(end, self._at):
            self._at += 1
            return
        while True:
            yield
            self._skip()
            if self._text.startswith(end, self._at):
                self._at += 1
                return
            self._expect(",")
            self._skip()

    def _string(self) -> str:
        try:
            value, self._at = scanstring(self._text, self._at + 1, True)
        except json.JSONDecodeError as error:
            self._at = error.pos
            raise self._refuse(f"not JSON: {error.msg.lower()}") from error
        return str(value)

    def _skip(self) -> None:
        match = _BLANK.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _expect(self, char: str) -> None:
        if not self._text.startswith(char, self._at):
            raise self._refuse(f"not JSON: `{char}` must stand here")
        self._at += 1

    def _place(self, offset: int) -> Place:
        line = bisect.bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def _refuse(self, message: str) -> ConfigurationError:
        return _error(self._name, self._place(self._at), message)


# --- YAML ---------------------------------------------------------------------------------------

_LINE_BREAK: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what PyYAML counts as one
# What yaml-cpp, which Envoy reads with, takes for a boolean: in lower case, in upper case, or with
# one capital. PyYAML leaves out `y` and `n`.
_TRUE: Final = ("y", "yes", "true", "on")
_FALSE: Final = ("n", "no", "false", "off")
_CONSTANTS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **{form: True for word in _TRUE for form in (word, word.upper(), word.capitalize())},
    **{form: False for word in _FALSE for form in (word, word.upper(), word.capitalize())},
}
# yaml-cpp takes a leading zero for octal, and knows hexadecimal.
_INTEGER: Final = re.compile(
    r"[-+]?(?:0x([0-9a-f]{1,15})|0([0-7]{1,20})|([0-9]{1,18}))", re.ASCII | re.IGNORECASE
)


class _YamlReader:
    """Turn the parser's events into values. An alias is the value that it points to, again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._events: Iterator[yaml.Event] = iter(())
        self._anchors: dict[str, Raw] = {}

    def read(self, text: str) -> Raw:
        self._events = iter(yaml.parse(text, Loader=_Loader))
        found: list[Raw] = []
        try:
            for event in self._events:
                if isinstance(event, yaml.DocumentStartEvent):
                    if found:
                        raise self._refuse(event, "only one document may stand in the file")
                    found.append(self._value(next(self._events), 0, None))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            at = (mark.line + 1, mark.column + 1) if mark else (0, 0)
            raise _error(self._name, at, f"not YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise _error(self._name, (0, 0), "not YAML: unreadable") from error
        return found[0] if found else Raw(None, (1, 1))

    def _value(self, event: yaml.Event, depth: int, key: Place | None) -> Raw:
        if depth > DEPTH_MAX:
            raise self._refuse(event, f"nested deeper than {DEPTH_MAX} levels")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._refuse(event, f"alias `{event.anchor}` has no value yet")
            return Raw(self._anchors[event.anchor].value, key or _start(event))
        raw = self._own_value(event, depth, key)
        if anchor := getattr(event, "anchor", None):
            self._anchors[anchor] = raw
        return raw

    def _own_value(self, event: yaml.Event, depth: int, key: Place | None) -> Raw:
        at = key or _start(event)
        if isinstance(event, yaml.MappingStartEvent):
            return Raw(self._mapping(depth), at)
        if isinstance(event, yaml.SequenceStartEvent):
            return Raw(self._sequence(depth), at)
        assert isinstance(event, yaml.ScalarEvent)
        if event.tag not in {None, "!"}:
            raise self._refuse(event, "tags are not supported")
        text = event.value
        return Raw(_plain(text) if event.implicit[0] else text, _start(event))

    def _mapping(self, depth: int) -> dict[str, Raw]:
        found: dict[str, Raw] = {}
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            if not isinstance(event, yaml.ScalarEvent):
                raise self._refuse(event, "a key must be text")
            if event.value in found:
                raise self._refuse(event, f"key `{event.value[:64]}` stands twice")
            found[event.value] = self._value(next(self._events), depth + 1, _start(event))
        return found

    def _sequence(self, depth: int) -> list[Raw]:
        found: list[Raw] = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            found.append(self._value(event, depth + 1, None))
        return found

    def _refuse(self, event: yaml.Event, message: str) -> ConfigurationError:
        return _error(self._name, _start(event), message)


def _plain(text: str) -> Scalar:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    match = _INTEGER.fullmatch(text)
    if match is None:
        return text
    hexadecimal, octal, decimal = match.groups()
    value = int(decimal) if decimal else int(hexadecimal or octal, 16 if hexadecimal else 8)
    return -value if text[0] == "-" else value


def _start(event: yaml.Event) -> Place:
    assert event.start_mark is not None
    return event.start_mark.line + 1, event.start_mark.column + 1
