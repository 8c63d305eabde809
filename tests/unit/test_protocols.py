"""What a request really asks for, per protocol, and what is refused because two readers differ."""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
import rfc8785

from authz_server.core.arguments import Pointer
from authz_server.core.attributes import AMBIGUOUS, Protocol
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.protocols import grpc, http, mcp
from authz_server.core.protocols.operation import Operation
from authz_server.core.request import Headers, HttpRequest, RouteContext

HTTP = RouteContext.parse({"resource": "crm", "label.tier": "gold"})
MCP = RouteContext.parse({"protocol": "mcp", "resource": "crm"})
JSON_TYPE = {"content-type": b"application/json"}


def request(
    method: str = "GET",
    path: str = "/v1/x",
    *,
    headers: Mapping[str, bytes | tuple[bytes, ...]] | None = None,
    body: bytes = b"",
    truncated: bool = False,
    host: str = "data.example",
    protocol: str = "HTTP/1.1",
    size: int = -1,
) -> HttpRequest:
    lines = {k: v if isinstance(v, tuple) else (v,) for k, v in (headers or {}).items()}
    return HttpRequest(
        method=method,
        scheme="https",
        host=host,
        path=path,
        headers=Headers(fields=lines),
        body=body,
        body_truncated=truncated,
        protocol=protocol,
        size=size,
    )


def operation_of(
    http_request: HttpRequest,
    route: RouteContext,
    arguments: Mapping[str, str] = MappingProxyType({}),
) -> Operation:
    declaration = {name: Pointer.parse(pointer) for name, pointer in arguments.items()}
    if route.protocol is Protocol.MCP:
        return mcp.operation(http_request, route, {}, declaration)
    if route.protocol is Protocol.GRPC:
        return grpc.operation(http_request, route)
    return http.operation(http_request, route, declaration)


def reason_of(http_request: HttpRequest, route: RouteContext = HTTP) -> Reason:
    with pytest.raises(RequestFault) as caught:
        operation_of(http_request, route)
    return caught.value.reason


class TestHttp:
    def test_operation(self) -> None:
        operation = operation_of(
            request("POST", "/v1/%61?id=7&x=1&x=2", body=b"{}", host="Data.Example:8443"), HTTP
        )
        assert (operation.act.protocol, operation.act.name) == ("http", "POST")
        assert not operation.act.read_only
        assert (operation.obj.host, operation.obj.path) == ("data.example", "/v1/a")
        assert operation.obj.segments == ("v1", "a")
        assert operation.obj.query == {"id": "7", "x": AMBIGUOUS}
        assert operation.obj.resource == "crm"
        assert operation.obj.labels == {"tier": "gold"}
        expected = hashlib.sha256(b"id=7&x=1&x=2\0{}").hexdigest()
        assert operation.obj.args_sha256 == expected

    @pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
    def test_safe_methods_are_read_only(self, method: str) -> None:
        assert operation_of(request(method), HTTP).act.read_only

    @pytest.mark.parametrize(
        "method", ["FOO", "get", "CONNECT", "TRACE", "G\0T", "", "PROPFIND", "GET ", "GET\n"]
    )
    def test_unknown_method(self, method: str) -> None:
        assert reason_of(request(method)) is Reason.UNSUPPORTED_METHOD

    @pytest.mark.parametrize(
        ("header", "value"),
        [
            ("x-http-method-override", b"DELETE"),
            ("x-http-method", b"DELETE"),
            ("x-method-override", b"PUT"),
            ("x-original-url", b"/admin"),
            ("x-rewrite-url", b"/admin"),
            ("x-original-url", b"/v1/x/../../admin"),
            ("x-original-url", b""),
            ("x-forwarded-host", b"admin.example"),
            ("x-forwarded-host", b"data.example, admin.example"),
            ("x-original-host", b"admin.example"),
            ("forwarded", b"host=admin.example"),
            ("forwarded", b'for=1.2.3.4;Host="admin.example"'),
            ("forwarded", b"host=data.example, host=admin.example"),
        ],
    )
    def test_override_that_contradicts_is_denied(self, header: str, value: bytes) -> None:
        assert reason_of(request(headers={header: value})) is Reason.MALFORMED_REQUEST

    @pytest.mark.parametrize(
        ("header", "value"),
        [
            ("x-http-method-override", b"GET"),
            ("x-original-url", b"/v1/x"),
            ("x-forwarded-host", b"data.example:443"),
            ("forwarded", b'for=192.0.2.1;host="data.example";proto=https'),
            ("forwarded", b"for=192.0.2.1"),
        ],
    )
    def test_override_that_agrees_passes(self, header: str, value: bytes) -> None:
        assert operation_of(request(headers={header: value}), HTTP).obj.path == "/v1/x"

    def test_repeated_override_is_denied(self) -> None:
        doubled = request(headers={"x-http-method-override": (b"GET", b"DELETE")})
        assert reason_of(doubled) is Reason.DUPLICATE_HEADER

    def test_method_in_query_is_denied(self) -> None:
        assert reason_of(request("POST", "/x?_method=DELETE")) is Reason.MALFORMED_REQUEST
        assert reason_of(request("POST", "/x?_method=POST&_method=DELETE")) is (
            Reason.MALFORMED_REQUEST
        )

    @pytest.mark.parametrize(
        ("media_type", "body"),
        [
            (b"application/x-www-form-urlencoded", b"_method=DELETE&a=1"),
            (b"application/x-www-form-urlencoded; charset=utf-8", b"a=1&%5Fmethod=DELETE"),
            (b"application/x-www-form-urlencoded", b"a=1;_METHOD=DELETE"),
            (b"multipart/form-data; boundary=x", b'--x\r\nA: form-data; name="_method"\r\n\r\nX'),
        ],
    )
    def test_method_in_a_form_is_denied(self, media_type: bytes, body: bytes) -> None:
        form = request("POST", headers={"content-type": media_type}, body=body)
        assert reason_of(form) is Reason.MALFORMED_REQUEST

    def test_a_form_that_only_mentions_a_method_passes(self) -> None:
        body = b"payment_method=card&note=_method%3DDELETE"
        form = {"content-type": b"application/x-www-form-urlencoded"}
        assert operation_of(request("POST", headers=form, body=body), HTTP)

    @pytest.mark.parametrize("value", [b"websocket", b"h2c", b""])
    def test_upgrade_is_denied(self, value: bytes) -> None:
        assert reason_of(request(headers={"upgrade": value})) is Reason.UNSUPPORTED_METHOD

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_body_on_a_bodyless_method(self, method: str) -> None:
        assert reason_of(request(method, body=b"x")) is Reason.MALFORMED_BODY
        for headers in ({"content-length": b"4"}, {"transfer-encoding": b"chunked"}):
            # Not shown to us, but the upstream will read it.
            assert reason_of(request(method, headers=headers)) is Reason.MALFORMED_BODY
        assert operation_of(request(method, headers={"content-length": b"0"}), HTTP)

    def test_partial_body(self) -> None:
        assert reason_of(request("POST", body=b"x", truncated=True)) is Reason.BODY_TRUNCATED

    @pytest.mark.parametrize(
        ("http_request", "seen"),
        [
            (request("GET"), True),
            (request("POST", body=b"x"), True),
            (request("POST", headers={"content-length": b"0"}), True),
            (request("POST", headers={"content-length": b"5"}), False),
            (request("POST", headers={"transfer-encoding": b"chunked"}), False),
            (request("POST"), True),
            (request("POST", protocol="HTTP/2"), False),
            (request("POST", protocol="HTTP/2", size=0), False),  # so it is before any is read
            (request("POST", protocol="HTTP/2", headers={"content-length": b"0"}), True),
            (request("POST", protocol=""), False),  # some that ask do not say the version
            (request("POST", protocol="", size=0), True),  # as in a check written by hand
            (request("POST", protocol="http/2"), False),
            (request("DELETE", protocol="HTTP/2"), True),  # whose content has no meaning
            (request("DELETE", protocol="HTTP/2", headers={"content-length": b"5"}), False),
        ],
    )
    def test_a_body_that_was_not_shown_is_noticed(
        self, http_request: HttpRequest, seen: bool
    ) -> None:
        assert operation_of(http_request, HTTP).arguments_seen is seen

    @pytest.mark.parametrize(("said", "seen"), [("whole", True), ("none", False)])
    def test_where_bodies_are_buffered_none_is_none(self, said: str, seen: bool) -> None:
        route = RouteContext.parse({"body": said})
        assert operation_of(request("POST", protocol="HTTP/2"), route).arguments_seen is seen
        announced = request("POST", protocol="HTTP/2", headers={"content-length": b"5"})
        assert not operation_of(announced, route).arguments_seen


class TestDeclaredArguments:
    """`protocol: http`: pointers into the body, which has to be JSON."""

    ARGUMENTS: ClassVar = {"amount": "/order/amount", "tags": "/tags"}

    def args(self, http_request: HttpRequest) -> object:
        return operation_of(http_request, HTTP, self.ARGUMENTS).obj.args

    @pytest.mark.parametrize(
        "media_type",
        [b"application/json", b"APPLICATION/JSON; charset=UTF-8", b"application/vnd.x.v2+json"],
    )
    def test_out_of_json(self, media_type: bytes) -> None:
        body = b'{"order":{"amount":12.0},"tags":["a",1],"note":{}}'
        posted = request("POST", headers={"content-type": media_type}, body=body)
        assert self.args(posted) == {"amount": 12, "tags": ("a", 1)}
        assert operation_of(posted, HTTP).obj.args == {}
        digests = {
            operation_of(posted, HTTP, args).obj.args_sha256 for args in ({}, self.ARGUMENTS)
        }
        assert digests == {hashlib.sha256(b"\0" + body).hexdigest()}

    @pytest.mark.parametrize(
        "http_request",
        [request("GET"), request("POST"), request("POST", headers={"content-length": b"0"})],
    )
    def test_without_a_body_all_are_none(self, http_request: HttpRequest) -> None:
        assert self.args(http_request) == {"amount": None, "tags": None}

    @pytest.mark.parametrize(
        ("headers", "protocol"),
        [
            ({"content-length": b"5"}, "HTTP/1.1"),
            ({"transfer-encoding": b"chunked"}, "HTTP/1.1"),
            ({}, "HTTP/2"),
            ({}, ""),
        ],
    )
    @pytest.mark.parametrize("method", ["POST", "DELETE"])
    def test_a_body_that_was_not_shown_may_hold_any(
        self, headers: dict[str, bytes], protocol: str, method: str
    ) -> None:
        hidden = request(method, headers=headers, protocol=protocol, size=0)
        with pytest.raises(RequestFault) as caught:
            self.args(hidden)
        assert caught.value.reason is Reason.BODY_TRUNCATED

    @pytest.mark.parametrize(
        ("headers", "body"),
        [
            ({}, b"{}"),
            ({"content-type": b"text/json"}, b"{}"),
            ({"content-type": b"application/x-www-form-urlencoded"}, b"order=1"),
            ({"content-type": b"application/+json"}, b"{}"),
            ({"content-type": b"application/json+xml"}, b"{}"),
            ({"content-type": b"application/json, text/plain"}, b"{}"),
            ({"content-type": b"application/json; charset=latin-1"}, b"{}"),
            ({**JSON_TYPE, "content-encoding": b"gzip"}, b"{}"),
            (JSON_TYPE, b'{"order":1,"order":2}'),
            (JSON_TYPE, b"{} {}"),
            (JSON_TYPE, b"not JSON"),
            (JSON_TYPE, b"[" * 65 + b"]" * 65),
            (JSON_TYPE, b"[" + b"0," * 10_000 + b"0]"),
        ],
    )
    def test_what_is_not_strict_json(self, headers: dict[str, bytes], body: bytes) -> None:
        with pytest.raises(RequestFault) as caught:
            self.args(request("PUT", headers=headers, body=body))
        assert caught.value.reason is Reason.MALFORMED_BODY
        # Without a declaration nobody reads it, and it is the upstream's affair.
        assert operation_of(request("PUT", headers=headers, body=body), HTTP)

    def test_more_than_the_limit(self) -> None:
        for method, route in (("POST", HTTP), ("POST", MCP)):
            large = request(method, headers=JSON_TYPE, body=b" " * (256 * 1024 + 1))
            assert reason_of(large, route) is Reason.OVERSIZE

    @pytest.mark.parametrize(
        "body",
        [b'{"_method":"DELETE"}', b'{"a":1,"\\u005fMetho\\u0064" :"DELETE"}', b'[{"_METHOD":1}]'],
    )
    def test_a_method_in_json_is_denied(self, body: bytes) -> None:
        posted = request("POST", headers=JSON_TYPE, body=body)
        assert reason_of(posted) is Reason.MALFORMED_REQUEST
        assert operation_of(request("POST", headers=JSON_TYPE, body=b'{"x":"_method"}'), HTTP)


class TestGrpc:
    ROUTE = RouteContext.parse({"protocol": "grpc"})
    HEADERS: ClassVar = {"content-type": b"application/grpc+proto"}

    def test_operation(self) -> None:
        call = request("POST", "/crm.v1.Customers/Export", headers=self.HEADERS, protocol="HTTP/2")
        operation = grpc.operation(call, self.ROUTE)
        assert operation.act.name == "crm.v1.Customers/Export"
        assert operation.obj.type == "grpc"
        assert not operation.arguments_seen

    @pytest.mark.parametrize(
        ("method", "path", "content_type"),
        [
            ("GET", "/a.B/C", b"application/grpc"),
            ("POST", "/a.B/C", b"application/json"),
            ("POST", "/a.B/C", b"application/grpcx"),
            ("POST", "/a.B", b"application/grpc"),
            ("POST", "/a.B/C/D", b"application/grpc"),
            ("POST", "/a.B/C?x=1", b"application/grpc"),
            ("POST", "/a-b/C", b"application/grpc"),
        ],
    )
    def test_not_a_call(self, method: str, path: str, content_type: bytes) -> None:
        call = request(method, path, headers={"content-type": content_type})
        assert reason_of(call, self.ROUTE) is Reason.UNSUPPORTED_METHOD


def call_body(**changes: object) -> bytes:
    message: dict[str, object] = {
        "jsonrpc": "2.0",
        "id": 7,
        "method": "tools/call",
        "params": {"name": "crm_export", "arguments": {"segment": "eu", "filter": {"a": 1}}},
    }
    message.update(changes)
    return json.dumps({k: v for k, v in message.items() if v is not ...}).encode()


def post(body: bytes, **headers: bytes) -> HttpRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request("POST", "/mcp", headers=JSON_TYPE | named, body=body)


class TestMcp:
    def test_tool_call(self) -> None:
        operation = operation_of(post(call_body()), MCP)
        assert (operation.act.name, operation.act.read_only) == ("tools/call", False)
        assert (operation.obj.type, operation.obj.tool) == ("mcp_tool", "crm_export")
        assert operation.obj.args == {"segment": "eu", "filter": AMBIGUOUS}
        arguments: Any = {"segment": "eu", "filter": {"a": 1}}
        assert operation.obj.args_sha256 == hashlib.sha256(rfc8785.dumps(arguments)).hexdigest()
        assert operation.json_rpc_id == "7"

    @pytest.mark.parametrize(
        ("method", "params", "kind", "tool", "uri"),
        [
            ("initialize", {}, "mcp_session", None, None),
            ("tools/list", {"cursor": "x"}, "mcp_tool", None, None),
            ("resources/read", {"uri": "crm://1"}, "mcp_resource", None, "crm://1"),
            ("prompts/get", {"name": "p"}, "mcp_prompt", "p", None),
            ("tasks/get", {"taskId": "t1"}, "mcp_session", None, "t1"),
        ],
    )
    def test_methods(
        self, method: str, params: dict[str, object], kind: str, tool: str | None, uri: str | None
    ) -> None:
        obj = operation_of(post(call_body(method=method, params=params)), MCP).obj
        assert (obj.type, obj.tool, obj.uri) == (kind, tool, uri)

    def test_digest_ignores_spelling_and_meta_but_nothing_that_acts(self) -> None:
        def digest(body: bytes) -> str | None:
            return operation_of(post(body), MCP).obj.args_sha256

        plain = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":%s}'
        one = digest(plain % b'{"name":"t","arguments":{"a":1,"b":"\\u0041"}}')
        meta = b'{"progressToken":1,"traceparent":"00-1"}'
        same = digest(plain % b'{"arguments":{"b":"A", "a":1.0},"name":"t","_meta":%s}' % meta)
        assert one == same
        other = {
            digest(plain % b'{"name":"t","arguments":{"a":2,"b":"A"}}'),
            digest(plain % b'{"name":"t","arguments":{"a":1,"b":"A"},"task":{"ttl":1}}'),
            digest(plain % b'{"name":"t","arguments":{"a":1,"b":"A"},"_meta":{"x":1}}'),
            digest(plain % b'{"name":"t","arguments":{"a":1,"b":"A"},"_meta":{"x":2}}'),
            digest(plain % b'{"name":"t","arguments":{}}'),
            digest(b'{"jsonrpc":"2.0","id":1,"result":{"a":1,"b":"A"}}'),
            digest(b'{"jsonrpc":"2.0","id":1,"result":{"a":2,"b":"A"}}'),
            digest(b'{"jsonrpc":"2.0","id":1,"error":{"a":1,"b":"A"}}'),
        }
        assert one not in other
        assert len(other) == 8

    def test_session_stream_is_its_own_action(self) -> None:
        operation = operation_of(request("GET", "/mcp"), MCP)
        assert (operation.act.name, operation.obj.type) == ("GET", "mcp_session")

    def test_client_response_is_its_own_action(self) -> None:
        body = b'{"jsonrpc":"2.0","id":"s1","result":{}}'
        assert operation_of(post(body), MCP).act.name == "response"

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"[]",
            b"[" + call_body() + b"]",
            b"null",
            b'"x"',
            b"\xef\xbb\xbf" + call_body(),
            call_body() + b" x",
            call_body().replace(b"7", b"9007199254740993"),
            call_body().replace(b'"eu"', b"9007199254740993.0"),
            call_body().replace(b'"eu"', b'"\\ud800"'),
            call_body().replace(b'"eu"', b"NaN"),
            call_body().replace(b'"eu"', b"1e400"),
            call_body().replace(b'"eu"', b'"\xff"'),
            call_body().replace(b'"segment"', b'"name":1,"name"'),
            call_body().replace(b'"name"', b'"name": "crm_search", "\\u006eame"'),
            call_body().replace(b'"name"', b'"Name": "crm_search", "name"'),
            call_body().replace(b'"method"', b'"Method": "tools/list", "method"'),
            call_body().replace(b'"method"', b'"method": "tools/list", "method"'),
            call_body(jsonrpc="1.0"),
            call_body(id=None),
            call_body(id=1.5),
            call_body(id=True),
            call_body(id={}),
            call_body(id="x" * 300),
            call_body(method=None),
            call_body(method=""),
            call_body(method=5),
            call_body(method=...),
            call_body(result={}),
            call_body(extra=1),
            call_body(params=[1]),
            call_body(params={"name": 5}),
            call_body(params={"name": ""}),
            call_body(params={"name": "a\nb"}),
            call_body(params={}),
            call_body(params={"name": "t", "arguments": []}),
            call_body(params={"name": "t", "Arguments": {"a": 1}}),
            call_body(params={"name": "t", "_meta": []}),
            b'{"a":' * 100 + b"1" + b"}" * 100,
        ],
    )
    def test_malformed_body(self, body: bytes) -> None:
        assert reason_of(post(body), MCP) is Reason.MALFORMED_BODY

    @pytest.mark.parametrize(
        "content_type",
        [b"text/plain", b"", b"application/json; charset=utf-16", b"application/jsonx"],
    )
    def test_wrong_media_type(self, content_type: bytes) -> None:
        wrong = request("POST", "/mcp", headers={"content-type": content_type}, body=call_body())
        assert reason_of(wrong, MCP) is Reason.MALFORMED_BODY

    def test_compressed_body(self) -> None:
        assert reason_of(post(call_body(), content_encoding=b"gzip"), MCP) is Reason.MALFORMED_BODY

    @pytest.mark.parametrize("method", ["tools/drop", "Tools/call", "tools/call ", "rpc.discover"])
    def test_unknown_mcp_method(self, method: str) -> None:
        assert reason_of(post(call_body(method=method)), MCP) is Reason.UNSUPPORTED_METHOD

    @pytest.mark.parametrize("method", ["PUT", "OPTIONS", "PATCH", "HEAD"])
    def test_http_method_mcp_does_not_use(self, method: str) -> None:
        assert reason_of(request(method, "/mcp"), MCP) is Reason.UNSUPPORTED_METHOD

    @pytest.mark.parametrize(
        "headers",
        [
            {"mcp_method": b"tools/list"},
            {"mcp_name": b"crm_search"},
            {"mcp_name": b"=?base64?Y3JtX3NlYXJjaA==?="},
            {"mcp_name": b"=?base64?!!?="},
            {"mcp_name": b""},
        ],
    )
    @pytest.mark.parametrize("revision", [None, b"2025-11-25", b"2026-07-28"])
    def test_header_that_differs_from_the_body(
        self, headers: dict[str, bytes], revision: bytes | None
    ) -> None:
        if revision:
            headers = headers | {"mcp_protocol_version": revision}
        assert reason_of(post(call_body(), **headers), MCP) is Reason.HEADER_BODY_MISMATCH

    def test_headers_that_agree(self) -> None:
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        agreeing = post(
            call_body(params={"name": "crm_export", "_meta": meta}),
            mcp_method=b"tools/call",
            mcp_name=b"=?base64?Y3JtX2V4cG9ydA==?=",
            mcp_protocol_version=b"2026-07-28",
        )
        assert operation_of(agreeing, MCP).obj.tool == "crm_export"

    def test_protocol_version(self) -> None:
        unknown = post(call_body(), mcp_protocol_version=b"zzz")
        assert reason_of(unknown, MCP) is Reason.UNSUPPORTED_METHOD
        meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
        body = call_body(params={"name": "t", "_meta": meta})
        mismatch = post(body, mcp_protocol_version=b"2025-11-25")
        assert reason_of(mismatch, MCP) is Reason.HEADER_BODY_MISMATCH

    def test_envoy_filter_that_read_something_else(self) -> None:
        for seen in ({"method": "tools/list"}, {"params": {"name": "crm_search"}}):
            with pytest.raises(RequestFault) as caught:
                mcp.operation(post(call_body()), MCP, {"envoy.filters.http.mcp": seen}, {})
            assert caught.value.reason is Reason.HEADER_BODY_MISMATCH
        agreeing = {"method": "tools/call", "params": {"name": "crm_export"}}
        assert mcp.operation(post(call_body()), MCP, {"envoy.filters.http.mcp": agreeing}, {})

    def test_oversize_body(self) -> None:
        assert reason_of(post(b" " * (256 * 1024 + 1)), MCP) is Reason.OVERSIZE


class TestRouteContext:
    @pytest.mark.parametrize(
        "extensions",
        [
            {"audiance": "x"},
            {"protocol": "ftp"},
            {"require_delegation": "yes"},
            {"strip_delegation": "1"},
            {"body": "partial"},
            {"workload_id": "crm"},
        ],
    )
    def test_unknown_key_or_value_is_denied(self, extensions: dict[str, str]) -> None:
        with pytest.raises(RequestFault) as caught:
            RouteContext.parse(extensions)
        assert caught.value.reason is Reason.MALFORMED_REQUEST

    def test_defaults(self) -> None:
        route = RouteContext.parse({})
        assert (route.bundle, route.protocol, route.require_delegation) == (
            "default",
            "http",
            False,
        )
