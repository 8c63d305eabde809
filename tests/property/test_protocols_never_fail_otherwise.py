"""Whatever a body and its headers hold, a protocol reads an operation or names a fault."""

import json
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from authz_server.core.arguments import Pointer
from authz_server.core.attributes import AMBIGUOUS
from authz_server.core.errors import RequestFault
from authz_server.core.protocols import http, mcp
from authz_server.core.protocols.mcp_methods import METHODS, REVISIONS
from authz_server.core.request import Headers, HttpRequest, RouteContext
from authz_server.policy.runtime import EvaluationError, contains, read, read_list

MCP = RouteContext.parse({"protocol": "mcp"})
REST = RouteContext.parse({"body": "whole"})
NAMES = st.sampled_from(
    [
        *("name", "Name", "uri", "arguments", "Arguments", "taskId", "_meta", "ref", "type", "a"),
        *("jsonrpc", "id", "method", "params", "result", "error", "notifications", "A", "0"),
        "io.modelcontextprotocol/protocolVersion",
    ]
)
TEXTS = st.sampled_from(
    [*METHODS, *REVISIONS, "2.0", "", "crm://1", "ref/prompt", "tools/Call", "\ud800", "a\nb"]
) | st.text(max_size=5)
LEAVES = TEXTS | st.none() | st.booleans() | st.integers() | st.floats()
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=15,
)
MESSAGES = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0") | LEAVES},
    optional={
        "id": st.integers(0, 9) | TEXTS | LEAVES,
        "method": st.sampled_from([*METHODS]) | LEAVES,
        "params": st.dictionaries(NAMES, VALUES, max_size=5) | VALUES,
        "result": VALUES,
        "error": VALUES,
    },
)
BODIES = (
    (MESSAGES | VALUES).map(lambda value: json.dumps(value).encode("utf-8", "replace"))
    | st.binary(max_size=40)
    | st.just(b"")
)
HEADER_VALUES = (TEXTS | st.just("=?base64?YQ==?=") | st.text(max_size=6)).map(
    lambda text: text.encode("utf-8", "replace")
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id", "mcp-param-a"),
            *("mcp-param-", "content-encoding", "content-length", "accept", "x-original-url"),
        ]
    ),
    st.lists(HEADER_VALUES, min_size=1, max_size=2).map(tuple),
    max_size=4,
)
MEDIA_TYPES = st.sampled_from([b"application/json", b"application/x+json", b"text/plain", b"\xff"])
SEEN = st.dictionaries(st.sampled_from(["method", "id", "params"]), VALUES, max_size=3)
POINTERS = st.dictionaries(
    st.sampled_from(["a", "b"]), st.sampled_from(["", "/a", "/a/0", "/a/b/c", "/arguments/0/a"])
)


def request(method: str, body: bytes, fields: Mapping[str, tuple[bytes, ...]]) -> HttpRequest:
    return HttpRequest(
        method=method,
        scheme="https",
        host="crm.example",
        path="/mcp",
        headers=Headers(fields=fields),
        body=body,
        protocol="HTTP/2",
    )


@given(
    st.sampled_from(["POST", "POST", "POST", "GET", "DELETE", "PUT"]),
    BODIES,
    HEADERS,
    MEDIA_TYPES,
    SEEN,
    POINTERS,
)
def test_mcp(
    method: str,
    body: bytes,
    headers: dict[str, tuple[bytes, ...]],
    media_type: bytes,
    seen: dict[str, object],
    pointers: dict[str, str],
) -> None:
    sent = request(method, body, {"content-type": (media_type,), **headers})
    declaration = {name: Pointer.parse(pointer) for name, pointer in pointers.items()}
    try:
        operation = mcp.operation(sent, MCP, {"envoy.filters.http.mcp": seen}, declaration)
    except RequestFault:
        return
    assert operation.act.name in {*METHODS, "GET", "DELETE", "response"}
    for name in ("a", "A", "name", *operation.obj.args):
        assert_readable(operation.obj.args, name)


@given(st.sampled_from(["POST", "PATCH", "GET"]), BODIES, HEADERS, MEDIA_TYPES, POINTERS)
def test_rest(
    method: str,
    body: bytes,
    headers: dict[str, tuple[bytes, ...]],
    media_type: bytes,
    pointers: dict[str, str],
) -> None:
    sent = request(method, body, {"content-type": (media_type,), **headers})
    declaration = {name: Pointer.parse(pointer) for name, pointer in pointers.items()}
    try:
        operation = http.operation(sent, REST, declaration)
    except RequestFault:
        return
    assert operation.obj.args.keys() == declaration.keys()
    for name in declaration:
        assert_readable(operation.obj.args, name)


def assert_readable(args: Mapping[str, object], name: str) -> None:
    """A rule reads a scalar, searches a list, or fails with the one error that denies."""
    value = args.get(name)
    assert value is None or value is AMBIGUOUS or isinstance(value, str | int | float | tuple)
    try:
        assert not isinstance(read(args, name), tuple)
    except EvaluationError:
        assert value is AMBIGUOUS or isinstance(value, tuple)
    try:
        assert contains(read_list(args, name), "x") in {True, False}
    except EvaluationError:
        assert value is not None
        assert not isinstance(value, tuple)
