"""Whatever is sent to an A2A route, the answer is an operation or a `RequestFault`."""

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from authz_server.core.arguments import Pointer
from authz_server.core.errors import RequestFault
from authz_server.core.protocols import a2a
from authz_server.core.protocols.a2a_methods import ACTIONS, http_route
from authz_server.core.protocols.operation import Operation
from authz_server.core.request import Headers, HttpRequest, RouteContext

ROUTE = RouteContext.parse({"protocol": "a2a"})
POINTERS = {"text": Pointer.parse("/message/parts/0/text"), "deep": Pointer.parse("/a/0/b")}

NAMES = [
    *("message", "request", "Message", "configuration", "tenant", "metadata", "id", "taskId"),
    *(
        "task_id",
        "TaskId",
        "role",
        "parts",
        "content",
        "kind",
        "text",
        "raw",
        "url",
        "data",
        "file",
    ),
    *("pushNotificationConfig", "push_notification", "taskPushNotificationConfig", "config"),
    *("extensions", "contextId", "messageId", "message_id", "blocking", "parent", "uri", "bytes"),
    *("jsonrpc", "method", "params", "result", "", "\u017fd", "\x00"),
]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
scalars |= st.sampled_from(["2.0", "ROLE_USER", "user", "https://h/", "https://a@b/", "tasks/t1"])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=6), inner, max_size=5)
    ),
    max_leaves=12,
)
METHODS = [*ACTIONS, "SendMessage", "GetTask", "CreateTaskPushNotificationConfig", "Nope", ""]
envelopes = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "method": st.sampled_from(METHODS), "params": values},
    optional={"id": scalars, "extra": scalars},
)
bodies = st.binary(max_size=64) | (values | envelopes).map(lambda value: json.dumps(value).encode())
SEGMENTS = [
    *("tasks", "t1", "t1:cancel", "t1:subscribe", "message:send", "message:stream", "v1", "card"),
    *("pushNotificationConfigs", "extendedAgentCard", ".well-known", "agent-card.json", "a2a"),
    *("..", "", "%3A", "t1%3Acancel", ":", "tasks:", "acme", "%2F", ";x"),
]
paths = st.lists(st.sampled_from(SEGMENTS), max_size=6).map(lambda parts: "/" + "/".join(parts))
paths |= st.text(max_size=24)
queries = st.sampled_from(["", "?x=1", "?tenant=a&tenant=b", "?A2A-Version=1.0", "?id=t2", "?%ff"])
header_values = st.binary(max_size=12) | st.sampled_from([b"1.0", b"0.3", b"application/json"])
headers = st.dictionaries(
    st.sampled_from(["a2a-version", "a2a-extensions", "x-a2a-extensions", "content-encoding"])
    | st.sampled_from(["content-type", "content-length", "x-http-method-override"]),
    st.lists(header_values, min_size=1, max_size=2).map(tuple),
    max_size=4,
)
metadata = st.dictionaries(
    st.just("envoy.filters.http.a2a"),
    st.dictionaries(st.sampled_from(["method", "id", "params"]), values, max_size=3),
)


def outcome(http: HttpRequest, seen: Any) -> Operation | RequestFault:
    try:
        return a2a.operation(http, ROUTE, seen, POINTERS)
    except RequestFault as fault:
        return fault


@given(
    method=st.sampled_from(["POST", "GET", "DELETE", "PUT", "HEAD", "OPTIONS", ""]),
    path=paths,
    query=queries,
    body=bodies,
    fields=headers,
    seen=metadata,
)
@example("POST", "/a2a", "", b'{"jsonrpc":"2.0","method":"GetTask","id":1,"params":{}}', {}, {})
def test_an_operation_or_a_fault(
    method: str, path: str, query: str, body: bytes, fields: dict[str, Any], seen: Any
) -> None:
    # The one type a body needs, or most of the search would end at it.
    typed = {"content-type": (b"application/json",)} | fields
    http = HttpRequest(
        method=method,
        scheme="https",
        host="h.example",
        path=path + query,
        headers=Headers(fields=typed),
        body=body,
        protocol="HTTP/1.1",
    )
    found = outcome(http, seen)
    if isinstance(found, RequestFault):
        assert found.detail.isprintable()
        return
    assert found.act.name in ACTIONS
    assert found.act.read_only is ACTIONS[found.act.name]
    assert found.obj.type == "a2a_agent"
    # What a path names and what a body says are two bindings, never one request.
    assert (found.json_rpc_id is None) == (http_route(method, found.obj.segments) is not None)


@given(params=values, spelling=st.sampled_from(["SendMessage", "message/send"]))
def test_what_is_allowed_to_be_read_has_one_message(params: Any, spelling: str) -> None:
    """A message that is read has a role, parts, and at most one push notification URL."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": spelling, "params": params}).encode()
    http = HttpRequest(
        method="POST",
        scheme="https",
        host="h.example",
        path="/a2a",
        headers=Headers(fields={"content-type": (b"application/json",)}),
        body=body,
        protocol="HTTP/1.1",
    )
    found = outcome(http, {})
    if isinstance(found, Operation):
        assert found.obj.args["role"] in {"user", "agent"}
        assert found.obj.args_sha256 is not None
        text = body.decode()
        assert text.count('"push') <= 1 or "push_url" not in found.obj.args
