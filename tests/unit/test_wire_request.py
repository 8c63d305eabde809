"""Reading a CheckRequest: what is taken from where, and every way to be refused."""

from collections.abc import Callable
from typing import Any

import pytest

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from authz_server.core import limits
from authz_server.core.errors import InvalidValueError, Reason, RequestFault
from authz_server.core.request import SECURITY_HEADERS, AccessRequest, HttpRequest
from authz_server.servers.header_lines import LISTS, SINGLETONS, SINGLETONS_WITH_COMMA
from authz_server.servers.wire import access_request, check_request_from_json

Attributes = Any
Http = Any
Edit = Callable[[Attributes], object]

PSEUDO = [(":method", b"POST"), (":path", b"/a?b=1"), (":authority", b"a.example")]


def check(edit: Edit | None = None, *, headers: list[tuple[str, bytes]] | None = None) -> bytes:
    """Return a valid check, its raw headers replaced by `headers` and then changed by `edit`."""
    message = CheckRequest()
    attributes = message.attributes
    attributes.source.address.socket_address.address = "192.0.2.7"
    attributes.source.address.socket_address.port_value = 4711
    http = attributes.request.http
    http.method, http.path, http.host, http.scheme = "POST", "/a?b=1", "a.example", "https"
    http.protocol = "HTTP/2"
    for name, value in PSEUDO if headers is None else headers:
        http.header_map.headers.add(key=name, raw_value=value)
    if edit is not None:
        edit(attributes)
    return message.SerializeToString()


def read(edit: Edit | None = None, **kwargs: Any) -> AccessRequest:
    return access_request(check(edit, **kwargs))


def read_http(edit: Edit | None = None, **kwargs: Any) -> HttpRequest:
    http = read(edit, **kwargs).http
    assert http is not None
    return http


def fault(data: bytes) -> RequestFault:
    """Return what is wrong with `data`: with the whole of it, or with its HTTP part."""
    try:
        request = access_request(data)
    except RequestFault as found:
        return found
    assert request.fault is not None, "read without a fault"
    assert request.http is None
    return request.fault


@pytest.mark.parametrize(
    "name", ["txn_token", "delegation_chain", "Txn_Token", "mcp_session-id", "x_authz_decision_id"]
)
def test_a_name_that_cgi_takes_for_a_security_header(name: str) -> None:
    found = fault(check(headers=[*PSEUDO, (name, b"x")]))
    assert found.reason is Reason.MALFORMED_REQUEST
    assert read_http(headers=[*PSEUDO, ("user_agent", b"x")])


def test_a_faulty_request_still_says_who_sent_it() -> None:
    def edit(attributes: Attributes) -> None:
        attributes.source.certificate = "certificate"
        attributes.context_extensions["bundle"] = "data"

    request = read(edit, headers=[*PSEUDO, ("txn-token", b"a"), ("txn-token", b"b")])
    assert request.fault is not None
    assert request.fault.reason is Reason.DUPLICATE_HEADER
    assert (request.peer_certificate, request.extensions) == ("certificate", {"bundle": "data"})
    assert request.source_address == "192.0.2.7"


def as_text(**headers: str) -> Edit:
    """Send the headers as a map of joined strings instead."""

    def edit(attributes: Attributes) -> None:
        http = attributes.request.http
        http.ClearField("header_map")
        for name, value in ({":path": "/a?b=1"} | headers).items():
            http.headers[name.replace("_", "-")] = value

    return edit


# --- what is taken from where ---------------------------------------------------------------


def test_every_part_has_its_place() -> None:
    def edit(attributes: Attributes) -> None:
        attributes.source.certificate = "PEM"
        attributes.source.principal = "spiffe://d/a"
        attributes.destination.principal = "spiffe://d/tool"
        attributes.destination.address.socket_address.address = "192.0.2.8"
        attributes.destination.address.socket_address.port_value = 443
        attributes.destination.labels["node"] = "n-1"
        attributes.tls_session.sni = "a.example"
        attributes.context_extensions["bundle"] = "tools"
        attributes.request.http.raw_body = b"\xff"
        attributes.request.http.size = 1
        attributes.metadata_context.filter_metadata["f"].update({"a": [1, "b", None, {"c": True}]})
        attributes.metadata_context.typed_filter_metadata["g"].value = b"anything"
        attributes.route_metadata_context.filter_metadata["f"].update({"not": "read"})

    request = read(edit)
    assert (request.peer_certificate, request.peer_principal) == ("PEM", "spiffe://d/a")
    assert (request.source_address, request.listener) == ("192.0.2.7", "192.0.2.8:443")
    assert (request.destination_principal, request.node) == ("spiffe://d/tool", "n-1")
    assert (request.sni, request.extensions) == ("a.example", {"bundle": "tools"})
    assert request.metadata == {"f": {"a": [1.0, "b", None, {"c": True}]}}
    assert request.http == HttpRequest(
        method="POST",
        scheme="https",
        host="a.example",
        path="/a?b=1",
        headers=request.http.headers if request.http else pytest.fail("no HTTP request"),
        body=b"\xff",
        body_truncated=False,
        protocol="HTTP/2",
        size=1,
    )
    assert request.http.headers.fields == {name: (value,) for name, value in PSEUDO}


def test_what_is_absent_is_none() -> None:
    request = read()
    assert (request.listener, request.node, request.sni) == (None, None, None)
    assert (request.extensions, request.metadata) == ({}, {})


def test_a_tcp_connection_has_no_http_request() -> None:
    request = read(lambda attributes: attributes.ClearField("request"))
    assert request.http is None
    assert request.source_address == "192.0.2.7"


@pytest.mark.parametrize(
    ("edit", "listener"),
    [
        (lambda a: setattr(a.socket_address, "address", "2001:db8::1"), "[2001:db8::1]:0"),
        (lambda a: setattr(a.pipe, "path", "/run/in.sock"), "/run/in.sock"),
        (
            lambda a: setattr(a.envoy_internal_address, "server_listener_name", "inner"),
            "envoy://inner",
        ),
    ],
    ids=["ipv6", "pipe", "internal"],
)
def test_a_listener_may_be_elsewhere_than_on_ipv4(edit: Edit, listener: str) -> None:
    assert read(lambda attributes: edit(attributes.destination.address)).listener == listener


def test_a_peer_on_a_socket_has_no_address() -> None:
    def edit(attributes: Attributes) -> None:
        attributes.source.address.pipe.path = "@peer"

    assert read(edit).source_address is None


# --- headers --------------------------------------------------------------------------------


def test_raw_lines_stay_apart_and_names_become_lower_case() -> None:
    headers = [*PSEUDO, ("X-A", b"1"), ("x-b", b"\xff"), ("x-a", b"2, 3"), ("x-empty", b"")]
    fields = read_http(headers=headers).headers
    assert fields.lines("x-a") == (b"1", b"2, 3")
    assert fields.lines("x-b") == (b"\xff",)
    assert fields.lines("x-empty") == (b"",)


def test_a_raw_line_may_carry_its_value_as_text() -> None:
    def edit(attributes: Attributes) -> None:
        attributes.request.http.header_map.headers.add(key="x-a", value="é")
        attributes.request.http.header_map.headers.add(key="x-b", value="text", raw_value=b"raw")

    fields = read_http(edit).headers
    assert (fields.one("x-a"), fields.one("x-b")) == ("é".encode(), b"raw")


def test_the_map_of_text_is_read_when_there_are_no_raw_lines() -> None:
    assert read_http(as_text(x_a="1,2")).headers.lines("x-a") == (b"1,2",)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "a\nb",
        "a:b",
        "x:",
        ":",
        "::path",
        ":other",
        "é",
        "\u212a",
        "a\0",
        '"',
        "a,b",
    ],
)
def test_a_name_is_a_token(name: str) -> None:
    assert fault(check(headers=[*PSEUDO, (name, b"1")])).reason is Reason.MALFORMED_REQUEST


@pytest.mark.parametrize("name", ["x-a", "X-A", "0", "!#$%&'*+-.^_`|~", ":protocol"])
def test_every_token_is_a_name(name: str) -> None:
    assert read_http(headers=[*PSEUDO, (name, b"1")]).headers.one(name.lower()) == b"1"


def test_colons_of_one_name_do_not_excuse_another() -> None:
    headers = [(":path", b"/a?b=1"), (":protocol", b"x"), (":protocol", b"y"), ("x:", b"1")]
    assert fault(check(headers=headers)).reason is Reason.MALFORMED_REQUEST


@pytest.mark.parametrize("name", sorted(SECURITY_HEADERS))
@pytest.mark.parametrize("spelling", [str.lower, str.upper], ids=["lower", "upper"])
def test_no_security_header_comes_twice(name: str, spelling: Callable[[str], str]) -> None:
    headers = [(name, b"POST"), ("x-a", b"1"), (spelling(name), b"POST")]
    assert fault(check(headers=headers)).reason is Reason.DUPLICATE_HEADER


def test_every_security_header_has_a_rule_for_its_commas() -> None:
    ruled = [
        SINGLETONS,
        SINGLETONS_WITH_COMMA,
        LISTS,
        frozenset({"authorization", ":path"}),
    ]
    assert sum(map(len, ruled)) == len(SECURITY_HEADERS)
    assert frozenset().union(*ruled) == SECURITY_HEADERS


@pytest.mark.parametrize("name", sorted(SINGLETONS - {"host", ":authority", ":method"}))
def test_a_comma_in_a_singleton_means_two_lines(name: str) -> None:
    rest = [line for line in PSEUDO if line[0] != name]
    assert fault(check(headers=[*rest, (name, b"a,b")])).reason is Reason.DUPLICATE_HEADER
    text = as_text(**{name.replace("-", "_"): "a,b"})
    assert fault(check(text)).reason is Reason.DUPLICATE_HEADER


@pytest.mark.parametrize("name", ["host", ":authority"])
def test_two_hosts_are_two_hosts_even_when_envoy_agrees(name: str) -> None:
    def edit(attributes: Attributes) -> None:
        attributes.request.http.host = "a.example,b.example"

    headers = [(":path", b"/a?b=1"), (name, b"a.example,b.example")]
    assert fault(check(edit, headers=headers)).reason is Reason.DUPLICATE_HEADER


@pytest.mark.parametrize("name", sorted(SINGLETONS_WITH_COMMA))
def test_a_comma_that_may_be_in_a_value_is_believed_of_raw_lines_only(name: str) -> None:
    assert read_http(headers=[*PSEUDO, (name, b"a,b")]).headers.one(name) == b"a,b"
    text = as_text(**{name.replace("-", "_"): "a,b"})
    assert fault(check(text)).reason is Reason.DUPLICATE_HEADER


@pytest.mark.parametrize("name", sorted(LISTS))
def test_a_list_may_hold_commas(name: str) -> None:
    assert read_http(headers=[*PSEUDO, (name, b"a, b")]).headers.one(name) == b"a, b"
    assert read_http(as_text(**{name.replace("-", "_"): "a,b"})).headers.one(name) == b"a,b"


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        (b"Bearer abc", True),
        (b"Bearer a,Bearer b", False),
        (b"Bearer a,", False),
        (b",Bearer a", False),
        (b"Bearer a=b,Bearer c=d", False),
        (b"Digest a=1,Bearer b", False),
        (b"Digest a=1,Basic b=", False),
        (b'Digest username="a,b", realm="c\\"d", nc=00000001', True),
        (b"AWS4-HMAC-SHA256 Credential=a/b/c,SignedHeaders=host;x, Signature=ab12", True),
        (b'Digest a="1,Bearer b', False),
    ],
)
def test_authorization_is_one_scheme(value: bytes, is_one: bool) -> None:
    headers = [*PSEUDO, ("authorization", value)]
    if is_one:
        assert read_http(headers=headers).headers.one("authorization") == value
    else:
        assert fault(check(headers=headers)).reason is Reason.DUPLICATE_HEADER


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (":path", b"/a"),
        (":method", b"GET"),
        (":authority", b"b.example"),
        (":scheme", b"http"),
        ("host", b"b.example"),
        ("host", b"A.example"),
    ],
)
def test_headers_agree_with_the_request_line(name: str, value: bytes) -> None:
    rest = [line for line in PSEUDO if line[0] != name]
    assert fault(check(headers=[*rest, (name, value)])).reason is Reason.MALFORMED_REQUEST


def test_a_host_that_agrees_is_no_contradiction() -> None:
    assert read_http(headers=[*PSEUDO, ("host", b"a.example")]).host == "a.example"


# --- body -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers", "truncated"),
    [
        (b"", [], False),
        (b"", [("content-length", b"7")], False),  # not asked for, so not cut
        (b"1234567", [], False),
        (b"1234567", [("content-length", b"7")], False),
        (b"123456", [("content-length", b"7")], True),
        (b"1", [("x-envoy-auth-partial-body", b"false")], False),
        (b"1", [("x-envoy-auth-partial-body", b"true")], True),
        (b"1", [("x-envoy-auth-partial-body", b"")], True),
        (b"1", [("x-envoy-auth-partial-body", b"false")] * 2, True),
    ],
)
def test_a_cut_body_is_known(
    body: bytes, headers: list[tuple[str, bytes]], truncated: bool
) -> None:
    def edit(attributes: Attributes) -> None:
        attributes.request.http.raw_body = body

    http = read_http(edit, headers=[*PSEUDO, *headers])
    assert (http.body, http.body_truncated) == (body, truncated)


@pytest.mark.parametrize(("size", "truncated"), [(-1, True), (0, False), (1, False)])
def test_a_body_of_unknown_size_may_be_cut(size: int, truncated: bool) -> None:
    def edit(attributes: Attributes) -> None:
        attributes.request.http.raw_body = b"1"
        attributes.request.http.size = size

    assert read_http(edit, headers=PSEUDO).body_truncated is truncated


@pytest.mark.parametrize(
    "length", [b"1", b"", b"-1", b"+7", b"7 ", b"0x7", b"7.0", b"\xb2", b"1" * 19, b"9" * 5000]
)
def test_the_declared_length_is_a_number_no_smaller_than_the_body(length: bytes) -> None:
    def edit(attributes: Attributes) -> None:
        attributes.request.http.raw_body = b"1234567"

    data = check(edit, headers=[*PSEUDO, ("content-length", length)])
    assert fault(data).reason is Reason.MALFORMED_REQUEST


# --- refused --------------------------------------------------------------------------------


def _set_http(**values: object) -> Edit:
    def edit(attributes: Attributes) -> None:
        for name, value in values.items():
            setattr(attributes.request.http, name, value)

    return edit


def _both_forms(attributes: Attributes) -> None:
    attributes.request.http.headers["x-a"] = "1"


def _many_extensions(attributes: Attributes) -> None:
    for number in range(limits.CONTEXT_EXTENSIONS_MAX + 1):
        attributes.context_extensions[str(number)] = ""


def _many_text_headers(attributes: Attributes) -> None:
    as_text(**{f"x{number}": "" for number in range(limits.HEADERS_MAX)})(attributes)


def _metadata(value: object) -> Edit:
    def edit(attributes: Attributes) -> None:
        attributes.metadata_context.filter_metadata["f"].update({"a": value})

    return edit


def _valueless(attributes: Attributes) -> None:
    attributes.metadata_context.filter_metadata["f"].fields["a"].SetInParent()


def _nested(depth: int) -> object:
    value: object = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff", Reason.MALFORMED_REQUEST),
        (b"", Reason.MALFORMED_REQUEST),
        (CheckRequest(attributes={}).SerializeToString(), Reason.MALFORMED_REQUEST),
        (b"\x0a" * limits.CHECK_REQUEST_BYTES_MAX + b"\x0a", Reason.OVERSIZE),
        # A string field that is not UTF-8: attributes.source.principal.
        (b"\x0a\x06\x0a\x04\x22\x02\xff\xfe", Reason.MALFORMED_REQUEST),
        (check(headers=[]), Reason.MALFORMED_REQUEST),
        (check(_both_forms), Reason.MALFORMED_REQUEST),
        (check(_set_http(body="text")), Reason.MALFORMED_REQUEST),
        (check(_set_http(query="b=1")), Reason.MALFORMED_REQUEST),
        (check(_set_http(fragment="f")), Reason.MALFORMED_REQUEST),
        (check(_set_http(method=""), headers=[("x-a", b"")]), Reason.MALFORMED_REQUEST),
        (check(_set_http(method="M" * (limits.METHOD_BYTES_MAX + 1))), Reason.OVERSIZE),
        (check(_set_http(path="/" * (limits.RAW_PATH_BYTES_MAX + 1))), Reason.OVERSIZE),
        (check(_set_http(path="/" + "é" * (limits.RAW_PATH_BYTES_MAX // 2))), Reason.OVERSIZE),
        (check(_set_http(host="h" * (limits.HOST_BYTES_MAX + 1))), Reason.OVERSIZE),
        (check(_set_http(raw_body=b"b" * (limits.BODY_BYTES_MAX + 1))), Reason.OVERSIZE),
        (check(headers=[("x-a", b"")] * (limits.HEADERS_MAX + 1)), Reason.OVERSIZE),
        (check(_many_text_headers), Reason.OVERSIZE),
        (check(_many_extensions), Reason.OVERSIZE),
        (
            check(
                lambda a: setattr(
                    a.source, "certificate", "c" * (limits.PEER_CERTIFICATE_BYTES_MAX + 1)
                )
            ),
            Reason.OVERSIZE,
        ),
        (check(_metadata([None] * limits.JSON_MEMBERS_MAX)), Reason.OVERSIZE),
        (check(_metadata(float("nan"))), Reason.MALFORMED_REQUEST),
        (check(_metadata(float("inf"))), Reason.MALFORMED_REQUEST),
        (check(_valueless), Reason.MALFORMED_REQUEST),
        # protobuf's own bound: 100 messages in one another, two for each list.
        (check(_metadata(_nested(48))), Reason.MALFORMED_REQUEST),
    ],
)
def test_refused(data: bytes, reason: Reason) -> None:
    found = fault(data)
    assert found.reason is reason
    assert found.detail
    assert not found.detail.endswith(".")


def test_nesting_that_protobuf_admits_is_read() -> None:
    value = read(_metadata(_nested(40))).metadata["f"]["a"]
    for _ in range(40):
        assert isinstance(value, list)
        (value,) = value
    assert value == []


def test_limits_are_inclusive() -> None:
    http = read_http(
        _set_http(
            method="M" * limits.METHOD_BYTES_MAX,
            path="/" * limits.RAW_PATH_BYTES_MAX,
            host="h" * limits.HOST_BYTES_MAX,
            raw_body=b"b" * limits.BODY_BYTES_MAX,
        ),
        headers=[("x-a", b"")] * limits.HEADERS_MAX,
    )
    assert len(http.headers.lines("x-a")) == limits.HEADERS_MAX


# --- JSON -----------------------------------------------------------------------------------


def test_json_is_read_as_protobuf_spells_it() -> None:
    text = b'{"attributes": {"request": {"http": {"method": "GET", "rawBody": "/w=="}}}}'
    message = CheckRequest.FromString(check_request_from_json(text))
    assert message.attributes.request.http.raw_body == b"\xff"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"attribute": {}}',
        b'{"attributes": 1}',
        b'{"attributes": {"a',
        b"[" * 9999,
    ],
)
def test_other_json_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidValueError, match="not a CheckRequest"):
        check_request_from_json(text)
