"""What an A2A request asks for, in four spellings, and what two readers could read differently."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pytest
import rfc8785
from a2a.compat.v0_3 import a2a_v0_3_pb2, proto_utils
from a2a.server.routes import create_rest_routes
from google.protobuf import json_format
from starlette.routing import Route

from authz_server.core.arguments import Pointer
from authz_server.core.attributes import AMBIGUOUS
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.protocols import a2a
from authz_server.core.protocols.a2a_methods import ACTIONS, CARD_ACTION
from authz_server.core.protocols.operation import Operation
from authz_server.core.request import Headers, HttpRequest, RouteContext

ROUTE = RouteContext.parse({"protocol": "a2a", "resource": "analyst", "label.tier": "gold"})
JSON_TYPE = b"application/json"

ASKED_1_0 = {"messageId": "m1", "role": "ROLE_USER", "parts": [{"text": "why"}]}
ASKED_0_3 = {
    "kind": "message",
    "messageId": "m1",
    "role": "user",
    "parts": [{"kind": "text", "text": "why"}],
}
ASKED_PROTO_0_3 = {"message_id": "m1", "role": "ROLE_USER", "content": [{"text": "why"}]}


def request(
    method: str = "POST",
    path: str = "/a2a",
    body: object = ...,
    *,
    media_type: bytes = JSON_TYPE,
    protocol: str = "HTTP/1.1",
    **headers: bytes,
) -> HttpRequest:
    raw = body if isinstance(body, bytes) else b"" if body is ... else json.dumps(body).encode()
    fields = {name.replace("_", "-"): (value,) for name, value in headers.items()}
    if raw:
        fields.setdefault("content-type", (media_type,))
    return HttpRequest(
        method=method,
        scheme="https",
        host="Analyst.example:443",
        path=path,
        headers=Headers(fields=fields),
        body=raw,
        protocol=protocol,
    )


def rpc(method: str, params: object, **members: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": "r1", "method": method, "params": params, **members}


def read(http: HttpRequest, **declared: str) -> Operation:
    pointers = {name: Pointer.parse(text) for name, text in declared.items()}
    return a2a.operation(http, ROUTE, {}, pointers)


def fault_of(http: HttpRequest, metadata: Mapping[str, Any] | None = None) -> RequestFault:
    with pytest.raises(RequestFault) as caught:
        a2a.operation(http, ROUTE, metadata or {})
    return caught.value


def reason_of(http: HttpRequest) -> Reason:
    return fault_of(http).reason


# --- one action for every spelling ------------------------------------------------------------


@pytest.mark.parametrize(
    "http",
    [
        request(body=rpc("SendMessage", {"message": ASKED_1_0}), a2a_version=b"1.0"),
        request(body=rpc("message/send", {"message": ASKED_0_3}), a2a_version=b"0.3"),
        request(body=rpc("message/send", {"message": ASKED_0_3})),
        request("POST", "/message:send", {"message": ASKED_1_0}, a2a_version=b"1.0"),
        request("POST", "/v1/message:send", {"request": ASKED_PROTO_0_3}, a2a_version=b"0.3"),
        request("POST", "/v1/message:send", {"message": ASKED_0_3}),
        request(
            "POST",
            "/message:send",
            {"message": ASKED_1_0},
            media_type=b"application/a2a+json; charset=utf-8",
            a2a_version=b"1.0.2",
        ),
    ],
    ids=[
        "1.0 rpc",
        "0.3 rpc",
        "0.3 rpc unsaid",
        "1.0 http",
        "0.3 http",
        "0.3 http json",
        "a2a+json",
    ],
)
def test_a_message(http: HttpRequest) -> None:
    operation = read(http, question="/message/parts/0/text")
    assert (operation.act.protocol, operation.act.name) == ("a2a", "message/send")
    assert not operation.act.read_only
    obj = operation.obj
    assert (obj.type, obj.host, obj.resource) == ("a2a_agent", "analyst.example", "analyst")
    assert obj.labels == {"tier": "gold"}
    assert obj.args["part_kinds"] == ("text",)
    assert obj.args["role"] == "user"
    assert obj.args["question"] == "why"
    for absent in ("push_url", "push_host", "tenant", "task_id", "context_id", "extensions"):
        assert obj.args.get(absent) is None
    assert obj.uri is None


METHODS_1_0 = {
    "SendMessage": "message/send",
    "SendStreamingMessage": "message/stream",
    "GetTask": "tasks/get",
    "ListTasks": "tasks/list",
    "CancelTask": "tasks/cancel",
    "SubscribeToTask": "tasks/resubscribe",
    "CreateTaskPushNotificationConfig": "tasks/pushNotificationConfig/set",
    "GetTaskPushNotificationConfig": "tasks/pushNotificationConfig/get",
    "ListTaskPushNotificationConfigs": "tasks/pushNotificationConfig/list",
    "DeleteTaskPushNotificationConfig": "tasks/pushNotificationConfig/delete",
    "GetExtendedAgentCard": "agent/getAuthenticatedExtendedCard",
}


def params_of(action: str, *, is_1_0: bool) -> dict[str, object]:
    if action.startswith("message/"):
        return {"message": ASKED_1_0 if is_1_0 else ASKED_0_3}
    if action == "tasks/pushNotificationConfig/set":
        url = "https://hook.example/"
        return {"taskId": "t1"} | (
            {"url": url} if is_1_0 else {"pushNotificationConfig": {"url": url}}
        )
    if action.startswith("tasks/pushNotificationConfig/") and is_1_0:
        return {"taskId": "t1", "id": "c1"}
    return {"id": "t1"} if action.startswith("tasks/") and action != "tasks/list" else {}


@pytest.mark.parametrize(("method", "action"), METHODS_1_0.items())
def test_json_rpc_methods(method: str, action: str) -> None:
    """The official SDK has exactly these (`METHOD_TO_MODEL` of both its dispatchers)."""
    new = read(request(body=rpc(method, params_of(action, is_1_0=True))))
    old = read(request(body=rpc(action, params_of(action, is_1_0=False))))
    assert new.act == old.act
    assert new.act.name == action
    assert new.act.read_only is ACTIONS[action]
    assert new.obj.uri == old.obj.uri == ("t1" if "tasks/" in action[:6] else None) or (
        action == "tasks/list"
    )
    assert (new.obj.args["version"], old.obj.args["version"]) == ("1.0", "0.3")


def test_the_methods_are_those_of_the_sdk() -> None:
    from a2a.compat.v0_3.jsonrpc_adapter import JSONRPC03Adapter
    from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher

    assert set(METHODS_1_0) == set(JsonRpcDispatcher.METHOD_TO_MODEL)
    assert set(METHODS_1_0.values()) - {"tasks/list"} == set(JSONRPC03Adapter.METHOD_TO_MODEL)
    assert set(METHODS_1_0.values()) | {CARD_ACTION} == set(ACTIONS)


@pytest.mark.parametrize(
    ("method", "path", "action", "task"),
    [
        ("GET", "/.well-known/agent-card.json", "agent/getCard", None),
        ("GET", "/base/.well-known/agent-card.json", "agent/getCard", None),
        ("GET", "/extendedAgentCard", "agent/getAuthenticatedExtendedCard", None),
        ("GET", "/v1/card", "agent/getAuthenticatedExtendedCard", None),
        ("GET", "/tasks", "tasks/list", None),
        ("GET", "/tasks?contextId=c&pageSize=5", "tasks/list", None),
        ("GET", "/tasks/t1", "tasks/get", "t1"),
        ("GET", "/v1/tasks/t1?historyLength=2", "tasks/get", "t1"),
        ("GET", "/tasks/t1/", "tasks/get", "t1"),
        ("GET", "/tasks/%741", "tasks/get", "t1"),
        ("POST", "/tasks/t1:cancel", "tasks/cancel", "t1"),
        ("GET", "/tasks/t1:subscribe", "tasks/resubscribe", "t1"),
        ("POST", "/v1/tasks/t1:subscribe", "tasks/resubscribe", "t1"),
        ("GET", "/tasks/t1/pushNotificationConfigs", "tasks/pushNotificationConfig/list", "t1"),
        ("GET", "/tasks/t1/pushNotificationConfigs/c", "tasks/pushNotificationConfig/get", "t1"),
        (
            "DELETE",
            "/tasks/t1/pushNotificationConfigs/c",
            "tasks/pushNotificationConfig/delete",
            "t1",
        ),
        ("GET", "/acme/tasks/t1", "tasks/get", "t1"),
    ],
)
def test_paths(method: str, path: str, action: str, task: str | None) -> None:
    operation = read(request(method, path, a2a_version=b"1.0"))
    assert (operation.act.name, operation.obj.uri) == (action, task)
    assert operation.act.read_only is ACTIONS[action]
    assert operation.json_rpc_id is None
    assert operation.arguments_seen


def test_the_paths_are_those_of_the_sdk() -> None:
    """Every route that the official server mounts is read as what it does."""
    from a2a.compat.v0_3.rest_adapter import REST03Adapter

    handler: Any = object()
    routes = [
        (route.path, method)
        for route in create_rest_routes(handler, enable_v0_3_compat=True)
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    ]
    assert len(routes) > len(REST03Adapter(handler).routes()) > 8
    for path, method in routes:
        concrete = path.replace("{id}", "t1").replace("{push_id}", "c1")
        body: object = ...
        if "message:" in path:
            body = {"message": ASKED_1_0}
        elif method == "POST" and path.endswith("Configs"):
            body = {"url": "https://hook.example/"}
        assert read(request(method, concrete, body)).act.name in ACTIONS


# --- facts ------------------------------------------------------------------------------------


def test_everything_a_message_can_say() -> None:
    message = {
        "messageId": "m1",
        "contextId": "c1",
        "taskId": "t1",
        "role": 1,
        "parts": [{"text": "x"}, {"raw": "aGk="}, {"url": "https://a/"}, {"data": {"a": 1}}],
        "extensions": ["https://e.example/2"],
        "referenceTaskIds": ["t0"],
        "metadata": {"Role": "anything", "role": "anything"},
    }
    configuration = {
        "returnImmediately": True,
        "taskPushNotificationConfig": {"url": "HTTPS://Hook.Example:443/%61?x=1", "token": "s"},
    }
    params = {"tenant": "acme", "message": message, "configuration": configuration}
    http = request(
        body=rpc("SendStreamingMessage", params),
        a2a_version=b"1.0",
        a2a_extensions=b"https://e.example/1, https://e.example/2",
        x_a2a_extensions=b"https://e.example/3",
    )
    operation = read(http)
    assert operation.act.name == "message/stream"
    assert operation.obj.uri == "t1"
    assert operation.obj.args == {
        "tenant": "acme",
        "task_id": "t1",
        "context_id": "c1",
        "role": "user",
        "part_kinds": ("data", "file", "text", "url"),
        "push_url": "https://hook.example/a?x=1",
        "push_host": "hook.example",
        "reference_task_ids": ("t0",),
        "blocking": False,
        "version": "1.0",
        "extensions": tuple(f"https://e.example/{n}" for n in (1, 2, 3)),
    }


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"kind": "text", "text": "x"}, "text"),
        ({"kind": "data", "data": {}}, "data"),
        ({"kind": "file", "file": {"bytes": "aGk="}}, "file"),
        ({"kind": "file", "file": {"uri": "https://a/", "name": "a"}}, "url"),
        ({"file": {"file_with_bytes": "aGk="}}, "file"),
        ({"file": {"fileWithUri": "https://a/"}}, "url"),
        ({"raw": "", "filename": "a"}, "file"),
        ({"text": ""}, "text"),
        ({"data": 0}, "data"),
    ],
)
def test_kinds_of_parts(part: dict[str, object], kind: str) -> None:
    http = request(body=rpc("message/send", {"message": {**ASKED_0_3, "parts": [part]}}))
    assert read(http).obj.args["part_kinds"] == (kind,)


@pytest.mark.parametrize(
    ("method", "configuration", "blocking"),
    [
        ("SendMessage", {}, True),
        ("SendMessage", {"returnImmediately": False}, True),
        ("SendMessage", {"return_immediately": True}, False),
        ("message/send", {}, None),
        ("message/send", {"blocking": True}, True),
        ("message/send", {"blocking": False}, False),
    ],
)
def test_blocking(method: str, configuration: dict[str, bool], blocking: bool | None) -> None:
    params = {"message": ASKED_1_0, "configuration": configuration}
    assert read(request(body=rpc(method, params))).obj.args.get("blocking") is blocking


@pytest.mark.parametrize(
    "http",
    [
        request(body=rpc("CreateTaskPushNotificationConfig", {"taskId": "t", "url": "https://h"})),
        request(
            body=rpc(
                "tasks/pushNotificationConfig/set",
                {"taskId": "t", "pushNotificationConfig": {"url": "https://h"}},
            )
        ),
        request("POST", "/tasks/t/pushNotificationConfigs", {"taskId": "t", "url": "https://h"}),
        request(
            "POST",
            "/v1/tasks/t/pushNotificationConfigs",
            {
                "parent": "tasks/t",
                "config": {"name": "tasks/t", "push_notification_config": {"url": "https://h"}},
            },
        ),
        request(
            "POST",
            "/v1/tasks/t/pushNotificationConfigs",
            {
                "parent": "tasks/t/pushNotificationConfigs",
                "config": {"pushNotificationConfig": {"url": "https://h"}},
            },
        ),
    ],
    ids=["1.0 rpc", "0.3 rpc", "1.0 http", "0.3 http", "0.3 http camel"],
)
def test_where_a_push_notification_goes(http: HttpRequest) -> None:
    operation = read(http)
    assert operation.act.name == "tasks/pushNotificationConfig/set"
    assert (operation.obj.uri, operation.obj.args["task_id"]) == ("t", "t")
    assert operation.obj.args["push_url"] == "https://h/"
    assert operation.obj.args["push_host"] == "h"


@pytest.mark.parametrize(
    ("path", "version", "tenant"),
    [
        ("/message:send", b"1.0", None),
        ("/acme/message:send", b"1.0", "acme"),
        ("/base/acme/message:send", b"1.0", "acme"),
        ("/v1/message:send", b"0.3", None),
        ("/acme/v1/message:send", b"0.3", "acme"),
        # A server without 0.3 takes `v1` for a tenant.
        ("/v1/message:send", b"1.0", "v1"),
    ],
)
def test_a_tenant_in_the_path(path: str, version: bytes, tenant: str | None) -> None:
    http = request("POST", path, {"message": ASKED_1_0}, a2a_version=version)
    assert read(http).obj.args.get("tenant") == tenant
    agreeing = {"tenant": "acme", "message": ASKED_1_0}
    http = request("POST", path, agreeing, a2a_version=version)
    if tenant in {None, "acme"}:
        assert read(http).obj.args["tenant"] == "acme"
    else:
        assert reason_of(http) is Reason.HEADER_BODY_MISMATCH


def test_parameters_in_a_query() -> None:
    obj = read(request("GET", "/tasks?contextId=c%201&pageSize=5&tenant=acme")).obj
    assert obj.args["context_id"] == "c 1"
    assert obj.args["tenant"] == "acme"
    assert obj.query["pageSize"] == "5"


# --- what an approval is bound to ---------------------------------------------------------------


def digest(params: object, path: str = "/a2a", extensions: bytes = b"") -> str:
    body = rpc("SendMessage", params)
    found = read(request("POST", path, body, a2a_extensions=extensions)).obj.args_sha256
    assert found is not None
    return found


def test_a_digest_outlives_the_id_of_the_message_and_nothing_else() -> None:
    said = {"message": ASKED_1_0, "configuration": {"historyLength": 2}, "metadata": {"a": 1}}
    plain = digest(said)
    assert digest({**said, "message": {**ASKED_1_0, "messageId": "m2"}}) == plain
    covered = {"message": {k: v for k, v in ASKED_1_0.items() if k != "messageId"}}
    assert digest({**said, "message": {**covered["message"], "message_id": "m2"}}) == plain
    canonical: Any = {"params": {**said, **covered}, "version": "1.0"}
    assert plain == hashlib.sha256(rfc8785.dumps(canonical)).hexdigest()
    others = [
        digest({**said, "message": {**ASKED_1_0, "parts": [{"text": "why not"}]}}),
        digest({**said, "message": {**ASKED_1_0, "contextId": "c"}}),
        digest({**said, "message": {**ASKED_1_0, "metadata": {"messageId": "m2"}}}),
        digest({**said, "configuration": {"historyLength": 3}}),
        digest({**said, "metadata": {"a": 2}}),
        digest({**said, "unknown": 1}),
        digest(said, path="/a2a?x=1"),
        digest(said, extensions=b"https://e.example/1"),
    ]
    assert len({plain, *others}) == len(others) + 1


@pytest.mark.parametrize("http", [request("GET", "/tasks/t1"), request("POST", "/tasks/t1:cancel")])
def test_nothing_to_digest(http: HttpRequest) -> None:
    assert read(http).obj.args_sha256 is None


def test_a_body_that_was_not_shown_is_missed() -> None:
    """It could name another task than the path, or a tenant."""
    unsaid = request("POST", "/tasks/t1:cancel", protocol="HTTP/2")
    assert reason_of(unsaid) is Reason.BODY_TRUNCATED
    announced = request("POST", "/tasks/t1:cancel", content_length=b"5")
    assert reason_of(announced) is Reason.BODY_TRUNCATED
    empty = request("POST", "/tasks/t1:cancel", protocol="HTTP/2", content_length=b"0")
    assert read(empty).obj.uri == "t1"
    buffering = RouteContext.parse({"protocol": "a2a", "body": "whole"})
    assert a2a.operation(unsaid, buffering, {}).obj.uri == "t1"


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/a2a"),
        ("HEAD", "/tasks/t1"),
        ("PUT", "/message:send"),
        ("GET", "/message:send"),
        ("POST", "/tasks/t1"),
        ("POST", "/tasks"),
        ("DELETE", "/tasks/t1"),
        ("GET", "/tasks/t1:cancel"),
        ("POST", "/tasks/t1:delete"),
        ("POST", "/tasks/t1:"),
        ("POST", "/tasks/:cancel"),
        ("POST", "/tasks/urn:uuid:1:cancel"),
        ("POST", "/tasks/t1:cancel:cancel"),
        ("POST", "/message:delete"),
        ("POST", "/message:send/x"),
        ("POST", "/Message:send"),
        ("POST", "/message:Send"),
        ("POST", "/message:send:stream"),
        ("GET", "/Tasks:x"),
        ("POST", "/tasks/message:send"),
        ("POST", "/a:b/message:send"),
        ("POST", "/message:send/message:send"),
        ("GET", "/tasks/tasks/t1"),
        ("GET", "/tasks/tasks"),
        ("GET", "/tasks/pushNotificationConfigs"),
        ("GET", "/tasks/t1/pushNotificationConfigs/tasks"),
        ("GET", "/tasks/t1/pushNotificationConfigs/c/d"),
        ("POST", "/tasks/t1/pushNotificationConfigs/c"),
        ("DELETE", "/tasks/t1/pushNotificationConfigs"),
        ("GET", "/tasks/t1/history"),
        ("POST", "/.well-known/agent-card.json"),
        ("GET", "/.well-known/agent.json"),
        ("GET", "/.well-known"),
        ("GET", "/agent-card.json"),
        ("GET", "/.well-known/x/agent-card.json"),
        ("POST", "/extendedAgentCard"),
        ("POST", "/v1/card"),
        ("GET", "/card"),
    ],
)
def test_paths_of_no_operation(method: str, path: str) -> None:
    """Whatever the path, a body of either binding does not make an operation of it."""
    assert reason_of(request(method, path)) is Reason.UNSUPPORTED_METHOD
    if method == "POST":
        for body in ({"message": ASKED_1_0}, rpc("GetTask", {"id": "t1"})):
            assert reason_of(request(method, path, body)) is Reason.UNSUPPORTED_METHOD


@pytest.mark.parametrize(
    "path",
    [
        "/x/../message:send",
        "/./message:send",
        "//message:send",
        "/message%3Asend",
        "/message%3asend",
        "/tasks/t1%3Acancel",
        "/tasks%2Ft1:cancel",
        "/tasks/t1%252Fx:cancel",
        "/t%C3%A9nant/message:send",
        "/tasks/t1;x=1:cancel",
        "/tasks/t1:cancel%20",
        "/tasks\\t1:cancel",
    ],
)
def test_paths_of_two_readings(path: str) -> None:
    assert reason_of(request("POST", path, {"message": ASKED_1_0})) is Reason.NON_CANONICAL_PATH


@pytest.mark.parametrize(
    "method",
    [
        *("sendMessage", "SENDMESSAGE", "SendMessage ", "message/Send", "message.send"),
        *("tasks/subscribe", "rpc.discover", "lf.a2a.v1.A2AService/SendMessage", CARD_ACTION),
    ],
)
def test_unknown_methods(method: str) -> None:
    fault = fault_of(request(body=rpc(method, {"message": ASKED_1_0})))
    assert fault.reason is Reason.UNSUPPORTED_METHOD
    assert fault.json_rpc_id == '"r1"'


def test_a_message_in_both_bindings() -> None:
    """JSON-RPC where the path is an operation, and a bare message where it is an endpoint."""
    envelope = rpc("SendMessage", {"message": ASKED_1_0})
    for body in (envelope, {"Method": "x", "message": ASKED_1_0}, {"message": 1, "JSONRPC": 2}):
        assert reason_of(request("POST", "/message:send", body)) is Reason.HEADER_BODY_MISMATCH
    assert reason_of(request("POST", "/a2a", {"message": ASKED_1_0})) is Reason.MALFORMED_BODY


@pytest.mark.parametrize(
    "http",
    [
        request(body=rpc("SendMessage", {"message": ASKED_1_0}), a2a_version=b"0.3"),
        request(body=rpc("message/send", {"message": ASKED_0_3}), a2a_version=b"1.0"),
        request(body=rpc("message/send", {"message": ASKED_0_3}), path="/a2a?A2A-Version=1.0"),
        request("GET", "/tasks/t1?a2a-version=0.3", a2a_version=b"1.0"),
        request("GET", "/tasks?A2A-Version=1.0&a2a-version=0.3"),
        request("POST", "/tasks/t1:cancel", {"id": "t2"}),
        request("POST", "/tasks/t1/pushNotificationConfigs", {"taskId": "t2", "url": "https://h"}),
        request(
            "POST",
            "/v1/tasks/t1/pushNotificationConfigs",
            {"parent": "tasks/t2", "config": {"url": "https://h"}},
        ),
        request("GET", "/tasks/t1?id=t2"),
        request("GET", "/acme/tasks/t1?tenant=other"),
    ],
)
def test_contradictions(http: HttpRequest) -> None:
    assert reason_of(http) is Reason.HEADER_BODY_MISMATCH


@pytest.mark.parametrize("version", [b"2.0", b"1", b"v1.0", b"1.1", b"0.2", b"1.0.x", b"1.0,0.3"])
def test_unknown_versions(version: bytes) -> None:
    http = request(body=rpc("SendMessage", {"message": ASKED_1_0}), a2a_version=version)
    assert reason_of(http) is Reason.UNSUPPORTED_METHOD


def test_an_empty_version_is_0_3() -> None:
    http = request("POST", "/v1/message:send", {"request": ASKED_PROTO_0_3}, a2a_version=b"")
    assert read(http).obj.args["version"] == "0.3"


def message_of(**changes: object) -> dict[str, object]:
    merged = {**ASKED_1_0, **changes}
    return {"message": {name: value for name, value in merged.items() if value is not ...}}


SENDS: list[object] = [
    {},
    {"message": None},
    {"message": []},
    {"message": "why"},
    {"request": ASKED_1_0, "message": ASKED_1_0},
    {"message": ASKED_1_0, "Message": ASKED_1_0},
    {"Message": ASKED_1_0},
    {"MESSAGE": ASKED_1_0},
    {"me_ssage": ASKED_1_0},
    message_of(role=...),
    message_of(role=None),
    message_of(role="ROLE_UNSPECIFIED"),
    message_of(role="USER"),
    message_of(role=0),
    message_of(role=True),
    message_of(role=1.5),
    message_of(role=["user"]),
    message_of(Role="ROLE_AGENT"),
    message_of(parts=...),
    message_of(parts="x"),
    message_of(parts=["x"]),
    message_of(parts=[{}]),
    message_of(parts=[{"text": "x", "data": {}}]),
    message_of(parts=[{"text": "x", "url": "https://a/"}]),
    message_of(parts=[{"Text": "x", "data": 1}]),
    message_of(parts=[{"kind": "text", "data": {}}]),
    message_of(parts=[{"kind": "file", "text": "x"}]),
    message_of(parts=[{"kind": "file", "file": {}}]),
    message_of(parts=[{"kind": "file", "file": {"bytes": "aGk=", "uri": "https://a/"}}]),
    message_of(parts=[{"kind": "file", "file": "aGk="}]),
    message_of(content=[{"text": "x"}]),
    message_of(taskId=7),
    message_of(taskId="t\n1"),
    message_of(taskId="t" * 300),
    message_of(taskId="t1", task_id="t2"),
    message_of(TaskId="t1"),
    message_of(TASKID="t1"),
    {"message": {**ASKED_1_0, "task-id": "t1"}},
    {"message": {**ASKED_1_0, "ta\u017fkId": "t1"}},
    message_of(messageId=5),
    message_of(messageid="m2"),
    message_of(extensions="https://e.example"),
    message_of(extensions=[1]),
    message_of(extensions=[""]),
    {"message": ASKED_1_0, "tenant": 5},
    {"message": ASKED_1_0, "tenant": "a", "Tenant": "b"},
    {"message": ASKED_1_0, "configuration": []},
    {"message": ASKED_1_0, "configuration": "x"},
    {"message": ASKED_1_0, "Configuration": {}},
    {"message": ASKED_1_0, "configuration": {"blocking": "yes"}},
    {"message": ASKED_1_0, "configuration": {"blocking": True, "returnImmediately": True}},
]


@pytest.mark.parametrize("params", SENDS, ids=range(len(SENDS)))
def test_a_message_that_two_readers_read_differently(params: object) -> None:
    fault = fault_of(request(body=rpc("SendMessage", params)))
    assert (fault.reason, fault.json_rpc_id) == (Reason.MALFORMED_BODY, '"r1"')
    over_http = request("POST", "/message:send", params, a2a_version=b"1.0")
    assert fault_of(over_http).reason is Reason.MALFORMED_BODY
    assert fault_of(over_http).json_rpc_id is None


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("GetTask", {}),
        ("GetTask", {"id": ""}),
        ("GetTask", {"id": 5}),
        ("GetTask", {"taskId": "t1"}),
        ("GetTask", {"id": "t1", "taskId": "t2"}),
        ("GetTask", {"id": "t1", "ID": "t2"}),
        ("tasks/cancel", {"id": "t1", "task_id": "t2"}),
        ("GetTaskPushNotificationConfig", {"id": "c1"}),
        ("GetTaskPushNotificationConfig", {"taskId": "t", "pushNotificationConfigId": "c"}),
        ("tasks/pushNotificationConfig/get", {"id": "t1", "taskId": "t2"}),
        ("tasks/pushNotificationConfig/delete", {"taskId": "t1"}),
        ("CreateTaskPushNotificationConfig", {"taskId": "t1"}),
        ("CreateTaskPushNotificationConfig", {"url": "https://h/"}),
        ("CreateTaskPushNotificationConfig", {"taskId": "t1", "url": ["https://h/"]}),
        ("CreateTaskPushNotificationConfig", {"taskId": "t1", "URL": "https://h/"}),
        (
            "CreateTaskPushNotificationConfig",
            {"taskId": "t1", "url": "https://h/", "pushNotificationConfig": {"url": "https://i/"}},
        ),
        (
            "tasks/pushNotificationConfig/set",
            {"taskId": "t1", "config": {"url": "https://h/"}, "url": "https://i/"},
        ),
        ("tasks/pushNotificationConfig/set", {"taskId": "t1", "parent": "tasks/t1", "url": "x"}),
        ("tasks/pushNotificationConfig/set", {"parent": "t1", "url": "https://h/"}),
        ("tasks/pushNotificationConfig/set", {"parent": 5, "url": "https://h/"}),
        ("tasks/pushNotificationConfig/set", {"taskId": "t1", "pushNotificationConfig": "x"}),
        ("ListTasks", {"contextId": 5}),
        ("ListTasks", {"contextId": "a", "context_id": "b"}),
    ],
)
def test_params_that_two_readers_read_differently(method: str, params: object) -> None:
    assert reason_of(request(body=rpc(method, params))) is Reason.MALFORMED_BODY


@pytest.mark.parametrize("name", ["taskPushNotificationConfig", "pushNotificationConfig"])
def test_two_push_notification_urls_in_a_message(name: str) -> None:
    configuration = {name: {"url": "https://h/"}, "push_notification": {"url": "https://i/"}}
    params = {"message": ASKED_1_0, "configuration": configuration}
    assert reason_of(request(body=rpc("SendMessage", params))) is Reason.MALFORMED_BODY


BODIES: list[bytes] = [
    b"[]",
    b"null",
    b'"x"',
    b"{",
    b"\xef\xbb\xbf{}",
    b'{"message":{},"message":{}}',
    b'{"message":{"role":"ROLE_USER","role":"ROLE_AGENT","parts":[{"text":"x"}]}}',
    b'{"a":' * 100 + b"1" + b"}" * 100,
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_bodies_that_are_no_strict_json(body: bytes) -> None:
    for path in ("/a2a", "/message:send"):
        assert reason_of(request("POST", path, body)) is Reason.MALFORMED_BODY
    assert fault_of(request("POST", "/a2a", body)).json_rpc_id == "null"


def test_bodies_in_another_form() -> None:
    body = json.dumps(rpc("SendMessage", {"message": ASKED_1_0})).encode()
    bare = json.dumps({"message": ASKED_1_0}).encode()
    for media_type in (b"text/plain", b"application/grpc", b"application/jsonp", b""):
        assert reason_of(request(body=body, media_type=media_type)) is Reason.MALFORMED_BODY
        http = request("POST", "/message:send", bare, media_type=media_type)
        assert reason_of(http) is Reason.MALFORMED_BODY
    compressed = request("POST", "/message:send", bare, content_encoding=b"gzip")
    assert reason_of(compressed) is Reason.MALFORMED_BODY
    assert reason_of(request(body=b" " * (256 * 1024 + 1))) is Reason.OVERSIZE
    assert reason_of(request("POST", "/a2a")) is Reason.MALFORMED_BODY
    assert reason_of(request("POST", "/message:send")) is Reason.MALFORMED_BODY
    for method in ("GET", "DELETE"):
        path = "/tasks/t1/pushNotificationConfigs/c"
        assert reason_of(request(method, path, {"id": "t2"})) is Reason.MALFORMED_BODY
        assert reason_of(request(method, path, content_length=b"5")) is Reason.MALFORMED_BODY


def test_queries() -> None:
    twice = request("GET", "/tasks?contextId=a&contextId=b")
    assert reason_of(twice) is Reason.MALFORMED_REQUEST
    assert reason_of(request("POST", "/tasks/t:cancel?_method=GET")) is Reason.MALFORMED_REQUEST
    rpc_twice = request(path="/a2a?x=1&x=2", body=rpc("GetTask", {"id": "t1"}))
    assert read(rpc_twice).obj.query == {"x": AMBIGUOUS}


def test_a_response_is_no_request() -> None:
    body = {"jsonrpc": "2.0", "id": 7, "result": {}}
    assert fault_of(request(body=body)).reason is Reason.UNSUPPORTED_METHOD


def test_too_many_extensions() -> None:
    header = ",".join(f"https://e.example/{n}" for n in range(300)).encode()
    http = request("GET", "/tasks/t1", a2a_extensions=header)
    assert reason_of(http) is Reason.OVERSIZE
    params = message_of(extensions=[f"https://e.example/{n}" for n in range(300)])
    assert reason_of(request(body=rpc("SendMessage", params))) is Reason.OVERSIZE


def test_envoy_filter_that_read_something_else() -> None:
    http = request(body=rpc("GetTask", {"id": "t1"}))
    seen = {"envoy.filters.http.a2a": {"method": "CancelTask", "id": "r1"}}
    assert fault_of(http, seen).reason is Reason.HEADER_BODY_MISMATCH
    agreeing = {"envoy.filters.http.a2a": {"method": "GetTask", "jsonrpc": "2.0"}}
    assert a2a.operation(http, ROUTE, agreeing).act.name == "tasks/get"


def test_a_fault_says_by_which_id_it_is_answered() -> None:
    for identifier, text in (("a", '"a"'), (7, "7")):
        body = rpc("Nope", {}, id=identifier)
        assert fault_of(request(body=body)).json_rpc_id == text
    body = {name: value for name, value in rpc("Nope", {}).items() if name != "id"}
    assert fault_of(request(body=body)).json_rpc_id == "null"
    assert read(request(body=rpc("GetTask", {"id": "t1"}))).json_rpc_id == '"r1"'


# --- one pointer for what a part holds ---------------------------------------------------------


def sent(part: Mapping[str, object], binding: str) -> HttpRequest:
    """Return a message with that one part in one of the spellings."""
    match binding:
        case "1.0":
            body = rpc("SendMessage", {"message": {**ASKED_1_0, "parts": [part]}})
            return request(body=body, a2a_version=b"1.0")
        case "0.3":
            return request(body=rpc("message/send", {"message": {**ASKED_0_3, "parts": [part]}}))
    return request("POST", "/v1/message:send", {"request": {**ASKED_PROTO_0_3, "content": [part]}})


@pytest.mark.parametrize(
    ("binding", "part"),
    [
        ("1.0", {"data": {"amount": 9}}),
        ("0.3", {"kind": "data", "data": {"amount": 9}}),
        ("0.3 http", {"data": {"data": {"amount": 9}}}),
        ("0.3 http", {"kind": "data", "data": {"amount": 9}}),
    ],
    ids=["1.0", "0.3 rpc", "0.3 http protobuf", "0.3 http json"],
)
def test_data_is_found_by_one_pointer(binding: str, part: Mapping[str, object]) -> None:
    """A rule on it must not be switched off by speaking 0.3 to an agent that takes both."""
    assert read(sent(part, binding), amount="/message/parts/0/data/amount").obj.args["amount"] == 9


def test_the_official_server_reads_the_same_data() -> None:
    body = json.loads(sent({"data": {"data": {"amount": 9}}}, "0.3 http").body)
    message = a2a_v0_3_pb2.SendMessageRequest()
    json_format.ParseDict(body, message, ignore_unknown_fields=True)
    (part,) = proto_utils.FromProto.message_send_params(message).message.parts
    assert part.root.model_dump()["data"] == {"amount": 9}


@pytest.mark.parametrize(
    ("binding", "part"),
    [
        ("1.0", {"url": "https://x.example/f", "mediaType": "text/csv"}),
        ("1.0", {"url": "https://x.example/f", "media_type": "text/csv"}),
        ("0.3", {"file": {"uri": "https://x.example/f", "mimeType": "text/csv"}}),
        ("0.3 http", {"file": {"file_with_uri": "https://x.example/f", "mime_type": "text/csv"}}),
    ],
    ids=["1.0", "1.0 snake", "0.3 rpc", "0.3 http"],
)
def test_a_file_is_found_by_one_pointer(binding: str, part: Mapping[str, object]) -> None:
    asked = sent(part, binding)
    args = read(asked, url="/message/parts/0/url", type="/message/parts/0/mediaType").obj.args
    assert (args["url"], args["type"]) == ("https://x.example/f", "text/csv")
    assert args["part_kinds"] == ("url",)


@pytest.mark.parametrize(
    ("binding", "part"),
    [
        ("0.3 http", {"data": {"data": {"amount": 1}, "amount": 9}}),
        ("1.0", {"text": "why", "data": None}),
        ("1.0", {"data": None, "text": "why"}),
        ("1.0", {"data": None}),
    ],
    ids=["wrapped and not", "text and null", "null and text", "null"],
)
def test_a_part_that_two_servers_read_differently(binding: str, part: Mapping[str, object]) -> None:
    assert reason_of(sent(part, binding)) is Reason.MALFORMED_BODY


@pytest.mark.parametrize(
    "path",
    [
        "/TASKS/42/PUSHNOTIFICATIONCONFIGS",
        "/Tasks/42/pushnotificationconfigs",
        "/Tasks",
        "/a/TASKS/b",
    ],
)
def test_a_path_of_the_http_binding_in_another_letter_case_is_no_endpoint(path: str) -> None:
    """To a server that finds routes in any case it is not JSON-RPC that was sent there."""
    body = rpc("GetTask", {"id": "42"})
    assert reason_of(request("POST", path, body)) is Reason.UNSUPPORTED_METHOD
