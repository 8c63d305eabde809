"""The messages of Envoy 1.40: which fields each has, and of what type.

`messages.json` is taken from the binary (`protos/envoy_messages.py`), so that a field is known here
exactly if that Envoy knows it.
"""

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Final, NamedTuple

VERSION: Final = "1.40"


class FieldType(NamedTuple):
    """The type of one field: `repeated`, or a `map` from text, of `name`."""

    name: str
    form: str  # "" | "[]" | "{}"


class Definitions:
    """All messages and enumerations. Names are full protobuf names."""

    def __init__(
        self, messages: Mapping[str, Mapping[str, str]], enums: Mapping[str, Mapping[str, int]]
    ) -> None:
        self._messages = messages
        self._enums = enums
        self._fields: dict[str, dict[str, tuple[str, FieldType]]] = {}

    @classmethod
    @functools.cache
    def load(cls) -> "Definitions":
        """Return the definitions that ship with this package."""
        text = (resources.files(__package__) / "messages.json").read_text(encoding="utf-8")
        parts = json.loads(text)
        return cls(parts["messages"], parts["enums"])

    def has_message(self, name: str) -> bool:
        """Tell whether `name` is a message."""
        return name in self._messages

    def fields(self, message: str) -> Mapping[str, tuple[str, FieldType]]:
        """Return name and type of each field, under its name and its lowerCamelCase JSON name."""
        found = self._fields.get(message)
        if found is None:
            found = {}
            for name, text in self._messages[message].items():
                form = text[-2:] if text[-1] in "]}" else ""
                entry = (name, FieldType(text.removesuffix(form), form))
                found[name] = found[_json_name(name)] = entry
            self._fields[message] = found
        return found

    def enum(self, name: str) -> Mapping[str, int] | None:
        """Return the values of an enumeration, or None if `name` is none."""
        return self._enums.get(name)


def _json_name(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)
