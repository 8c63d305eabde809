"""What a real Envoy puts into a check, and what it makes of our answers."""

import asyncio
import json
import socket
import ssl
import struct
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from mcp import ClientSession, MCPError
from mcp.client.streamable_http import streamable_http_client

from authz_server.agent import Denied, Escalated, typed_refusals
from authz_server.core.attributes import Protocol
from authz_server.core.decision import Decision, PrincipalRecord, TicketRecord, Verdict
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.protocols import a2a
from authz_server.core.request import SECURITY_HEADERS, AccessRequest, RouteContext
from authz_server.core.svid import peer_identity
from authz_server.envoy_config.enforcement_point import SvidFiles
from authz_server.servers.answer import LAST_RESORT
from authz_server.servers.wire import access_request, check_response
from tests.e2e.forge import Authority, spiffe
from tests.e2e.raw_http import Answer, NoAnswerError, RawConnection, exchange
from tests.e2e.scripted_pdp import (
    A2A_FILTER,
    BODY_BYTES_MAX,
    FORGED,
    METADATA_HEADER,
    PROXY_FILTER,
    TLV_TYPE,
    Scripted,
    running,
)

ID = "0193a5b2-7e6f-7c3d-9a1b-2f6d5c4b3a29"
NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
PRINCIPAL = PrincipalRecord(
    spiffe_id=spiffe("agent/narrow"), trust_domain="mesh.example", kind="agent", assurance="mtls"
)
TICKET = TicketRecord(id="apr-1", status="pending", expires_at=NOW, approver_group="finance-oncall")


def decision(
    reason: Reason,
    verdict: Verdict = Verdict.DENY,
    *,
    protocol: Protocol = Protocol.HTTP,
    ticket: TicketRecord | None = None,
    json_rpc_id: str | None = None,
    strip_delegation: bool = False,
) -> Decision:
    anonymous = reason in {Reason.NO_PRINCIPAL, Reason.MALFORMED_PRINCIPAL}
    return Decision(
        verdict=verdict,
        reason=reason,
        detail="",
        time=NOW,
        revision="r1",
        bundle="tools",
        rules=("crm-read",),
        principal=None if anonymous else PRINCIPAL,
        protocol=protocol,
        ticket=ticket,
        json_rpc_id=json_rpc_id,
        strip_delegation=strip_delegation,
    )


def answer(final: Decision) -> bytes:
    return check_response(final, decision_id=ID)


ALLOW = answer(decision(Reason.OK, Verdict.ALLOW))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def client_tls(authority: Authority) -> ssl.SSLContext:
    svid = authority.issue(spiffe("agent/narrow"))
    with tempfile.TemporaryDirectory() as directory:
        certificate, key = Path(directory, "c.crt"), Path(directory, "c.key")
        certificate.write_bytes(svid.certificate_pem)
        key.write_bytes(svid.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(certificate, key)
    return context


@pytest.fixture(scope="module")
def scripted(authority: Authority) -> Iterator[Scripted]:
    with tempfile.TemporaryDirectory(prefix="authz-") as name:
        directory = Path(name)
        svid = authority.issue(spiffe("tool/recorder"))
        files = SvidFiles(
            certificate=directory / "e.crt",
            private_key=directory / "e.key",
            trust_bundle=directory / "ca.crt",
        )
        files.certificate.write_bytes(svid.certificate_pem)
        files.private_key.write_bytes(svid.key_pem)
        files.trust_bundle.write_bytes(authority.pem)
        with running(directory, files) as everything:
            yield everything


def request(
    *lines: bytes, method: bytes = b"GET", path: bytes = b"/p", body: bytes | None = None
) -> bytes:
    head = [method + b" " + path + b" HTTP/1.1", b"Host: tool.example", *lines]
    if body is not None:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*head, b"", body or b""])


def sent(
    scripted: Scripted, listener: str, data: bytes, *, tls: ssl.SSLContext | None = None
) -> tuple[Answer, AccessRequest]:
    """Send `data`, allowed by the PDP, and return the answer and what we make of the check."""
    scripted.told(ALLOW)
    received = exchange(scripted.port(listener), data, tls=tls)
    (check,) = scripted.checks
    return received, access_request(check)


def refused(scripted: Scripted, listener: str, data: bytes) -> Reason:
    """Send `data` and return why we refuse to read the check."""
    fault = sent(scripted, listener, data)[1].fault
    assert fault is not None, "read without a fault"
    return fault.reason


# --- what Envoy sends -----------------------------------------------------------------------


def test_bytes_arrive_as_the_client_sent_them(scripted: Scripted) -> None:
    body = b'{"a":"\xff\xfe"}'
    data = request(b"X-Foo: 1", b"x-foo: 2,3", b"x-bin: \xff\xfe", method=b"POST", body=body)
    _, read = sent(scripted, "raw", data)
    assert read.http is not None
    assert (read.http.method, read.http.path, read.http.host) == ("POST", "/p", "tool.example")
    assert (read.http.scheme, read.http.protocol) == ("http", "HTTP/1.1")
    assert read.http.headers.lines("x-foo") == (b"1", b"2,3")
    assert read.http.headers.lines("x-bin") == (b"\xff\xfe",)
    assert read.http.headers.one(":authority") == b"tool.example"
    assert (read.http.body, read.http.body_truncated) == (body, False)
    assert read.source_address == "127.0.0.1"
    assert read.listener == f"127.0.0.1:{scripted.port('raw')}"
    assert read.extensions == {"resource": "crm", "bundle": "tools"}
    assert (read.peer_certificate, read.sni) == ("", None)


def test_the_client_certificate_and_server_name_arrive(
    scripted: Scripted, client_tls: ssl.SSLContext
) -> None:
    _, read = sent(scripted, "mtls", request(), tls=client_tls)
    assert str(peer_identity(read.peer_certificate).spiffe_id) == spiffe("agent/narrow")
    assert read.peer_principal == spiffe("agent/narrow")
    assert read.destination_principal == spiffe("tool/recorder")
    assert read.sni == "tool.example"


def test_a_cut_body_is_known_to_be_cut_whatever_the_client_claims(scripted: Scripted) -> None:
    claim = b"x-envoy-auth-partial-body: false"
    data = request(claim, method=b"POST", body=b"z" * (BODY_BYTES_MAX + 1))
    _, read = sent(scripted, "raw", data)
    assert read.http is not None
    assert read.http.body_truncated
    assert len(read.http.body) == BODY_BYTES_MAX
    # Envoy's own words only: a client cannot have its whole body called cut, either.
    claim = b"x-envoy-auth-partial-body: true"
    _, read = sent(scripted, "raw", request(claim, method=b"POST", body=b"whole"))
    assert read.http is not None
    assert not read.http.body_truncated


def test_text_mode_is_read_as_far_as_it_is_not_ambiguous(scripted: Scripted) -> None:
    _, read = sent(scripted, "text_no_body", request(b"x-foo: 1", b"x-foo: 2", b"x-bin: \xff"))
    assert read.http is not None
    assert read.http.headers.lines("x-foo") == (b"1,2",)
    assert read.http.headers.lines("x-bin") == (b"!",)


def test_text_mode_bodies_are_refused(scripted: Scripted) -> None:
    data = request(method=b"POST", body=b'{"a":1}')
    assert refused(scripted, "text", data) is Reason.MALFORMED_REQUEST


# Envoy joins these itself, and defines them as lists or takes them off.
NOT_A_DUPLICATE = {
    "raw": {"content-encoding", "upgrade", "x-forwarded-client-cert"},
    "text_no_body": {
        "a2a-extensions",
        "content-encoding",
        "delegation-chain",
        "upgrade",
        "x-a2a-extensions",
        "x-forwarded-client-cert",
    },
}
NEVER_CHECKED = {"content-length", "transfer-encoding"}  # Envoy answers 400 and 501


@pytest.mark.parametrize("listener", ["raw", "text_no_body"])
@pytest.mark.parametrize("name", sorted(h for h in SECURITY_HEADERS if not h.startswith(":")))
def test_a_security_header_sent_twice_never_gets_through(
    scripted: Scripted, listener: str, name: str
) -> None:
    line = name.encode() + b": "
    data = request(line + b"1", line + b"2")
    if name in NEVER_CHECKED:
        scripted.told(ALLOW)
        assert exchange(scripted.port(listener), data, tls=None).status in {400, 501}
        assert not scripted.checks
    elif name in NOT_A_DUPLICATE[listener]:
        sent(scripted, listener, data)
    else:
        assert refused(scripted, listener, data) is Reason.DUPLICATE_HEADER


def test_a_tcp_connection_has_no_http_request(scripted: Scripted) -> None:
    _, read = sent(scripted, "tcp", request())
    assert read.http is None
    assert read.source_address == "127.0.0.1"
    assert read.listener == f"127.0.0.1:{scripted.port('tcp')}"


# --- why a PROXY header carries no delegation (docs/adr/0055) --------------------------------


def proxy_header(*tlvs: bytes) -> bytes:
    """Return a PROXY v2 header from 10.1.2.3 to 10.9.9.9 with these values of `TLV_TYPE`."""
    addresses = bytes([10, 1, 2, 3, 10, 9, 9, 9]) + struct.pack("!HH", 1111, 5432)
    body = addresses + b"".join(struct.pack("!BH", TLV_TYPE, len(tlv)) + tlv for tlv in tlvs)
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H", len(body)) + body


def behind_header(scripted: Scripted, header: bytes, tls: ssl.SSLContext) -> AccessRequest:
    """Connect behind `header`; return what we make of the check."""
    scripted.told(ALLOW)
    address = ("127.0.0.1", scripted.port("proxied"))
    with socket.create_connection(address, timeout=10) as plain:
        plain.sendall(header)
        with tls.wrap_socket(plain) as connection:
            connection.sendall(request())
            assert connection.recv(1)
    (check,) = scripted.checks
    return access_request(check)


def test_whoever_is_on_the_way_writes_the_header(
    scripted: Scripted, client_tls: ssl.SSLContext
) -> None:
    """A relay needs no key: the caller's certificate, and beside it what the relay said."""
    read = behind_header(scripted, proxy_header(b"chain-of-the-relay"), client_tls)
    assert str(peer_identity(read.peer_certificate).spiffe_id) == spiffe("agent/narrow")
    assert read.metadata == {PROXY_FILTER: {"delegation": "chain-of-the-relay"}}
    # The addresses of the connection are the relay's words too, and nothing tells of it.
    assert (read.source_address, read.listener) == ("10.1.2.3", "10.9.9.9:5432")
    silent = behind_header(scripted, proxy_header(), client_tls)
    assert (silent.metadata, silent.source_address) == ({}, "10.1.2.3")


def test_a_repeated_value_is_seen_once(scripted: Scripted, client_tls: ssl.SSLContext) -> None:
    """CVE-2026-47692: two chains in one header cannot be denied by whoever sees the first alone."""
    read = behind_header(scripted, proxy_header(b"first", b"second"), client_tls)
    assert read.metadata == {PROXY_FILTER: {"delegation": "first"}}


def test_bytes_of_a_value_are_replaced(scripted: Scripted, client_tls: ssl.SSLContext) -> None:
    read = behind_header(scripted, proxy_header(b"\xff\xfe"), client_tls)
    assert read.metadata == {PROXY_FILTER: {"delegation": "!!"}}


# --- what Envoy makes of our answers --------------------------------------------------------


def denied(scripted: Scripted, final: Decision, listener: str = "raw") -> Answer:
    """Let the PDP answer with `final`; return what the client got. Nothing reaches the upstream."""
    scripted.told(answer(final))
    received = exchange(scripted.port(listener), request(), tls=None)
    assert len(scripted.checks) == 1
    assert not scripted.hits
    return received


def test_an_empty_answer_would_let_the_request_pass(scripted: Scripted) -> None:
    """The trap that everything here is built around."""
    scripted.told(b"")
    assert exchange(scripted.port("raw"), request(), tls=None).status == 200
    assert len(scripted.hits) == 1


def test_allow_reaches_the_upstream_under_our_decision_id(scripted: Scripted) -> None:
    lines = (b"x-authz-decision-id: mine", b"x-authz-decision-id: too", b"x-authz-verdict: allow")
    received, _ = sent(scripted, "raw", request(*lines, b"txn-token: t", b"delegation-chain: l"))
    (hit,) = scripted.hits
    assert received.status == 200
    assert received.headers["x-authz-decision-id"] == ID != FORGED
    assert hit.values("x-authz-decision-id") == [ID]
    assert hit.values("x-authz-verdict") == []
    assert (hit.values("txn-token"), hit.values("delegation-chain")) == (["t"], ["l"])


def test_strip_delegation_takes_the_chain_off(scripted: Scripted) -> None:
    scripted.told(answer(decision(Reason.OK, Verdict.ALLOW, strip_delegation=True)))
    lines = (b"txn-token: t", b"delegation-chain: l", b"authorization: Bearer x")
    assert exchange(scripted.port("raw"), request(*lines), tls=None).status == 200
    (hit,) = scripted.hits
    assert (hit.values("txn-token"), hit.values("delegation-chain")) == ([], [])
    assert hit.values("authorization") == ["Bearer x"]


def test_deny(scripted: Scripted) -> None:
    received = denied(scripted, decision(Reason.DENIED_BY_RULE))
    assert received.status == 403
    assert received.headers["content-type"] == "application/problem+json"
    assert received.headers["x-authz-decision-id"] == ID
    problem = json.loads(received.body)
    assert (problem["verdict"], problem["reason"], problem["status"]) == (
        "deny",
        "DENIED_BY_RULE",
        403,
    )


def test_unauthenticated(scripted: Scripted) -> None:
    received = denied(scripted, decision(Reason.NO_PRINCIPAL))
    assert received.status == 401
    assert received.headers["www-authenticate"] == 'Mutual-TLS realm="spiffe"'


def test_escalate(scripted: Scripted) -> None:
    final = decision(Reason.ESCALATED_BY_RULE, Verdict.ESCALATE, ticket=TICKET)
    received = denied(scripted, final)
    assert received.status == 403
    assert received.headers["x-authz-verdict"] == "escalate"
    assert json.loads(received.body)["access_request"]["id"] == "apr-1"


def test_mcp(scripted: Scripted) -> None:
    final = decision(
        Reason.ESCALATED_BY_RULE,
        Verdict.ESCALATE,
        ticket=TICKET,
        protocol=Protocol.MCP,
        json_rpc_id='"call-7"',
    )
    received = denied(scripted, final)
    assert received.status == 403
    assert received.headers["content-type"] == "application/json"
    error = json.loads(received.body)
    assert (error["jsonrpc"], error["id"]) == ("2.0", "call-7")
    assert error["error"]["data"]["access_request"]["approver_group"] == "finance-oncall"


@pytest.mark.parametrize(
    ("reason", "verdict", "ticket"),
    [
        (Reason.DENIED_BY_RULE, Verdict.DENY, None),
        (Reason.ESCALATED_BY_RULE, Verdict.ESCALATE, TICKET),
    ],
)
def test_the_official_mcp_client_understands(
    scripted: Scripted, reason: Reason, verdict: Verdict, ticket: TicketRecord | None
) -> None:
    async def initialize() -> None:
        async with (
            streamable_http_client(f"http://127.0.0.1:{scripted.port('raw')}/mcp") as streams,
            ClientSession(streams[0], streams[1]) as session,
        ):
            await session.initialize()

    def echo_id(check: bytes) -> bytes:
        http = access_request(check).http
        assert http is not None
        identifier = json.dumps(json.loads(http.body)["id"])
        refusal = decision(
            reason, verdict, protocol=Protocol.MCP, ticket=ticket, json_rpc_id=identifier
        )
        return answer(refusal)

    scripted.told(b"")
    scripted.answer = echo_id
    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(initialize())
    errors = caught.value.subgroup(MCPError)
    assert errors is not None
    (error,) = leaves(errors)
    assert isinstance(error, MCPError)
    assert error.error.data["decision_id"] == ID
    assert (error.error.data["verdict"], error.error.data["reason"]) == (verdict, reason)
    assert error.error.data.get("access_request", {}).get("id") == (ticket and ticket.id)
    assert not scripted.hits


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def rpc_error(scripted: Scripted, final: Decision) -> Any:
    """Call an RPC through Envoy with a real gRPC client and return its error."""
    scripted.told(answer(final))
    with grpc.insecure_channel(f"127.0.0.1:{scripted.port('raw')}") as channel:
        call: Any = channel.unary_unary("/crm.v1.Crm/Export")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=10)
    assert not scripted.hits
    return caught.value


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.DENIED_BY_RULE, grpc.StatusCode.PERMISSION_DENIED),
        (Reason.NO_PRINCIPAL, grpc.StatusCode.UNAUTHENTICATED),
    ],
)
def test_grpc(scripted: Scripted, reason: Reason, code: grpc.StatusCode) -> None:
    error = rpc_error(scripted, decision(reason, protocol=Protocol.GRPC))
    assert error.code() is code
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message) == (code.value[0], error.details())
    assert (info.reason, info.metadata["decision_id"]) == (reason, ID)
    assert trailers["x-authz-decision-id"] == ID


def test_grpc_escalation(scripted: Scripted) -> None:
    final = decision(
        Reason.ESCALATED_BY_RULE, Verdict.ESCALATE, ticket=TICKET, protocol=Protocol.GRPC
    )
    error = rpc_error(scripted, final)
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    trailers = dict(error.trailing_metadata())
    assert trailers["x-authz-verdict"] == "escalate"
    assert b"access_request.id" in trailers["grpc-status-details-bin"]


def test_the_agent_s_exceptions_are_made_of_it(scripted: Scripted) -> None:
    final = decision(
        Reason.ESCALATED_BY_RULE, Verdict.ESCALATE, ticket=TICKET, protocol=Protocol.GRPC
    )
    with pytest.raises(Escalated) as asked, typed_refusals():
        raise rpc_error(scripted, final)
    assert asked.value.access_request is not None
    assert asked.value.access_request.expires_at == TICKET.expires_at
    for protocol in (Protocol.GRPC, Protocol.HTTP):
        with pytest.raises(Denied) as denied, typed_refusals():
            raise rpc_error(scripted, decision(Reason.REVOKED, protocol=protocol))
        assert (denied.value.reason, denied.value.decision_id) == (Reason.REVOKED, ID)


def test_a_grpc_client_on_an_http_route_is_denied_too(scripted: Scripted) -> None:
    error = rpc_error(scripted, decision(Reason.MALFORMED_REQUEST))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


def test_tcp(scripted: Scripted) -> None:
    scripted.told(answer(decision(Reason.OK, Verdict.ALLOW, protocol=Protocol.TCP)))
    assert exchange(scripted.port("tcp"), request(), tls=None).status == 200
    scripted.told(answer(decision(Reason.DENIED_BY_RULE, protocol=Protocol.TCP)))
    with RawConnection(scripted.port("tcp"), tls=None) as connection:
        connection.send(request())
        with pytest.raises(NoAnswerError):
            connection.answer()
    assert not scripted.hits


def test_the_last_resort_denies(scripted: Scripted) -> None:
    scripted.told(LAST_RESORT)
    assert exchange(scripted.port("raw"), request(), tls=None).status == 403
    assert not scripted.hits


@pytest.mark.parametrize("verdict", Verdict)
def test_the_access_log_gets_the_decision(scripted: Scripted, verdict: Verdict) -> None:
    reason = {Verdict.ALLOW: Reason.OK, Verdict.DENY: Reason.DENIED_BY_RULE}.get(
        verdict, Reason.ESCALATED_BY_RULE
    )
    scripted.told(answer(decision(reason, verdict)))
    received = exchange(scripted.port("raw"), request(), tls=None)
    logged = json.loads(received.headers[METADATA_HEADER])
    assert {key: logged[key] for key in ("decision_id", "verdict", "reason", "rules")} == {
        "decision_id": ID,
        "verdict": verdict,
        "reason": reason,
        "rules": ["crm-read"],
    }
    assert set(logged) >= {"mode", "bundle", "revision", "subject", "actors"}


# --- Envoy's A2A filter, which we do not render -----------------------------------------------


def posted(body: bytes, path: bytes = b"/a2a") -> bytes:
    return request(b"Content-Type: application/json", method=b"POST", path=path, body=body)


def a2a_call(method: str) -> bytes:
    message = {"messageId": "m1", "role": "ROLE_USER", "parts": [{"text": "why"}]}
    params = {"id": "t1"} if "ask" in method else {"message": message}
    return json.dumps({"jsonrpc": "2.0", "id": "r1", "method": method, "params": params}).encode()


@pytest.mark.parametrize("method", ["SendMessage", "message/send", "GetTask", "tasks/get"])
def test_what_the_a2a_filter_reads_is_what_we_read(scripted: Scripted, method: str) -> None:
    _, read = sent(scripted, "a2a", posted(a2a_call(method)))
    assert read.metadata[A2A_FILTER]["method"] == method
    assert read.http is not None
    assert a2a.operation(read.http, RouteContext(protocol=Protocol.A2A), read.metadata)


def test_the_a2a_filter_takes_the_first_of_two_methods(scripted: Scripted) -> None:
    twice = a2a_call("GetTask").replace(b'"params"', b'"method": "CancelTask", "params"')
    _, read = sent(scripted, "a2a", posted(twice))
    assert read.metadata[A2A_FILTER]["method"] == "GetTask"
    assert read.http is not None
    with pytest.raises(RequestFault, match="MALFORMED_BODY"):
        a2a.operation(read.http, RouteContext(protocol=Protocol.A2A), read.metadata)


def test_the_a2a_filter_knows_nothing_of_the_http_binding(scripted: Scripted) -> None:
    _, read = sent(scripted, "a2a", posted(b"{}", b"/tasks/7:cancel"))
    assert A2A_FILTER not in read.metadata
    scripted.told(ALLOW)
    for data in (posted(b"{}", b"/tasks/7:cancel"), request(path=b"/tasks/7")):
        assert exchange(scripted.port("a2a_gate"), data, tls=None).status == 400
    assert not scripted.checks


def test_behind_the_a2a_filter_a_long_body_arrives_cut(scripted: Scripted) -> None:
    """Without the filter it is refused; with it, only our own check stands in the way."""
    long = a2a_call("SendMessage").replace(b"why", b"w" * BODY_BYTES_MAX)
    _, read = sent(scripted, "a2a", posted(long))
    assert read.http is not None
    assert read.http.body_truncated
    scripted.told(ALLOW)
    text = posted(long).replace(b"application/json", b"text/plain")
    assert exchange(scripted.port("a2a"), text, tls=None).status == 413
    assert not scripted.checks
