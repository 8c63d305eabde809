"""Parse YAML bytes into plain values that still know their line and column.

Only what a configuration needs is accepted, so that one text has one meaning for every reader:
plain scalars follow the YAML 1.2 core schema (`off`, `no` and `1:30` are text, not `False` and 90
as in YAML 1.1), every key is text and stands once, and tags, aliases and further documents are
refused. Without aliases the value is a tree no larger than its text.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Self

import yaml

from authz_server.core.errors import ConfigurationError, Fault

try:  # libyaml is ten times as fast and ships with every wheel of PyYAML
    from yaml import CSafeLoader as _Loader
except ImportError:
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

YamlValue = str | int | float | bool | None | list["YamlValue"] | dict[str, "YamlValue"]
Path = tuple[str | int, ...]

DEPTH_MAX: Final = 32  # nesting that no configuration reaches; bounds the recursion below
SOURCE_CHARS_MAX: Final = 200  # a longer line is not shown under its fault

# YAML 1.2.2 §10.3.2. A leading zero is text: YAML 1.1 reads octal there, YAML 1.2 decimal.
_CONSTANTS: Final[Mapping[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})\.[0-9]{1,17}")
_CREDENTIALS = re.compile(r"://[^/\s]*@")  # RFC 3986 §3.2.1: user and password in a URL
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what PyYAML counts as one line break


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a key and its value begin; both count from 1. An item of a list has no key."""

    value: tuple[int, int]
    key: tuple[int, int] | None = None
    scalar: bool = True

    @property
    def best(self) -> tuple[int, int]:
        """The scalar itself; for a list or mapping the key that names it, if there is one."""
        return self.value if self.scalar or self.key is None else self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlDocument:
    """One parsed document. `value` is plain data; `fault` finds the place of any part of it."""

    file: str
    value: YamlValue
    _lines: tuple[str, ...]
    _places: Mapping[Path, _Place]

    @classmethod
    def parse(cls, data: bytes, *, file: str) -> Self:
        """Return the only document in `data`; an empty text is `None`.

        Raises `ConfigurationError` with the first syntax error, or with every duplicate key, tag,
        alias and non-text key of a text that is otherwise well formed. `file` names it in faults.
        """
        text = _decode(data, file)
        lines = tuple(_LINE_BREAK.split(text))
        builder = _Builder(file, lines)
        try:
            value = builder.build(text)
        except yaml.YAMLError as error:
            raise ConfigurationError([_syntax_fault(error, file, lines)]) from error
        if builder.faults:
            raise ConfigurationError(builder.faults)
        return cls(file=file, value=value, _lines=lines, _places=builder.places)

    def fault(self, path: Path, message: str) -> Fault:
        """Return a fault at the value of `path`, or of the nearest part that exists."""
        while path and path not in self._places:
            path = path[:-1]
        place = self._places.get(path)
        return _fault_at(self.file, self._lines, place.best if place else (1, 1), message)

    def key_fault(self, path: Path, message: str) -> Fault:
        """Return a fault at the key that ends `path`."""
        place = self._places.get(path)
        if place is None or place.key is None:
            return self.fault(path, message)
        return _fault_at(self.file, self._lines, place.key, message)


class _Builder:
    """Turn the parser's events into values and places. Used for one text, then dropped."""

    def __init__(self, file: str, lines: tuple[str, ...]) -> None:
        self._file = file
        self._lines = lines
        self._events: Iterator[yaml.Event] = iter(())
        self.places: dict[Path, _Place] = {}
        self.faults: list[Fault] = []

    def build(self, text: str) -> YamlValue:
        self._events = iter(yaml.parse(text, Loader=_Loader))
        value: YamlValue = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._refuse(event, "only one document may stand in the file")
                    break
                value = self._node(next(self._events), (), None)
        return value

    def _node(self, event: yaml.Event, path: Path, key: tuple[int, int] | None) -> YamlValue:
        if len(path) > DEPTH_MAX:
            raise self._stop(event, f"nested deeper than {DEPTH_MAX} levels")
        scalar = isinstance(event, yaml.ScalarEvent)
        self.places[path] = _Place(_start(event), key, scalar)
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, "aliases are not supported; repeat the value")
            return None
        if getattr(event, "tag", None) is not None:
            self._refuse(event, "tags are not supported; quote a value to make it text")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        assert isinstance(event, yaml.ScalarEvent)
        return _plain(event.value) if event.implicit[0] else event.value

    def _mapping(self, path: Path) -> YamlValue:
        found: dict[str, YamlValue] = {}
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._key(event)
            if key in found:
                self._refuse(event, f"key `{key}` stands twice")
            value = self._node(next(self._events), (*path, key), _start(event))
            found[key] = value
        return found

    def _key(self, event: yaml.Event) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            # The events of a list or mapping used as key would have to be skipped: not worth it.
            raise self._stop(event, "a key must be text")
        if event.implicit[0] and not isinstance(_plain(event.value), str):
            self._refuse(event, f"key `{event.value}` must be text; quote it")
        return event.value

    def _sequence(self, path: Path) -> YamlValue:
        found: list[YamlValue] = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            found.append(self._node(event, (*path, len(found)), None))
        return found

    def _stop(self, event: yaml.Event, message: str) -> ConfigurationError:
        self._refuse(event, message)
        return ConfigurationError(self.faults)

    def _refuse(self, event: yaml.Event, message: str) -> None:
        self.faults.append(_fault_at(self._file, self._lines, _start(event), message))


def _plain(text: str) -> str | int | float | bool | None:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _decode(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError([Fault(file=file, line=line, message="not UTF-8")]) from error


def _start(event: yaml.Event) -> tuple[int, int]:
    assert event.start_mark is not None
    return event.start_mark.line + 1, event.start_mark.column + 1


def _syntax_fault(error: yaml.YAMLError, file: str, lines: tuple[str, ...]) -> Fault:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        message = f"not YAML: {error.problem}"
        return _fault_at(file, lines, (mark.line + 1, mark.column + 1), message)
    return Fault(file=file, message=f"not YAML: {getattr(error, 'reason', 'unreadable')}")


def _fault_at(file: str, lines: tuple[str, ...], at: tuple[int, int], message: str) -> Fault:
    line, column = at
    source = lines[line - 1] if line <= len(lines) else ""
    # SECURITY: faults are printed and logged.
    if len(source) > SOURCE_CHARS_MAX or _CREDENTIALS.search(source):
        source = ""
    return Fault(file=file, line=line, column=column, source=source, message=message)
