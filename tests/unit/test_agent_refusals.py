"""Denials and escalations as an agent sees them: from the server's own answers, as exceptions."""

import asyncio
import base64
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import httpx
import httpx2
import pytest
from mcp import MCPError

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from authz_server.agent import Denied, Escalated, Patience, typed_refusals
from authz_server.agent.answers import (
    Answer,
    answer_in_document,
    answer_in_error,
    answer_in_response,
)
from authz_server.agent.refusals import refusal
from authz_server.core.attributes import Protocol
from authz_server.core.decision import Decision, PrincipalRecord, TicketRecord, Verdict
from authz_server.core.errors import InvalidValueError, Reason
from authz_server.servers.wire import check_response

NOW = datetime.now(UTC)
QUICK = Patience(timeout_s=5, first_s=0.001, longest_s=0.002)


def decision(protocol: Protocol, ticket: TicketRecord | None = None) -> Decision:
    escalated = ticket is not None
    return Decision(
        verdict=Verdict.ESCALATE if escalated else Verdict.DENY,
        reason=Reason.ESCALATED_BY_RULE if escalated else Reason.LEAF_MISMATCH,
        detail="delegation was not made out to this caller",
        time=NOW,
        revision="r",
        protocol=protocol,
        ticket=ticket,
        json_rpc_id="7" if protocol is Protocol.MCP else None,
        principal=PrincipalRecord(
            spiffe_id="spiffe://d/a", trust_domain="d", kind="agent", assurance="mtls"
        ),
    )


def ticket(identifier: str = "apr-1", status: str = "pending", in_s: float = 900) -> TicketRecord:
    return TicketRecord(
        id=identifier,
        status=status,
        expires_at=NOW + timedelta(seconds=in_s),
        approver_group="crm-owners",
    )


def denied_response(made: Decision) -> Any:
    return CheckResponse.FromString(check_response(made, decision_id="d-1")).denied_response


def http_headers(denied: Any) -> dict[str, str]:
    return {option.header.key: option.header.value for option in denied.headers}


def http_answer(made: Decision, library: Any = httpx) -> Answer | None:
    denied = denied_response(made)
    return answer_in_response(
        library.Response(denied.status.code, headers=http_headers(denied), content=denied.body)
    )


class Rpc(grpc.RpcError):
    """What a gRPC client is given: the library base64-decodes `-bin` metadata."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def trailing_metadata(self) -> Any:
        return [
            (key, base64.b64decode(value + "==") if key.endswith("-bin") else value)
            for key, value in self._headers.items()
        ]


def rpc_error(made: Decision) -> Rpc:
    return Rpc(http_headers(denied_response(made)))


def mcp_error(made: Decision) -> MCPError:
    error = json.loads(denied_response(made).body)["error"]
    return MCPError(code=error["code"], message=error["message"], data=error["data"])


def status_error(made: Decision) -> httpx2.HTTPStatusError:
    denied = denied_response(made)
    request = httpx2.Request("GET", "https://crm")
    response = httpx2.Response(
        denied.status.code, headers=http_headers(denied), content=denied.body, request=request
    )
    return httpx2.HTTPStatusError("403", request=request, response=response)


def caused(error: Exception) -> Exception:
    """Return what a library raises that is built on another."""
    wrapper = RuntimeError("transport")
    wrapper.__cause__ = error
    return wrapper


ERRORS: Mapping[str, tuple[Protocol, Callable[[Decision], Exception]]] = {
    "grpc": (Protocol.GRPC, rpc_error),
    "mcp": (Protocol.MCP, mcp_error),
    "http": (Protocol.HTTP, status_error),
    "json-rpc over http": (Protocol.MCP, status_error),
    "caused": (Protocol.HTTP, lambda made: caused(status_error(made))),
    "group": (Protocol.MCP, lambda made: ExceptionGroup("g", [ValueError(), mcp_error(made)])),
}


@pytest.mark.parametrize(("protocol", "error"), ERRORS.values(), ids=ERRORS)
def test_the_server_s_own_denial_in_every_shape(
    protocol: Protocol, error: Callable[[Decision], Exception]
) -> None:
    made = error(decision(protocol))
    with pytest.raises(Denied) as caught, typed_refusals():
        raise made
    denied = caught.value
    assert denied.__cause__ is made
    assert str(denied).startswith("LEAF_MISMATCH: delegation: ")
    assert (denied.reason, denied.decision_id, denied.status) == ("LEAF_MISMATCH", "d-1", 403)
    assert denied.detail == "delegation: delegation was not made out to this caller"


@pytest.mark.parametrize(("protocol", "error"), ERRORS.values(), ids=ERRORS)
def test_the_server_s_own_escalation_in_every_shape(
    protocol: Protocol, error: Callable[[Decision], Exception]
) -> None:
    with pytest.raises(Escalated) as caught, typed_refusals():
        raise error(decision(protocol, ticket()))
    asked = caught.value.access_request
    assert asked is not None
    assert (asked.id, asked.status, asked.approver_group) == ("apr-1", "pending", "crm-owners")
    assert asked.expires_at == NOW + timedelta(seconds=900)


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_an_http_response(library: Any) -> None:
    found = http_answer(decision(Protocol.HTTP, ticket()), library)
    assert found is not None
    assert (found.verdict, found.reason) == ("escalate", "ESCALATED_BY_RULE")


def test_other_errors_pass_unchanged() -> None:
    for error in (ValueError("x"), Rpc({}), Rpc({"grpc-status-details-bin": "AAAA"})):
        with pytest.raises(type(error)) as caught, typed_refusals():
            raise error
        assert caught.value is error
    with pytest.raises(MCPError), typed_refusals():
        raise MCPError(code=-32600, message="no", data={"verdict": "deny"})


FOREIGN: Mapping[str, object] = {
    "no object": [],
    "nothing": None,
    "an allow": {"type": "urn:authz-server:problem:x", "verdict": "allow"},
    "another problem": {"type": "https://example.org/problem", "verdict": "deny"},
    "no type": {"verdict": "deny"},
    "a verdict that is not hashable": {"type": "urn:authz-server:problem:x", "verdict": None},
}


@pytest.mark.parametrize("document", FOREIGN.values(), ids=FOREIGN)
def test_what_another_wrote_is_no_answer(document: object) -> None:
    assert answer_in_document(document) is None


def test_odd_members_do_not_break_the_reading() -> None:
    found = answer_in_document(
        {
            "type": "urn:authz-server:problem:approval-required",
            "verdict": "escalate",
            "status": "no",
            "reason": 5,
            "detail": "x" * 5000,
            "access_request": {"expires_at": "tomorrow", "id": None},
        }
    )
    assert found is not None
    assert (found.status, found.reason, len(found.detail)) == (403, "", 1024)
    assert found.access_request is not None
    assert (found.access_request.id, found.access_request.expires_at) == ("", None)


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (200, "application/problem+json", b"{}"),
        (403, "text/html", b"{}"),
        (403, "application/problem+json", b"{"),
        (403, "application/problem+json", b"[" * 100_000),
        (403, "application/problem+json", b" " * 70_000),
        (403, "application/problem+json", b"\xff"),
    ],
)
def test_other_responses_are_no_answer(status: int, kind: str, body: bytes) -> None:
    response = httpx.Response(status, headers={"content-type": kind}, content=body)
    assert answer_in_response(response) is None
    assert answer_in_error(httpx.ConnectError("down")) is None


# --- waiting for a person ----------------------------------------------------------------------


def escalated(record: TicketRecord | None) -> Escalated:
    found = http_answer(decision(Protocol.HTTP, record or ticket()))
    assert found is not None
    made = refusal(found)
    assert isinstance(made, Escalated)
    if record is None:
        made.access_request = None
    return made


class Attempts:
    """A call whose answers are listed; the last stands for every further one."""

    def __init__(self, *answers: Exception | str) -> None:
        self._answers = answers
        self.made = 0

    def __call__(self) -> str:
        answer = self._answers[min(self.made, len(self._answers) - 1)]
        self.made += 1
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def later(self) -> str:
        return self()


STILL = escalated(ticket())
WAITS: Mapping[str, tuple[tuple[Exception | str, ...], str | type[Exception], int]] = {
    # what comes of each repetition -> the result, repetitions
    "approved at once": (("done",), "done", 1),
    "approved later": ((STILL, STILL, "done"), "done", 3),
    "rejected": ((STILL, escalated(ticket(status="rejected")), "done"), Escalated, 2),
    "a new question": ((escalated(ticket("apr-2")), "done"), Escalated, 1),
    "denied meanwhile": ((mcp_error(decision(Protocol.MCP)), "done"), Denied, 1),
    "as its library says it": ((mcp_error(decision(Protocol.MCP, ticket())), "done"), "done", 2),
    "broken": ((OSError("down"), "done"), OSError, 1),
}


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(("answers", "expected", "made"), WAITS.values(), ids=WAITS)
def test_waiting(
    kind: str, answers: tuple[Exception | str, ...], expected: str | type[Exception], made: int
) -> None:
    attempts = Attempts(*answers)

    def outcome() -> str:
        if kind == "async":
            return asyncio.run(STILL.wait_for_approval_async(attempts.later, QUICK))
        return STILL.wait_for_approval(attempts, QUICK)

    if isinstance(expected, str):
        assert outcome() == expected
    else:
        with pytest.raises(expected):
            outcome()
    assert attempts.made == made


def test_it_ends_with_patience() -> None:
    attempts = Attempts(STILL)
    with pytest.raises(Escalated):
        STILL.wait_for_approval(attempts, Patience(timeout_s=0.02, first_s=0.005, longest_s=0.005))
    assert 0 < attempts.made <= 4


@pytest.mark.parametrize(
    "question", [ticket(in_s=-1), ticket(in_s=0.0005), ticket(status="rejected"), None]
)
def test_a_closed_question_is_not_asked_again(question: TicketRecord | None) -> None:
    """Past its deadline the same call would put a new question to people."""
    attempts = Attempts("done")
    with pytest.raises(Escalated):
        escalated(question).wait_for_approval(attempts, QUICK)
    assert attempts.made == 0


def test_the_questions_become_rarer() -> None:
    delays = iter(STILL._delays(Patience(timeout_s=100, first_s=2, longest_s=5)))
    found = [next(delays) for _ in range(6)]
    bounds = [(1.6, 2), (2.4, 3), (3.6, 4.5), (4, 5), (4, 5), (4, 5)]
    assert all(low <= delay <= high for delay, (low, high) in zip(found, bounds, strict=True))


@pytest.mark.parametrize("odd", [{"first_s": 0}, {"first_s": 40}, {"timeout_s": 0}])
def test_patience_is_bounded(odd: dict[str, float]) -> None:
    with pytest.raises(InvalidValueError):
        Patience(**odd)
