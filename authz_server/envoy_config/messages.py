"""Envoy's typed messages as plain values, with every setting that matters written out.

Configuration is built from the classes of `envoy_data_plane`: a field that does not exist, or a
value of the wrong type, fails where it is written (and in mypy before that). Two things those
classes cannot do are done here. They cannot tell `failure_mode_allow=False` from a field that
nobody set: `ALWAYS_WRITTEN` names the fields that are rendered even with protobuf's default. And
they are a few months behind the binary: `BEYOND_STUBS` names the newer fields that we set.
"""

import dataclasses
from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from typing import Final

from betterproto2 import FieldMetadata, Message
from envoy_data_plane.envoy.config.core.v3 import Http1ProtocolOptions, Http2ProtocolOptions
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import BufferSettings, ExtAuthz
from envoy_data_plane.envoy.extensions.filters.http.mcp.v3 import Mcp
from envoy_data_plane.envoy.extensions.filters.network.ext_authz.v3 import (
    ExtAuthz as NetworkExtAuthz,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
)
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any, Struct
from envoy_data_plane.message_pool import default_message_pool

from authz_server.envoy_config.tree import Tree

# SECURITY: people and `envoy lint` see these settings, whatever the default is or becomes.
ALWAYS_WRITTEN: Final[Mapping[type[Message], frozenset[str]]] = {
    ExtAuthz: frozenset({"failure_mode_allow"}),
    NetworkExtAuthz: frozenset({"failure_mode_allow"}),
    BufferSettings: frozenset({"allow_partial_message"}),
    HttpConnectionManager: frozenset({"xff_num_trusted_hops"}),
    Http1ProtocolOptions: frozenset({"accept_http_10"}),
    Http2ProtocolOptions: frozenset({"allow_connect"}),
    Percent: frozenset({"value"}),
}

# Fields of Envoy 1.40 that `envoy_data_plane` 2.2 lacks. A test fails when a newer one has them.
BEYOND_STUBS: Final[Mapping[type[Message], frozenset[str]]] = {
    Mcp: frozenset({"attribute_source"}),
}

_NANOSECONDS_DIGITS: Final = 6  # timedelta counts microseconds


class _Packed(Any):
    """An `Any` that still knows its message, which its bytes cannot hold in full."""

    # Made anew for a class of this module, it would look for the types of the other one here.
    _betterproto_meta = Any._betterproto  # type: ignore[arg-type]
    message: Message
    beyond_stubs: Mapping[str, str]


def packed(message: Message, **beyond_stubs: str) -> Any:
    """Return `message` as the `Any` of an extension, with settings its class does not have yet.

    Raises `KeyError` for a setting that is not in `BEYOND_STUBS`.
    """
    for name in beyond_stubs:
        if name not in BEYOND_STUBS.get(type(message), frozenset()):
            raise KeyError(f"`{name}` of {type(message).__name__} is not in BEYOND_STUBS")
    url = default_message_pool.type_to_url[type(message)]
    result = _Packed(type_url=url, value=bytes(message))
    result.message = message
    result.beyond_stubs = beyond_stubs
    return result


def tree_of(message: Message) -> Tree:
    """Return `message` in protobuf's JSON form, its fields named as in Envoy's documentation."""
    if isinstance(message, Any):
        return _any(message)
    always = ALWAYS_WRITTEN.get(type(message), frozenset())
    tree: Tree = {}
    for field in dataclasses.fields(message):  # type: ignore[arg-type]  # each class is one
        name, meta = field.name, FieldMetadata.get(field)
        value = getattr(message, name)
        # A field with presence is set unless it is None, even to zero or to an empty message.
        present = bool(value) if not (meta.optional or meta.group) else value is not None
        if present or name in always:
            tree[name.rstrip("_")] = _plain(value)
    return tree


def _any(message: Any) -> Tree:
    if isinstance(message, _Packed):
        return {"@type": message.type_url, **tree_of(message.message), **message.beyond_stubs}
    inner = message.unpack()  # one that was parsed
    assert inner is not None, "an extension has a type"
    return {"@type": message.type_url, **tree_of(inner)}


def _plain(value: object) -> object:
    match value:
        case Struct():
            return value.to_dict()
        case Message():
            return tree_of(value)
        case Enum():
            return getattr(value, "proto_name", None) or value.name
        case timedelta():
            return _duration(value)
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case bool() | int() | float() | str():
            return value
        case _:
            raise TypeError(f"no field that we set is of type {type(value).__name__}")


def _duration(value: timedelta) -> str:
    """Return a protobuf `Duration` in its JSON form: seconds, with as many digits as needed."""
    text = f"{value / timedelta(seconds=1):.{_NANOSECONDS_DIGITS}f}"
    return text.rstrip("0").rstrip(".") + "s"
