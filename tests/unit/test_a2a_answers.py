"""The shape of a denied A2A request's answer, whichever stage denied it."""

import json
from typing import Any

import pytest

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from authz_server.core.pdp import decide
from authz_server.servers.answer import check_response
from authz_server.servers.wire import access_request
from tests.harness import casebook
from tests.harness.casebook import Case
from tests.harness.world import World

CHAIN = {"root": {"sub": "alice", "to": "agent/assistant", "scope": "crm.read"}}
GET_TASK = {"a2a": {"method": "GetTask", "params": {"id": "7"}}}


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def denied(
    world: World, request: dict[str, Any], **changes: Any
) -> tuple[int, dict[str, str], Any]:
    """Return status, headers and decoded body of the answer."""
    spec = {"caller": "agent/assistant", "chain": CHAIN, "request": request, **changes}
    case = Case(name="a", spec=spec, extensions=casebook.routes()[spec.get("route", "a2a")])
    read = access_request(casebook.check_request(case, world))
    decision = decide(read, world.snapshot(), world.now)
    response = CheckResponse.FromString(check_response(decision, decision_id="d-1"))
    answer = response.denied_response
    headers = {option.header.key: option.header.value for option in answer.headers}
    return answer.status.code, headers, json.loads(answer.body)


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"caller": None}, 401, "NO_PRINCIPAL"),
        ({"caller": "agents-we-never-saw/x"}, 403, "UNREGISTERED_IDENTITY"),
        ({"chain": None}, 403, "DELEGATION_REQUIRED"),
        ({"caller": "agent/second"}, 403, "LEAF_MISMATCH"),
    ],
)
def test_every_stage_echoes_the_id(
    world: World, changes: dict[str, Any], status: int, reason: str
) -> None:
    code, headers, document = denied(world, GET_TASK, **changes)
    assert (code, headers["content-type"]) == (status, "application/json")
    assert (document["jsonrpc"], document["id"]) == ("2.0", 1)
    assert document["error"]["code"] == status
    assert document["error"]["data"]["reason"] == reason


@pytest.mark.parametrize(
    ("request_", "identifier"),
    [
        ({"a2a": {"method": "Nope", "params": {}}}, 1),
        ({"a2a": {"method": "GetTask", "params": {"id": "7", "ID": "8"}}}, 1),
        ({"method": "POST", "path": "/a2a", "body": "[]"}, None),
        ({"method": "POST", "path": "/a2a", "body": ""}, None),
    ],
)
def test_a_request_at_fault_is_answered_as_json_rpc(
    world: World, request_: dict[str, Any], identifier: int | None
) -> None:
    code, headers, document = denied(world, request_)
    assert (code, headers["content-type"]) == (403, "application/json")
    assert document["id"] == identifier
    assert document["error"]["data"]["verdict"] == "deny"


@pytest.mark.parametrize(
    "request_",
    [
        {"method": "GET", "path": "/tasks/7:cancel"},
        {"method": "POST", "path": "/message:send", "body": "[]"},
        {"method": "GET", "path": "/a2a"},
    ],
)
def test_the_http_binding_is_answered_with_a_problem_document(
    world: World, request_: dict[str, Any]
) -> None:
    code, headers, document = denied(world, request_)
    assert (code, headers["content-type"]) == (403, "application/problem+json")
    assert document["verdict"] == "deny"
