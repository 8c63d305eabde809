"""Protobuf messages out of their descriptors, so that a new field is tested without new test code.

A message is described by a `Spec`, plain values by field name: what a test wants to say, before any
protobuf library has touched it. A `Timestamp` is its `datetime`, a `BoolValue` its `bool`.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

Spec = dict[str, Any]
# The stubs know two unrelated classes for each of these, pure Python's and upb's.
MessageType = Any
Field = Any

_DEPTH_MAX = 5  # `Value` holds values; deeper ones prove nothing more

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
_SCALARS: Mapping[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=12),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
}
_WELL_KNOWN: Mapping[str, st.SearchStrategy[Any]] = {
    "google.protobuf.Timestamp": st.datetimes(timezones=st.just(UTC)),
    "google.protobuf.BoolValue": st.booleans(),
}


def specs(descriptor: MessageType, depth: int = 0) -> st.SearchStrategy[Spec]:
    """Return a strategy of messages of this type; of a oneof at most one member is set."""
    return st.deferred(lambda: _members(descriptor, depth))


def specs_of_field(field: Field) -> st.SearchStrategy[Spec]:
    """Return a strategy of messages in which `field` alone is set."""
    return st.fixed_dictionaries({field.name: values(field, 0)})


def values(field: Field, depth: int) -> st.SearchStrategy[Any]:
    """Return a strategy of values of `field`."""
    if is_map(field):
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return st.dictionaries(_single(key, depth), _single(value, depth), max_size=3)
    if field.is_repeated:
        return st.lists(_single(field, depth), max_size=3)
    return _single(field, depth)


def is_map(field: Field) -> bool:
    """Tell whether `field` is a map; its message type then is the entry."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _single(field: Field, depth: int) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if field.message_type is not None:
        known = _WELL_KNOWN.get(field.message_type.full_name)
        return known if known is not None else specs(field.message_type, depth + 1)
    return _SCALARS[field.type]


def _members(descriptor: MessageType, depth: int) -> st.SearchStrategy[Spec]:
    if depth >= _DEPTH_MAX:
        return st.just({})
    single = [field for field in descriptor.fields if field.containing_oneof is None]
    choices = [list(oneof.fields) for oneof in descriptor.oneofs]
    return st.tuples(
        st.fixed_dictionaries({}, optional={field.name: values(field, depth) for field in single}),
        *(_one_of(fields, depth) for fields in choices),
    ).map(lambda parts: {name: value for part in parts for name, value in part.items()})


def _one_of(fields: list[Field], depth: int) -> st.SearchStrategy[Spec]:
    return st.one_of(
        st.just({}),
        *(st.fixed_dictionaries({field.name: values(field, depth)}) for field in fields),
    )


def fill(message: Message, spec: Spec) -> None:
    """Set the fields of `message` as `spec` says, and mark it as present."""
    message.SetInParent()
    for name, value in spec.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        target = getattr(message, name)
        if is_map(field):
            _fill_map(field, target, value)
        elif field.is_repeated and field.message_type is not None:
            for item in value:
                fill(target.add(), item)
        elif field.is_repeated:
            target.extend(value)
        elif isinstance(value, datetime):
            target.FromDatetime(value)
        elif isinstance(value, bool) and field.message_type is not None:
            target.value = value
            target.SetInParent()
        elif field.message_type is not None:
            fill(target, value)
        else:
            setattr(message, name, value)


def _fill_map(field: Field, target: Any, value: Mapping[str, Any]) -> None:
    is_message = field.message_type.fields_by_name["value"].message_type is not None
    for key, member in value.items():
        if is_message:
            fill(target[key], member)
        else:
            target[key] = member


def reachable(*roots: MessageType) -> Iterator[MessageType]:
    """Yield every message type that `roots` are made of, themselves first, map entries left out."""
    seen: dict[str, MessageType] = {}
    queue = list(roots)
    while queue:
        descriptor = queue.pop(0)
        if descriptor.full_name in seen:
            continue
        seen[descriptor.full_name] = descriptor
        if not descriptor.GetOptions().map_entry:
            yield descriptor
        queue += [field.message_type for field in descriptor.fields if field.message_type]
