"""Building a CheckResponse: every clause of interface section 7, by protocol and verdict."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2, status_pb2

from authz_server._pb.envoy.config.core.v3.base_pb2 import HeaderValueOption
from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from authz_server.core import limits
from authz_server.core.attributes import Protocol
from authz_server.core.decision import (
    ChainRecord,
    Decision,
    PrincipalRecord,
    TicketRecord,
    Verdict,
)
from authz_server.core.errors import Reason
from authz_server.servers import answer
from authz_server.servers.problem import STAGES
from authz_server.servers.wire import check_response

ID = "0193a5b2-7e6f-7c3d-9a1b-2f6d5c4b3a29"
NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
PRINCIPAL = PrincipalRecord(
    spiffe_id="spiffe://d/agent", trust_domain="d", kind="agent", assurance="mtls"
)
CHAIN = ChainRecord(
    subject="alice@example.org",
    subject_issuer="https://sts.example.org",
    actors=("spiffe://d/agent", "spiffe://d/sub"),
    txn="t",
    assurance="hop_signed",
    mode="exercise",
    token_sha256=("00",),
)
TICKET = TicketRecord(id="apr-1", status="pending", expires_at=NOW, approver_group="finance-oncall")
TICKET_JSON = {
    "id": "apr-1",
    "status": "pending",
    "expires_at": "2026-11-24T10:00:00.000000Z",
    "approver_group": "finance-oncall",
}
HTTP_PROTOCOLS = [Protocol.HTTP, Protocol.GRPC, Protocol.MCP, Protocol.A2A]


def decision(reason: Reason = Reason.DENIED_BY_RULE, **changes: Any) -> Decision:
    verdict = {Reason.OK: Verdict.ALLOW, Reason.ESCALATED_BY_RULE: Verdict.ESCALATE}.get(
        reason, Verdict.DENY
    )
    values: dict[str, Any] = {
        "verdict": verdict,
        "reason": reason,
        "detail": "header `txn-token` was sent more than once",
        "time": NOW,
        "revision": "r1",
        "bundle": "tools",
        "principal": PRINCIPAL,
    }
    return Decision(**(values | changes))


def answered(final: Decision) -> CheckResponse:
    return CheckResponse.FromString(check_response(final, decision_id=ID))


def headers(options: Any) -> dict[str, str]:
    """Return headers by name; all must overwrite and use the member that Envoy reads."""
    assert all(o.append_action == HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD for o in options)
    assert not any(o.header.raw_value or o.HasField("append") for o in options)
    found = {o.header.key: o.header.value for o in options}
    assert len(found) == len(options)
    return found


# --- allow ----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", HTTP_PROTOCOLS)
def test_allow(protocol: Protocol) -> None:
    response = answered(decision(Reason.OK, protocol=protocol))
    assert response.HasField("status")
    assert response.status.code == 0
    ok = response.ok_response
    assert headers(ok.headers) == {"x-authz-decision-id": ID}
    assert headers(ok.response_headers_to_add) == {"x-authz-decision-id": ID}
    assert list(ok.headers_to_remove) == ["x-authz-verdict", "x-authz-mode"]
    assert not ok.HasField("dynamic_metadata")  # would override ours
    assert not ok.query_parameters_to_set
    assert not ok.query_parameters_to_remove


def test_allow_may_strip_the_delegation() -> None:
    removed = answered(decision(Reason.OK, strip_delegation=True)).ok_response.headers_to_remove
    assert list(removed)[2:] == ["txn-token", "delegation-chain"]


# --- deny and escalate over HTTP ------------------------------------------------------------


def test_deny() -> None:
    response = answered(decision(Reason.DUPLICATE_HEADER))
    assert response.status.code == 7
    denied = response.denied_response
    assert denied.status.code == 403
    assert headers(denied.headers) == {
        "x-authz-decision-id": ID,
        "content-type": "application/problem+json",
    }
    assert json.loads(denied.body) == {
        "type": "urn:authz-server:problem:access-denied",
        "title": "Access denied",
        "status": 403,
        "detail": "request: header `txn-token` was sent more than once",
        "decision_id": ID,
        "verdict": "deny",
        "reason": "DUPLICATE_HEADER",
    }


def test_escalate() -> None:
    response = answered(decision(Reason.ESCALATED_BY_RULE, ticket=TICKET))
    assert response.status.code == 7
    denied = response.denied_response
    assert denied.status.code == 403
    assert headers(denied.headers)["x-authz-verdict"] == "escalate"
    body = json.loads(denied.body)
    assert body["access_request"] == TICKET_JSON
    assert (body["title"], body["verdict"]) == ("Approval required", "escalate")


def test_an_expired_approval_still_escalates() -> None:
    final = decision(Reason.APPROVAL_EXPIRED, verdict=Verdict.ESCALATE, ticket=TICKET)
    body = json.loads(answered(final).denied_response.body)
    assert (body["reason"], body["access_request"]) == ("APPROVAL_EXPIRED", TICKET_JSON)


def test_an_escalation_without_ticket_has_no_access_request() -> None:
    body = json.loads(answered(decision(Reason.ESCALATED_BY_RULE)).denied_response.body)
    assert "access_request" not in body


def test_a_denial_shows_no_ticket() -> None:
    body = json.loads(answered(decision(ticket=TICKET)).denied_response.body)
    assert "access_request" not in body


@pytest.mark.parametrize(
    ("reason", "principal", "status"),
    [
        (Reason.NO_PRINCIPAL, None, 401),
        (Reason.MALFORMED_PRINCIPAL, None, 401),
        (Reason.UNKNOWN_TRUST_DOMAIN, None, 401),
        (Reason.UNKNOWN_TRUST_DOMAIN, PRINCIPAL, 403),  # a delegator's, not the caller's
        (Reason.UNREGISTERED_IDENTITY, PRINCIPAL, 403),
        (Reason.MALFORMED_REQUEST, None, 403),
        (Reason.NOT_READY, None, 403),
    ],
)
def test_401_says_that_nobody_we_know_is_calling(
    reason: Reason, principal: PrincipalRecord | None, status: int
) -> None:
    response = answered(decision(reason, principal=principal))
    assert response.denied_response.status.code == status
    assert response.status.code == {401: 16, 403: 7}[status]
    challenge = headers(response.denied_response.headers).get("www-authenticate")
    assert challenge == ('Mutual-TLS realm="spiffe"' if status == 401 else None)
    assert json.loads(response.denied_response.body)["status"] == status


# --- what a detail may say ------------------------------------------------------------------


def test_every_reason_has_one_stage() -> None:
    staged = [reason for reasons in STAGES.values() for reason in reasons]
    assert sorted(staged) == sorted(set(Reason) - {Reason.OK})


@pytest.mark.parametrize(
    "reason",
    [
        Reason.NO_MATCHING_RULE,
        Reason.DENIED_BY_RULE,
        Reason.ESCALATED_BY_RULE,
        Reason.POLICY_ERROR,
        Reason.LEDGER_UNAVAILABLE,
        Reason.NOT_READY,
        Reason.INTERNAL_ERROR,
    ],
)
@pytest.mark.parametrize("protocol", HTTP_PROTOCOLS)
def test_what_policy_or_server_say_is_not_shown(reason: Reason, protocol: Protocol) -> None:
    final = decision(
        reason,
        protocol=protocol,
        detail="r.sub.id == 'spiffe://d/secret'",
        rules=("secret-rule",),
        chain=CHAIN,
        obligation="secret-group",
    )
    denied = answered(final).denied_response
    shown = denied.SerializeToString() + b"".join(
        base64.b64decode(value + "==") for value in headers(denied.headers).values() if "=" in value
    )
    for hidden in (b"secret", b"alice", b"spiffe://", b"tools"):
        assert hidden not in shown


@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        ("a\r\nx-evil: 1", "request: a??x-evil: 1"),
        ("é\ud800\x7f\0", "request: ????"),
        ("x" * 1000, "request: " + "x" * (limits.DETAIL_CHARS_MAX - 9)),
    ],
)
def test_a_detail_is_short_printable_ascii(detail: str, shown: str) -> None:
    final = decision(Reason.MALFORMED_REQUEST, detail=detail)
    assert json.loads(answered(final).denied_response.body)["detail"] == shown


# --- MCP ------------------------------------------------------------------------------------


def test_mcp_gets_a_json_rpc_error() -> None:
    final = decision(
        Reason.ESCALATED_BY_RULE, protocol=Protocol.MCP, json_rpc_id='"call-7"', ticket=TICKET
    )
    denied = answered(final).denied_response
    assert denied.status.code == 403
    assert headers(denied.headers) == {
        "x-authz-decision-id": ID,
        "x-authz-verdict": "escalate",
        "content-type": "application/json",
    }
    body = json.loads(denied.body)
    assert (body["jsonrpc"], body["id"]) == ("2.0", "call-7")
    assert (body["error"]["code"], body["error"]["message"]) == (
        403,
        "policy: this needs the approval of a person",
    )
    assert body["error"]["data"]["access_request"] == TICKET_JSON
    assert body["error"]["data"]["decision_id"] == ID


@pytest.mark.parametrize(
    ("raw", "echoed"),
    [
        ("7", 7),
        ("-9007199254740993", -9007199254740993),
        ('"a\\"b"', 'a"b'),
        ('"\\ud800"', "\ud800"),
        (None, None),
        ("null", None),
        ("true", None),
        ("1.5", None),
        ("NaN", None),
        ("[1]", None),
        ('{"a":1}', None),
        ('1,"error":null', None),  # text that would become part of the answer
        ("", None),
        ('"' + "x" * 5000 + '"', None),
        ("9" * 4090, None),
    ],
)
def test_the_id_is_echoed_as_a_value_and_never_as_text(raw: str | None, echoed: object) -> None:
    body = json.loads(
        answered(decision(protocol=Protocol.MCP, json_rpc_id=raw)).denied_response.body,
        parse_int=lambda digits: int(digits) if len(digits) < 100 else None,
    )
    assert body["id"] == echoed
    assert set(body) == {"jsonrpc", "id", "error"}


def test_a2a_over_json_rpc_gets_one_too() -> None:
    denied = answered(decision(protocol=Protocol.A2A, json_rpc_id="1")).denied_response
    assert json.loads(denied.body)["error"]["data"]["reason"] == "DENIED_BY_RULE"
    denied = answered(decision(protocol=Protocol.A2A)).denied_response
    assert headers(denied.headers)["content-type"] == "application/problem+json"


# --- gRPC -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "code"), [(Reason.ESCALATED_BY_RULE, 7), (Reason.NO_PRINCIPAL, 16)]
)
def test_grpc_gets_its_details_in_the_trailer(reason: Reason, code: int) -> None:
    final = decision(
        reason, protocol=Protocol.GRPC, ticket=TICKET, principal=PRINCIPAL if code == 7 else None
    )
    response = answered(final)
    found = headers(response.denied_response.headers)
    assert "content-type" not in found  # Envoy's own is `application/grpc`
    assert "www-authenticate" not in found
    assert not found["grpc-status-details-bin"].endswith("=")
    status = status_pb2.Status.FromString(base64.b64decode(found["grpc-status-details-bin"] + "=="))
    # A client library takes the details for genuine only if both agree with the plain trailers.
    assert (status.code, status.message) == (code, response.denied_response.body)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (reason, "authz-server")
    expected = {"decision_id", "detail", "reason", "status", "title", "type", "verdict"}
    if reason is Reason.ESCALATED_BY_RULE:
        expected |= {f"access_request.{member}" for member in TICKET_JSON}
    assert set(info.metadata) == expected
    assert info.metadata["status"] == str(response.denied_response.status.code)


# --- TCP ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "code"),
    [(Reason.OK, 0), (Reason.DENIED_BY_RULE, 7), (Reason.ESCALATED_BY_RULE, 7)],
)
def test_tcp_has_a_status_and_nothing_of_http(reason: Reason, code: int) -> None:
    response = answered(decision(reason, protocol=Protocol.TCP))
    assert response.HasField("status")
    assert response.status.code == code
    assert response.WhichOneof("http_response") is None


# --- dynamic metadata -----------------------------------------------------------------------


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("reason", [Reason.OK, Reason.DENIED_BY_RULE, Reason.ESCALATED_BY_RULE])
def test_metadata_always_has_the_same_members(protocol: Protocol, reason: Reason) -> None:
    final = decision(reason, protocol=protocol, chain=CHAIN, rules=("r-1", "r-2"))
    assert MessageToDict(answered(final).dynamic_metadata) == {
        "decision_id": ID,
        "verdict": final.verdict,
        "reason": reason,
        "mode": "enforce",
        "bundle": "tools",
        "revision": "r1",
        "subject": "alice@example.org",
        "actors": ["spiffe://d/agent", "spiffe://d/sub"],
        "rules": ["r-1", "r-2"],
    }


def test_metadata_of_what_was_not_established_is_null_or_empty() -> None:
    metadata = MessageToDict(answered(decision(bundle=None)).dynamic_metadata)
    assert (metadata["bundle"], metadata["subject"]) == (None, None)
    assert (metadata["actors"], metadata["rules"]) == ([], [])


def test_metadata_is_bounded_and_valid_text() -> None:
    final = decision(rules=("x" * 5000, "\ud800é", *["r"] * 100))
    rules = MessageToDict(answered(final).dynamic_metadata)["rules"]
    assert rules[:2] == ["x" * limits.RECORD_FIELD_CHARS_MAX, "?é"]
    assert len(rules) == 32


# --- the safety catch -----------------------------------------------------------------------


def contradictory() -> Decision:
    """A decision that no code can make: the constructor refuses it."""
    final = decision(Reason.OK)
    object.__setattr__(final, "verdict", Verdict.DENY)
    return final


def test_no_decision_contradicts_itself() -> None:
    with pytest.raises(ValueError, match="contradicts"):
        decision(Reason.OK, verdict=Verdict.DENY)
    with pytest.raises(ValueError, match="contradicts"):
        decision(Reason.DENIED_BY_RULE, verdict=Verdict.ALLOW)


def test_a_broken_builder_raises_instead_of_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "_grpc_code", lambda _: 0)
    with pytest.raises(AssertionError, match="contradicts"):
        check_response(decision(), decision_id=ID)


@pytest.mark.parametrize("code", [200, 0, 503])
def test_only_401_and_403_are_denials(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(answer, "http_status", lambda _: code)
    with pytest.raises(AssertionError, match="contradicts"):
        check_response(decision(), decision_id=ID)


def test_a_decision_out_of_joint_raises() -> None:
    with pytest.raises(KeyError):
        check_response(contradictory(), decision_id=ID)


def test_for_an_internal_error_there_is_always_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(answer, "_build", explode)
    with pytest.raises(RuntimeError):
        check_response(decision(), decision_id=ID)
    response = answered(decision(Reason.INTERNAL_ERROR))
    assert response.status.code == 7
    assert response.denied_response.status.code == 403
