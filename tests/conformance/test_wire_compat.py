"""Our definitions against an independent implementation of Envoy's: `envoy_data_plane`.

It is generated from Envoy's own files by another generator with another runtime (betterproto), so
a number, a type or a name that is wrong on our side shows here.
"""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

import envoy
from authz_server._pb.envoy.service.auth.v3 import external_auth_pb2
from tests.harness.messages import (
    Field,
    MessageType,
    Spec,
    fill,
    is_map,
    reachable,
    specs,
    specs_of_field,
)

with warnings.catch_warnings():
    # Its generated classes use a pydantic form that is on its way out.
    warnings.simplefilter("ignore", DeprecationWarning)
    from envoy_data_plane.envoy.service.auth import v3 as their_auth
    from envoy_data_plane.message_pool import default_message_pool

# Fields that Envoy deprecates are still on the wire.
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")

ROOT = Path(__file__).parents[2]

CHECK_REQUEST = external_auth_pb2.CheckRequest.DESCRIPTOR
CHECK_RESPONSE = external_auth_pb2.CheckResponse.DESCRIPTOR
OURS = [
    descriptor
    for descriptor in reachable(CHECK_REQUEST, CHECK_RESPONSE)
    if descriptor.file.package.startswith("envoy.")
]
FIELDS = [field for descriptor in OURS for field in descriptor.fields]
TYPE_NAMES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_ENUM: "enum",
    FieldDescriptor.TYPE_MESSAGE: "message",
}

# What one field is: name, number, type, cardinality, oneof. Equal tuples are equal on the wire.
Shape = tuple[str, int, str, bool, str | None]


def their_class(descriptor: MessageType) -> Any:
    return default_message_pool.url_to_type[f"type.googleapis.com/{descriptor.full_name}"]


def ours(descriptor: MessageType, spec: Spec) -> Any:
    message = message_factory.GetMessageClass(descriptor)()
    fill(message, spec)
    return message


def theirs(descriptor: MessageType, spec: Spec) -> Any:
    return their_class(descriptor)(
        **{name: _their_value(descriptor.fields_by_name[name], v) for name, v in spec.items()}
    )


def _their_value(field: Field, value: Any) -> Any:
    if is_map(field):
        member = field.message_type.fields_by_name["value"]
        return {key: _their_single(member, item) for key, item in value.items()}
    if field.is_repeated:
        return [_their_single(field, item) for item in value]
    return _their_single(field, value)


def _their_single(field: Field, value: Any) -> Any:
    if field.enum_type is not None:
        return their_class(field.containing_type)._betterproto.cls_by_field[field.name](value)
    return theirs(field.message_type, value) if isinstance(value, dict) else value


def our_shape(field: Field) -> Shape:
    oneof = field.containing_oneof.name if field.containing_oneof else None
    kind = "map" if is_map(field) else TYPE_NAMES[field.type]
    return (field.name, field.number, kind, field.is_repeated and not is_map(field), oneof)


def their_shapes(descriptor: MessageType) -> set[Shape]:
    fields = their_class(descriptor)._betterproto.meta_by_field_name.items()
    return {
        (name, meta.number, meta.proto_type, meta.repeated, meta.group) for name, meta in fields
    }


@pytest.mark.parametrize("descriptor", OURS, ids=lambda d: str(d.full_name))
def test_a_message_has_exactly_the_fields_that_envoy_defines(descriptor: MessageType) -> None:
    assert {our_shape(field) for field in descriptor.fields} == their_shapes(descriptor)


@pytest.mark.parametrize(
    "field", [f for f in FIELDS if f.enum_type is not None], ids=lambda f: str(f.full_name)
)
def test_an_enum_has_exactly_the_values_that_envoy_defines(field: Field) -> None:
    enum = their_class(field.containing_type)._betterproto.cls_by_field[field.name]
    assert {(value.name, value.number) for value in field.enum_type.values} == {
        (value.name, value.value) for value in enum
    }


def test_the_rpc_has_the_path_that_envoy_calls() -> None:
    service = external_auth_pb2.DESCRIPTOR.services_by_name["Authorization"]
    paths = [f"/{service.full_name}/{method.name}" for method in service.methods]
    assert paths == list(their_auth.AuthorizationBase().__mapping__())


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: str(f.full_name))
@settings(max_examples=20)
@given(data=st.data())
def test_every_field_crosses_both_ways(field: Field, data: st.DataObject) -> None:
    _assert_same_on_the_wire(field.containing_type, data.draw(specs_of_field(field)))


@settings(max_examples=50)
@given(specs(CHECK_REQUEST))
def test_every_request_crosses_both_ways(spec: Spec) -> None:
    _assert_same_on_the_wire(CHECK_REQUEST, spec)


@settings(max_examples=50)
@given(specs(CHECK_RESPONSE))
def test_every_response_crosses_both_ways(spec: Spec) -> None:
    _assert_same_on_the_wire(CHECK_RESPONSE, spec)


def _assert_same_on_the_wire(descriptor: MessageType, spec: Spec) -> None:
    """Both sides build `spec` on their own, and each reads the other's bytes as its own message."""
    mine, other = ours(descriptor, spec), theirs(descriptor, spec)
    assert type(mine).FromString(bytes(other)) == mine
    assert their_class(descriptor).parse(mine.SerializeToString()) == other


def test_a_field_we_do_not_define_is_ignored() -> None:
    later = b"\xc2\x3e\x02hi"  # field 1000, two bytes: what another Envoy may add
    request = external_auth_pb2.CheckRequest.FromString(b"\x0a" + bytes([len(later)]) + later)
    assert request.HasField("attributes")
    assert not request.attributes.ListFields()


def test_files_are_registered_under_envoys_names() -> None:
    """Reflection serves these names; nothing of this machine may be in them."""
    names = {descriptor.file.name for descriptor in OURS}
    assert names == {
        "envoy/config/core/v3/address.proto",
        "envoy/config/core/v3/base.proto",
        "envoy/service/auth/v3/attribute_context.proto",
        "envoy/service/auth/v3/external_auth.proto",
        "envoy/type/v3/http_status.proto",
    }


def test_the_committed_modules_are_current(tmp_path: Path) -> None:
    outcome = subprocess.run(
        [sys.executable, ROOT / "protos" / "generate.py", "--check"],
        cwd=tmp_path,  # whatever the working directory is
        capture_output=True,
        text=True,
        check=False,
    )
    assert (outcome.returncode, outcome.stdout) == (0, "")


def test_the_top_level_package_envoy_stays_that_of_the_binary() -> None:
    assert Path(str(envoy.__file__)).name == "__init__.py"
    assert not any(
        (folder / "__init__.py").exists() for folder in (ROOT / "envoy", ROOT / "protos")
    )
