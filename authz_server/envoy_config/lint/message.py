"""Envoy's configuration as typed messages: one form of every value, and what was not understood.

Protobuf's JSON mapping lets one setting be written in many ways: `failure_mode_allow` or
`failureModeAllow`, an enumeration by name or number, a number as text, a wrapper as its value.
Rules read one: field names as in the `.proto` files, enumerations by name, durations in seconds,
and every `Any` as the message that it holds. Envoy is more lenient than that mapping, and so is
this: what it accepts means here what it means to Envoy 1.40 (tests/e2e/test_lint_reads.py).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.suggestion import did_you_mean
from authz_server.envoy_config.lint.definitions import VERSION, Definitions, FieldType
from authz_server.envoy_config.lint.source import DEPTH_MAX, Place, Raw, Scalar, Source

# Aliases let a short text stand for a long one; no configuration has as many values.
VALUES_MAX: Final = 4_000_000

ANY: Final = "google.protobuf.Any"
_TYPED_STRUCTS: Final = frozenset({"udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"})
_WRAPPERS: Final[Mapping[str, str]] = {
    "google.protobuf.BoolValue": "bool",
    "google.protobuf.BytesValue": "bytes",
    "google.protobuf.DoubleValue": "number",
    "google.protobuf.FloatValue": "number",
    "google.protobuf.Int32Value": "integer",
    "google.protobuf.Int64Value": "integer",
    "google.protobuf.StringValue": "string",
    "google.protobuf.UInt32Value": "integer",
    "google.protobuf.UInt64Value": "integer",
    "google.protobuf.FieldMask": "string",
    "google.protobuf.Timestamp": "string",
}
# Envoy parses a text for a boolean as `absl::SimpleAtob` does, in any case of letters.
_BOOLEANS: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("true", "t", "yes", "y", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0"), False),
}
_FREE: Final = frozenset(
    {"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"}
)
_DURATION: Final = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,9})?s", re.ASCII)
_NUMBER: Final = re.compile(r"[-+]?[0-9]{1,20}(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?", re.ASCII)
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_@][A-Za-z0-9_]*", re.ASCII)

Path = tuple[str | int, ...]
Value: TypeAlias = "Scalar | Message | list[Value] | dict[str, Value] | Free"


@dataclass(frozen=True, slots=True)
class At:
    """A part of one source: its path and place, and what is to be said beyond the rule."""

    source: Source
    path: Path
    place: Place
    note: str = ""

    @property
    def line(self) -> int:
        """The line, from 1; 0 where the source is no file."""
        return self.place[0] if self.source.lines else 0

    @property
    def column(self) -> int:
        """The column, from 1; 0 where the source is no file."""
        return self.place[1] if self.source.lines else 0

    @property
    def json_path(self) -> str:
        """The path in the form of RFC 9535 §2.5.1, keys as they are written in the source."""
        parts = ["$"]
        for part in self.path:
            if isinstance(part, int):
                parts.append(f"[{part}]")
            elif _PLAIN_KEY.fullmatch(part):
                parts.append(f".{part}")
            else:
                quoted = part.replace("\\", "\\\\").replace("'", "\\'")
                parts.append(f"['{quoted}']")
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class Free:
    """A value without a type of its own: `google.protobuf.Struct` and what is in it."""

    raw: Raw


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One message. `type` is its full name; `known` is false for a type Envoy's sources lack."""

    type: str
    source: Source
    path: Path
    place: Place
    known: bool = True
    fields: dict[str, Value] = field(default_factory=dict)
    places: dict[str, tuple[str, Place]] = field(default_factory=dict)  # key as written, and where

    def at(self, name: str = "", note: str = "") -> At:
        """Return the place of one field, or of the message where that is not set."""
        if name in self.places:
            key, place = self.places[name]
            return At(self.source, (*self.path, key), place, note)
        return At(self.source, self.path, self.place, note)

    def is_a(self, *names: str) -> bool:
        """Tell whether the full name ends with one of `names`, at a dot."""
        return any(self.type == name or self.type.endswith(f".{name}") for name in names)

    def has(self, name: str) -> bool:
        """Tell whether a field is set, to whatever value."""
        return name in self.fields

    def flag(self, name: str) -> bool | None:
        """Return a boolean, None where it is not set."""
        value = self.fields.get(name)
        return value if isinstance(value, bool) else None

    def text(self, name: str) -> str:
        """Return a text or the name of an enumeration's value; empty where it is not set."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> float | None:
        """Return a number, or a duration in seconds; None where it is not set."""
        value = self.fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of texts."""
        value = self.fields.get(name)
        return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []

    def message(self, name: str) -> "Message | None":
        """Return a message, None where it is not set."""
        value = self.fields.get(name)
        return value if isinstance(value, Message) else None

    def messages(self, name: str) -> "list[Message]":
        """Return a list of messages; one that stands alone counts as a list of one."""
        value = self.fields.get(name)
        if isinstance(value, Message):
            return [value]
        if isinstance(value, list):
            return [item for item in value if isinstance(item, Message)]
        return []

    def map(self, name: str) -> dict[str, Value]:
        """Return a map; empty where it is not set."""
        value = self.fields.get(name)
        return value if isinstance(value, dict) else {}

    def inside(self, *names: str) -> "Message | None":
        """Follow fields that hold one message each; None where one is not set."""
        found: Message | None = self
        for name in names:
            found = found.message(name) if found is not None else None
        return found

    def walk(self) -> "Iterator[Message]":
        """Yield this message and every one below it, outermost first."""
        waiting: list[object] = [self]
        while waiting:
            value = waiting.pop()
            if isinstance(value, Message):
                yield value
                waiting += reversed(value.fields.values())
            elif isinstance(value, list):
                waiting += reversed(value)
            elif isinstance(value, dict):
                waiting += reversed(value.values())

    def all(self, *names: str) -> "Iterator[Message]":
        """Yield every message at or below this one whose type is one of `names`."""
        return (message for message in self.walk() if message.is_a(*names))


@dataclass(frozen=True, slots=True)
class Misread:
    """Something that was not understood, and so is not judged. `kind` names the rule."""

    kind: str  # field | value | type
    at: At


class Builder:
    """Makes messages of one source. `misread` holds what could not be made sense of."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._definitions = Definitions.load()
        self._values = 0
        self.misread: list[Misread] = []

    def message(self, raw: Raw, kind: str, path: Path = ()) -> Message:
        """Return `raw` as a message of type `kind`."""
        self._count(path, raw)
        message = Message(kind, self._source, path, raw.at)
        if not isinstance(raw.value, dict):
            if raw.value is not None:
                self._refuse("value", path, raw, f"`{_short(kind)}` must be a mapping")
            return message
        self._fill(message, raw.value, {})
        return message

    def _fill(self, message: Message, values: Mapping[str, Raw], skip: Mapping[str, str]) -> None:
        known = self._definitions.fields(message.type)
        for key, raw in values.items():
            if key in skip:
                continue
            path = (*message.path, key)
            if key not in known:
                hint = did_you_mean(key, [name for name, _ in known.values()])
                note = f"`{_short(message.type)}` has no field `{key}` in Envoy {VERSION}{hint}"
                self._refuse("field", path, raw, note)
                continue
            name, kind = known[key]
            if raw.value is None:
                continue  # JSON's null is the default value, as if nothing stood there
            if name in message.fields:
                self._refuse("field", path, raw, f"`{name}` stands twice, in two spellings")
            message.fields[name] = self._field(raw, kind, path)
            message.places[name] = (key, raw.at)

    def _field(self, raw: Raw, kind: FieldType, path: Path) -> Value:
        single = FieldType(kind.name, "")
        if kind.form == "[]":
            if not isinstance(raw.value, list):
                return [self._field(raw, single, path)]  # Envoy takes it for a list of one
            return [self._field(item, single, (*path, n)) for n, item in enumerate(raw.value)]
        if kind.form == "{}":
            if not isinstance(raw.value, dict):
                self._refuse("value", path, raw, "must be a mapping")
                return {}
            entries = raw.value.items()
            return {key: self._field(item, single, (*path, key)) for key, item in entries}
        return self._single(raw, kind.name, path)

    def _single(self, raw: Raw, kind: str, path: Path) -> Value:
        if kind == ANY:
            return self.any(raw, path)
        if kind in _FREE:
            return Free(raw)
        if kind == "google.protobuf.Duration" or kind in _WRAPPERS:
            return self._scalar(raw, _WRAPPERS.get(kind, "duration"), path)
        if self._definitions.has_message(kind):
            return self.message(raw, kind, path)
        return self._scalar(raw, kind, path)

    def any(self, raw: Raw, path: Path) -> Message:
        """Return the message in an `Any`, or in the `TypedStruct` in it."""
        self._count(path, raw)
        values = raw.value if isinstance(raw.value, dict) else {}
        kind = self._type_name(values.get("@type"))
        if kind in _TYPED_STRUCTS:
            inner = values.get("value")
            name = self._type_name(values.get("type_url") or values.get("typeUrl"))
            if inner is not None and isinstance(inner.value, dict):
                return self._typed(name, inner, inner.value, (*path, "value"))
            return self._typed(name, raw, {}, path)
        if not kind:
            self._refuse("value", path, raw, "an extension's configuration needs its `@type`")
        return self._typed(kind, raw, values, path)

    def _typed(self, kind: str, raw: Raw, values: Mapping[str, Raw], path: Path) -> Message:
        known = self._definitions.has_message(kind)
        message = Message(kind, self._source, path, raw.at, known)
        if known and not kind.startswith("google.protobuf."):
            self._fill(message, values, {"@type": ""})
        elif kind:
            self._refuse("type", path, raw, kind)
        return message

    @staticmethod
    def _type_name(raw: Raw | None) -> str:
        url = raw.value if raw is not None and isinstance(raw.value, str) else ""
        return url.rpartition("/")[2]

    def _scalar(self, raw: Raw, kind: str, path: Path) -> Scalar:
        self._count(path, raw)
        value = raw.value
        if isinstance(value, dict) and (spelled := _spelled_out(value, kind)) is not None:
            value = spelled
        if isinstance(value, list | dict):
            self._refuse("value", path, raw, f"must be a single value, {_FORMS.get(kind, kind)}")
            return None
        parsed = self._parse(value, kind)
        if parsed is None:
            form = _FORMS.get(kind) or f"one of {', '.join(self._definitions.enum(kind) or ())}"
            self._refuse("value", path, raw, f"must be {form}")
        return parsed

    def _parse(self, value: Scalar, kind: str) -> Scalar:
        """Return the value in the one form that rules read; None if it has none."""
        if kind == "bool":
            if isinstance(value, str):
                return _BOOLEANS.get(value.lower())
            return value if isinstance(value, bool) else None
        if kind in {"string", "bytes"}:
            return value if isinstance(value, str) else None
        if kind == "duration":
            matches = isinstance(value, str) and _DURATION.fullmatch(value)
            return float(str(value)[:-1]) if matches else None
        if kind in {"number", "integer"}:
            return _parse_number(value, kind)
        number = _parse_number(value, "integer")
        for name, known in (self._definitions.enum(kind) or {}).items():
            if number == known or (isinstance(value, str) and value.upper() == name.upper()):
                return name
        return None

    def _count(self, path: Path, raw: Raw) -> None:
        self._values += 1
        if len(path) > DEPTH_MAX or self._values > VALUES_MAX:
            message = "nested too deeply, or too large once its aliases are followed"
            line, column = raw.at
            name = self._source.name
            raise ConfigurationError([Fault(file=name, line=line, column=column, message=message)])

    def _refuse(self, kind: str, path: Path, raw: Raw, note: str) -> None:
        self.misread.append(Misread(kind, At(self._source, path, raw.at, note)))


_FORMS: Final[Mapping[str, str]] = {
    "bool": "`true` or `false`",
    "string": "text",
    "bytes": "text",
    "duration": 'seconds with an `s`, as in "0.25s"',
    "number": "a number",
    "integer": "a whole number",
}


def _spelled_out(value: Mapping[str, Raw], kind: str) -> Scalar:
    """Return what a wrapper or duration says that is written as the message it is.

    Envoy accepts `{value: true}` for `true`, and `{seconds: 1, nanos: 500000000}` for `1.5s`.
    """
    parts = {key: raw.value for key, raw in value.items()}
    if kind != "duration":
        only = parts.get("value") if parts.keys() == {"value"} else None
        return None if isinstance(only, list | dict) else only
    if not parts.keys() <= {"seconds", "nanos"}:
        return None
    numbers = [_parse_number(parts.get(key, 0), "integer") for key in ("seconds", "nanos")]
    seconds, nanos = (None if number is None else int(number) for number in numbers)
    return None if seconds is None or nanos is None else f"{seconds}.{abs(nanos):09d}s"


def _parse_number(value: object, kind: str) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value):
            return None
        value = float(value) if re.search("[.eE]", value) else int(value)
    if kind == "integer":
        return int(value) if value == int(value) else None
    return value


def _short(kind: str) -> str:
    """Return a message's name without its package."""
    parts = kind.split(".")
    first = next((n for n, part in enumerate(parts) if part[:1].isupper()), 0)
    return ".".join(parts[first:])
