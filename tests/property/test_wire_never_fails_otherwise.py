"""Whatever bytes come in, a fault with a reason; whatever was decided, an answer that agrees."""

import contextlib
import json
import string
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from authz_server.core import limits
from authz_server.core.attributes import Protocol
from authz_server.core.decision import (
    ChainRecord,
    Decision,
    PrincipalRecord,
    TicketRecord,
    Verdict,
)
from authz_server.core.errors import InvalidValueError, Reason, RequestFault
from authz_server.core.request import SECURITY_HEADERS, AccessRequest
from authz_server.servers.wire import access_request, check_request_from_json, check_response
from tests.harness.messages import fill, specs

TOKEN = frozenset(string.ascii_lowercase + string.digits + "!#$%&'*+-.^_`|~")
NAMES = st.one_of(
    st.sampled_from(sorted(SECURITY_HEADERS)),
    st.sampled_from(["x-a", "X-A", "x-envoy-auth-partial-body", ":protocol", "Host", "", "a:b"]),
    st.text(max_size=5),
)
VALUES = st.one_of(
    st.sampled_from([b"", b"a", b"a,b", b"7", b"Bearer a,Bearer b", b"true", b"/", b"GET"]),
    st.binary(max_size=8),
)
ANY_TEXT = st.text(max_size=400)  # lone surrogates included: nothing here may assume UTF-8


def outcome(data: bytes) -> AccessRequest | None:
    """Read `data`; a `RequestFault` is the one exception there may be. None for a faulty one."""
    fault: RequestFault | None
    try:
        request = access_request(data)
        fault = request.fault
    except RequestFault as error:
        fault = error
    if fault is None:
        return request
    assert fault.reason in {Reason.MALFORMED_REQUEST, Reason.DUPLICATE_HEADER, Reason.OVERSIZE}
    assert 0 < len(fault.detail) < limits.DETAIL_CHARS_MAX
    return None


@st.composite
def plausible_checks(draw: st.DrawFn) -> bytes:
    """Return checks that mostly read well, with odd headers and bodies."""
    message = CheckRequest()
    http = message.attributes.request.http
    http.method, http.path, http.host = "GET", draw(st.sampled_from(["/", "/a,b", ""])), "h"
    http.raw_body = draw(st.binary(max_size=9))
    lines = draw(st.lists(st.tuples(NAMES, VALUES), max_size=6))
    for name, value in lines:
        if draw(st.booleans()) or not name.isprintable():
            http.header_map.headers.add(key=_utf8(name), raw_value=value)
        else:
            http.header_map.headers.add(key=_utf8(name), value=value.decode("latin-1"))
    if not lines or draw(st.integers(0, 20)) == 0:
        http.headers["x-a"] = "1"
    return message.SerializeToString()


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    outcome(data)


@given(specs(CheckRequest.DESCRIPTOR))
def test_any_check(spec: dict[str, Any]) -> None:
    message = CheckRequest()
    fill(message, spec)
    outcome(message.SerializeToString())


@given(plausible_checks(), st.data())
def test_any_damage_to_a_check(data: bytes, draw: st.DataObject) -> None:
    start = draw.draw(st.integers(0, len(data)))
    end = draw.draw(st.integers(start, min(len(data), start + 4)))
    outcome(data[:start] + draw.draw(st.binary(max_size=4)) + data[end:])


@given(plausible_checks())
def test_what_is_read_is_unambiguous(data: bytes) -> None:
    request = outcome(data)
    if request is None or request.http is None:
        return
    fields = request.http.headers.fields
    assert fields
    for name, lines in fields.items():
        assert set(name.removeprefix(":")) <= TOKEN
        assert name.removeprefix(":")
        assert lines
        assert len(lines) == 1 or name not in SECURITY_HEADERS
    assert fields.get("host", (b"h",)) == fields.get(":authority", (b"h",)) == (b"h",)
    assert fields.get(":path", (request.http.path.encode(),)) == (request.http.path.encode(),)


@given(
    st.one_of(
        st.binary(max_size=50), st.text(max_size=50).map(lambda t: t.encode("utf-8", "ignore"))
    )
)
def test_any_json(data: bytes) -> None:
    with contextlib.suppress(InvalidValueError):
        check_request_from_json(b"{" + data)


CHAINS = st.builds(
    ChainRecord,
    subject=ANY_TEXT,
    subject_issuer=ANY_TEXT,
    actors=st.lists(ANY_TEXT, max_size=5).map(tuple),
    txn=ANY_TEXT,
    assurance=st.just("sts"),
    mode=st.just("exercise"),
    token_sha256=st.just(()),
)
PRINCIPALS = st.builds(
    PrincipalRecord,
    spiffe_id=ANY_TEXT,
    trust_domain=ANY_TEXT,
    kind=st.none(),
    assurance=st.just("mtls"),
)
TICKETS = st.builds(
    TicketRecord,
    id=st.uuids().map(str),
    status=st.sampled_from(["pending", "approved", "rejected", "expired"]),
    expires_at=st.datetimes(timezones=st.just(UTC)),
    approver_group=ANY_TEXT,
)
OUTCOMES = st.one_of(
    st.just((Verdict.ALLOW, Reason.OK)),
    st.tuples(
        st.sampled_from([Verdict.DENY, Verdict.ESCALATE]),
        st.sampled_from([reason for reason in Reason if reason is not Reason.OK]),
    ),
)


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    """Return decisions of every verdict, reason and protocol, with any text in them."""
    verdict, reason = draw(OUTCOMES)
    return Decision(
        verdict=verdict,
        reason=reason,
        detail=draw(ANY_TEXT),
        time=datetime(2026, 11, 24, tzinfo=UTC),
        revision=draw(ANY_TEXT),
        rules=draw(st.lists(ANY_TEXT, max_size=40).map(tuple)),
        bundle=draw(st.none() | ANY_TEXT),
        principal=draw(st.none() | PRINCIPALS),
        chain=draw(st.none() | CHAINS),
        ticket=draw(st.none() | TICKETS),
        protocol=draw(st.sampled_from(Protocol)),
        json_rpc_id=draw(st.none() | ANY_TEXT | st.integers().map(str) | ANY_TEXT.map(json.dumps)),
        strip_delegation=draw(st.booleans()),
    )


@given(decisions())
def test_every_decision_has_an_answer_that_agrees(decision: Decision) -> None:
    data = check_response(decision, decision_id="id-1")
    response = CheckResponse.FromString(data)
    assert data
    assert response.HasField("status")
    assert (response.status.code == 0) == (decision.verdict is Verdict.ALLOW)
    assert not response.HasField("error_response")
    assert response.dynamic_metadata.fields["verdict"].string_value == decision.verdict
    if decision.protocol is Protocol.TCP:
        assert response.WhichOneof("http_response") is None
    elif decision.verdict is Verdict.ALLOW:
        assert response.WhichOneof("http_response") == "ok_response"
    else:
        denied = response.denied_response
        assert response.WhichOneof("http_response") == "denied_response"
        assert (denied.status.code, response.status.code) in {(401, 16), (403, 7)}
        assert len(denied.body.encode()) <= limits.DENIED_BODY_BYTES_MAX
        if decision.protocol is not Protocol.GRPC:
            json.loads(denied.body)
        for option in denied.headers:
            assert option.header.value.isascii()
            assert option.header.value.isprintable()
