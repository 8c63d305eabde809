"""MCP revision by revision: what each has, what its headers must say, what of it a rule reads."""

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from mcp_types import methods as sdk

from authz_server.core.arguments import Pointer
from authz_server.core.attributes import AMBIGUOUS
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.protocols import mcp
from authz_server.core.protocols.mcp_methods import METHODS, REVISIONS, STATELESS
from authz_server.core.protocols.operation import Operation
from authz_server.core.request import Headers, HttpRequest, RouteContext

ROUTE = RouteContext.parse({"protocol": "mcp"})
FILTER = "envoy.filters.http.mcp"
META = {
    "io.modelcontextprotocol/protocolVersion": STATELESS,
    "io.modelcontextprotocol/clientCapabilities": {},
}
CALL: dict[str, object] = {
    "name": "crm_export",
    "arguments": {"region": "eu", "limit": 42, "dry": True, "rate": 1.5},
}
Line = str | tuple[str, ...]


def post(
    method: str | None,
    params: object = ...,
    *,
    headers: Mapping[str, Line] | None = None,
    identifier: object = 7,
    **members: object,
) -> HttpRequest:
    message: dict[str, object] = {"jsonrpc": "2.0", "id": identifier, "method": method}
    message |= {"params": params} | members
    body = json.dumps({k: v for k, v in message.items() if v is not None and v is not ...})
    lines = {"content-type": "application/json", **(headers or {})}
    fields = {
        name: tuple(v.encode() for v in (value if isinstance(value, tuple) else (value,)))
        for name, value in lines.items()
    }
    return HttpRequest(
        method="POST",
        scheme="https",
        host="crm.example",
        path="/mcp",
        headers=Headers(fields=fields),
        body=body.encode(),
    )


def current(
    method: str, params: Mapping[str, object], *, without: str = "", **changed: str
) -> HttpRequest:
    """Return a complete request of the current revision, but for one header or some changed."""
    name = params.get("name") or params.get("uri")
    headers = {"mcp-protocol-version": STATELESS, "mcp-method": method}
    if isinstance(name, str):
        headers["mcp-name"] = name
    headers |= {key.replace("_", "-"): value for key, value in changed.items()}
    headers.pop(without, None)
    return post(method, {"_meta": META, **params}, headers=headers)


def read(
    request: HttpRequest,
    arguments: Mapping[str, str] | None = None,
    seen: Mapping[str, object] | None = None,
) -> Operation:
    declaration = {name: Pointer.parse(pointer) for name, pointer in (arguments or {}).items()}
    return mcp.operation(request, ROUTE, {} if seen is None else {FILTER: seen}, declaration)


def fault(request: HttpRequest, seen: Mapping[str, object] | None = None) -> RequestFault:
    with pytest.raises(RequestFault) as caught:
        read(request, seen=seen)
    return caught.value


# --- methods ---------------------------------------------------------------------------------

# `params` that a method needs to be read at all.
PARAMS: Mapping[str, Mapping[str, object]] = {
    "tools/call": CALL,
    "prompts/get": {"name": "brief"},
    "resources/read": {"uri": "crm://1"},
    "resources/subscribe": {"uri": "crm://1"},
    "resources/unsubscribe": {"uri": "crm://1"},
    "completion/complete": {"ref": {"type": "ref/prompt", "name": "brief"}},
    **{method: {"taskId": "t-1"} for method in METHODS if METHODS[method].member == "taskId"},
}
# The SDK leaves tasks out of its tables (`tasks/* deliberately absent`).
OF_THE_SDK = {
    key
    for table in (sdk.CLIENT_REQUESTS, sdk.CLIENT_NOTIFICATIONS)
    for key in table
    if "task" not in key[0]
}
OURS = {
    (name, revision)
    for name, method in METHODS.items()
    for revision in REVISIONS
    if method.exists_in(revision) and "task" not in name
}


def test_the_official_sdk_knows_the_same_methods_of_each_revision() -> None:
    assert OURS == OF_THE_SDK


@pytest.mark.parametrize("revision", sorted(REVISIONS))
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_is_read_in_the_revisions_that_have_it(method: str, revision: str) -> None:
    params = PARAMS.get(method, {})
    if revision == STATELESS:
        request = current(method, params)
    else:
        request = post(method, params, headers={"mcp-protocol-version": revision})
    if METHODS[method].exists_in(revision):
        assert read(request).act.name == method
    else:
        assert fault(request).reason is Reason.UNSUPPORTED_METHOD


@pytest.mark.parametrize("method", ["server/discover", "subscriptions/listen", "tasks/update"])
def test_what_only_the_current_revision_has_needs_its_headers(method: str) -> None:
    request = post(method, PARAMS.get(method, {"_meta": META}))
    assert fault(request).reason is Reason.UNSUPPORTED_METHOD


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_the_current_revision_has_no_sessions(method: str) -> None:
    def session(revision: str) -> HttpRequest:
        return HttpRequest(
            method=method,
            scheme="https",
            host="crm.example",
            path="/mcp",
            headers=Headers(fields={"mcp-protocol-version": (revision.encode(),)}),
        )

    assert read(session("2025-11-25")).act.name == method
    assert fault(session(STATELESS)).reason is Reason.UNSUPPORTED_METHOD


# --- headers ---------------------------------------------------------------------------------


def test_a_complete_request_of_the_current_revision() -> None:
    obj = read(current("tools/call", CALL)).obj
    assert (obj.type, obj.tool, dict(obj.args)) == ("mcp_tool", "crm_export", CALL["arguments"])
    read(current("tools/list", {}))
    read(current("resources/read", {"uri": "crm://1"}))


@pytest.mark.parametrize("header", ["mcp-method", "mcp-name"])
def test_the_current_revision_requires_its_headers(header: str) -> None:
    missing = current("tools/call", CALL, without=header)
    assert fault(missing).reason is Reason.HEADER_BODY_MISMATCH


@pytest.mark.parametrize("key", list(META))
def test_the_current_revision_requires_its_meta(key: str) -> None:
    headers = {"mcp-protocol-version": STATELESS, "mcp-method": "tools/list"}
    meta = {name: value for name, value in META.items() if name != key}
    request = post("tools/list", {"_meta": meta}, headers=headers)
    assert fault(request).reason is Reason.HEADER_BODY_MISMATCH
    notification = post(
        "notifications/cancelled",
        {},
        headers=headers | {"mcp-method": "notifications/cancelled"},
        identifier=None,
    )
    assert read(notification).act.name == "notifications/cancelled"


def test_the_task_in_a_header_is_that_of_the_body() -> None:
    assert read(current("tasks/get", {"taskId": "t-1"}, mcp_name="t-1")).obj.uri == "t-1"
    other = current("tasks/get", {"taskId": "t-1"}, mcp_name="t-2")
    assert fault(other).reason is Reason.HEADER_BODY_MISMATCH


def encoded(text: str) -> str:
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


@pytest.mark.parametrize("revision", [None, "2025-11-25", STATELESS])
@pytest.mark.parametrize(
    ("header", "value", "agrees"),
    [
        ("region", "eu", True),
        ("Region", encoded("eu"), True),
        ("limit", "42", True),
        ("limit", "42.0", True),
        ("limit", "042", True),
        ("dry", "true", True),
        ("rate", "1.5", True),
        ("region", "us", False),
        ("region", "", False),
        ("region", "=?base64?ZXW=?=", False),  # the same octets, spelt with trailing bits
        ("region", "=?base64??=", False),
        ("limit", "43", False),
        ("limit", "4.2e1", False),
        ("limit", "42x", False),
        ("limit", "9" * 100, False),
        ("dry", "True", False),
        ("dry", "1", False),
        ("rate", "1.50000000000000000001", False),
        ("absent", "x", False),
        ("absent", "null", False),
    ],
)
def test_a_parameter_header_mirrors_its_argument(
    header: str, value: str, agrees: bool, revision: str | None
) -> None:
    name = f"mcp-param-{header.lower()}"
    if revision == STATELESS:
        request = current("tools/call", CALL, **{name.replace("-", "_"): value})
    else:
        version = {"mcp-protocol-version": revision} if revision else {}
        request = post("tools/call", CALL, headers={name: value, **version})
    if agrees:
        assert read(request).obj.tool == "crm_export"
    else:
        assert fault(request).reason is Reason.HEADER_BODY_MISMATCH


def test_a_parameter_header_of_another_name_is_declared() -> None:
    params = {"name": "t", "arguments": {"target": {"region": "eu"}}}
    request = post("tools/call", params, headers={"mcp-param-region": "eu"})
    assert fault(request).reason is Reason.HEADER_BODY_MISMATCH
    assert read(request, {"Region": "/target/region"}).obj.args["Region"] == "eu"


@pytest.mark.parametrize(
    "arguments", [{"region": "eu", "Region": "us"}, {"region": ["eu"]}, {"region": None}, {}]
)
def test_a_parameter_header_mirrors_nothing_doubtful(arguments: dict[str, object]) -> None:
    params = {"name": "t", "arguments": arguments}
    request = post("tools/call", params, headers={"mcp-param-region": "eu"})
    assert fault(request).reason is Reason.HEADER_BODY_MISMATCH


def test_a_parameter_header_twice() -> None:
    request = post("tools/call", CALL, headers={"mcp-param-region": ("eu", "us")})
    assert fault(request).reason is Reason.DUPLICATE_HEADER


@pytest.mark.parametrize("session", ["a b", "", "a" * 1025, "\u00e9"])
def test_a_session_id_that_is_none(session: str) -> None:
    request = post("tools/list", {}, headers={"mcp-session-id": session})
    assert fault(request).reason is Reason.MALFORMED_REQUEST


def test_no_accept_header_is_no_harm() -> None:
    assert read(post("tools/list", {}, headers={"mcp-session-id": "0193-abc"}))


# --- Envoy's filter --------------------------------------------------------------------------


def test_what_envoy_reads_alike_is_alike() -> None:
    seen = {"jsonrpc": "2.0", "method": "tools/call", "id": 7.0, "params": {"name": "crm_export"}}
    assert read(post("tools/call", CALL), seen=seen)
    answer = post(None, identifier="s1", result={})
    assert read(answer, seen={"method": "__jsonrpc_response", "id": "s1"})
    assert read(post("tools/call", CALL), seen={"passthrough_reason": "x"})


@pytest.mark.parametrize(
    "seen",
    [
        {"method": "tools/list"},
        {"method": "__jsonrpc_response"},
        {"method": "tools/call", "id": 8.0},
        {"method": "tools/call", "id": "7"},
        {"method": "tools/call", "params": {"name": "crm_search"}},
    ],
)
def test_what_envoy_reads_otherwise_is_denied(seen: dict[str, object]) -> None:
    assert fault(post("tools/call", CALL), seen).reason is Reason.HEADER_BODY_MISMATCH


# --- objects ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ({"type": "ref/prompt", "name": "brief"}, ("mcp_prompt", "brief", None)),
        ({"type": "ref/resource", "uri": "crm://{id}"}, ("mcp_resource", None, "crm://{id}")),
    ],
)
def test_a_completion_is_of_its_prompt_or_resource(
    reference: dict[str, str], expected: tuple[str, str | None, str | None]
) -> None:
    obj = read(post("completion/complete", {"ref": reference})).obj
    assert (obj.type, obj.tool, obj.uri) == expected


@pytest.mark.parametrize("reference", [None, {}, {"type": "ref/tool"}, {"type": "ref/prompt"}])
def test_a_completion_of_nothing(reference: object) -> None:
    assert fault(post("completion/complete", {"ref": reference})).reason is Reason.MALFORMED_BODY


def test_a_subscription_shows_what_is_listened_to() -> None:
    wanted = {"toolsListChanged": True, "resourceSubscriptions": ["crm://1", "crm://2"]}
    args = read(current("subscriptions/listen", {"notifications": wanted})).obj.args
    assert args["resourceSubscriptions"] == ("crm://1", "crm://2")
    assert args["toolsListChanged"] is True


@pytest.mark.parametrize(
    "uri",
    [
        "crm://1",
        "crm://Owner/Repo",
        "file:///a/b%20c?x=1#y",
        "https://data.example/v1/a%C3%BC",
        "urn:isbn:0451450523",
        "note://internal/a..b",
    ],
)
def test_a_resource_has_one_spelling(uri: str) -> None:
    assert read(post("resources/read", {"uri": uri})).obj.uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        "CRM://1",
        "crm",
        "/etc/passwd",
        "crm:",
        "file:///a/../b",
        "file:///a/./b",
        "file:///a/..",
        "file:///a//b",
        "file:///a/%2e%2e/b",
        "file:///a%2Fb",
        "file:///a%5Cb",
        "file:///%41",
        "file:///a%2fb",
        "file:///a%zz",
        "file:///a%00",
        "file:///a%2541",
        "file:///a b",
        "file:///a\\b",
        "file:///\u00fc",
        "https://DATA.example/a",
        "https://data%2Eexample/a",
        "https://a@b@c/d",
    ],
)
def test_a_resource_with_another_spelling(uri: str) -> None:
    assert fault(post("resources/read", {"uri": uri})).reason is Reason.NON_CANONICAL_PATH


def test_a_resource_that_is_too_long() -> None:
    request = post("resources/read", {"uri": "crm://" + "a" * 4096})
    assert fault(request).reason is Reason.OVERSIZE


# --- arguments -------------------------------------------------------------------------------


def test_declared_arguments_lie_over_those_of_the_top() -> None:
    arguments = {"amount": "low", "order": {"amount": 7, "tags": ["a"]}, "deep": {"x": [{}]}}
    request = post("tools/call", {"name": "t", "arguments": arguments})
    declared = {"amount": "/order/amount", "tags": "/order/tags", "deep": "/deep/x"}
    args = read(request, declared).obj.args
    assert (args["amount"], args["tags"], args["deep"]) == (7, ("a",), AMBIGUOUS)
    assert read(request).obj.args["amount"] == "low"
    assert read(post("tools/list", {}), declared).obj.args["amount"] is None


def test_what_an_approval_covers_does_not_depend_on_what_is_declared() -> None:
    """Approve A, send B: an argument that no rule reads still counts."""

    def digest(arguments: dict[str, Any]) -> str | None:
        request = post("tools/call", {"name": "t", "arguments": arguments})
        return read(request, {"amount": "/amount"}).obj.args_sha256

    approved = {"amount": 5, "note": "to alice"}
    assert digest(approved) == digest(dict(reversed(approved.items())))
    assert digest(approved) != digest({**approved, "note": "to mallory"})
    assert digest(approved) != digest({**approved, "more": 1})


# --- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "id_json"),
    [
        (post("tools/drop", {}), "7"),
        (post("tools/call", {"name": ""}, identifier="a-1"), '"a-1"'),
        (post("tools/call", CALL, headers={"mcp-name": "other"}), "7"),
        (post("tools/call", [1]), "7"),
        (post("tools/call", CALL, identifier=1.5), None),
        (post("tools/call", CALL, result={}), "7"),
    ],
)
def test_a_denial_knows_the_id_as_soon_as_it_was_read(
    request_: HttpRequest, id_json: str | None
) -> None:
    assert fault(request_).json_rpc_id == id_json


@pytest.mark.parametrize(
    "request_",
    [
        post(None, identifier=None, result={}),
        post(None, result={}, error={"code": 1, "message": "x"}),
        post(None, {}, result={}),
        post(None),
    ],
)
def test_an_answer_that_is_none(request_: HttpRequest) -> None:
    assert fault(request_).reason is Reason.MALFORMED_BODY


# --- the query -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_a_query_is_read_and_covered_by_an_approval(method: str) -> None:
    """Servers choose by it: one approval must not do for `?tenant=a` and `?tenant=b`."""

    def asked(path: str) -> Operation:
        if method == "POST":
            return read(replace(post("tools/call", CALL), path=path))
        bare = Headers(fields={})
        return read(replace(post("ping"), method=method, path=path, headers=bare, body=b""))

    without, a, b = (asked(f"/mcp{query}").obj for query in ("", "?tenant=a", "?tenant=b"))
    assert (dict(without.query), dict(a.query)) == ({}, {"tenant": "a"})
    assert asked("/mcp?tenant=a&tenant=b").obj.query["tenant"] is AMBIGUOUS
    digests = {without.args_sha256, a.args_sha256, b.args_sha256}
    assert len(digests) == 3
    assert asked("/mcp?").obj.args_sha256 == without.args_sha256
    with pytest.raises(RequestFault) as caught:
        asked("/mcp?_method=PATCH")
    assert caught.value.reason is Reason.MALFORMED_REQUEST
