"""Bodies at each limit and one beyond it, through the hardened Envoy."""

import json

import pytest

from authz_server.core import limits
from tests.e2e.attack_mesh import Mesh
from tests.e2e.raw_http import Answer, exchange


def posted(mesh: Mesh, listener: str, body: bytes) -> tuple[Answer, list[str], int]:
    """Post JSON; return the answer, what was recorded, and how often the workload was reached."""
    seq, hits = mesh.ledger.last(), len(mesh.workload.hits)
    lines = [
        f"POST /{listener} HTTP/1.1",
        "Host: tool.example",
        "Content-Type: application/json",
        "Accept: application/json, text/event-stream",
        f"Content-Length: {len(body)}",
    ]
    data = "\r\n".join([*lines, "", ""]).encode() + body
    answer = exchange(mesh.envoys["hardened"].ports[listener], data, tls=mesh.tls("wide"))
    outcomes = [record.outcome for record in mesh.ledger.since(seq)]
    return answer, outcomes, len(mesh.workload.hits) - hits


def order(note: object) -> bytes:
    return json.dumps({"order": {"amount": 1}, "note": note}, separators=(",", ":")).encode()


def call(text: str) -> bytes:
    params = {"name": "read_file", "arguments": {"text": text}}
    return json.dumps(
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    ).encode()


@pytest.mark.parametrize(("listener", "status"), [("rest", 413), ("mcp", 400)])
def test_bytes(mesh: Mesh, listener: str, status: int) -> None:
    """One byte more is refused by Envoy, on MCP by its filter; nobody is asked."""
    make = {"rest": order, "mcp": call}[listener]
    room = limits.BODY_BYTES_MAX - len(make(""))
    answer, outcomes, reached = posted(mesh, listener, make("a" * room))
    assert (answer.status, outcomes, reached) == (200, ["allow"], 1)
    answer, outcomes, reached = posted(mesh, listener, make("a" * (room + 1)))
    assert (answer.status, outcomes, reached) == (status, [], 0)


def test_depth(mesh: Mesh) -> None:
    def nested(depth: int) -> bytes:
        return order(None).replace(b"null", b"[" * (depth - 1) + b"]" * (depth - 1))

    answer, outcomes, reached = posted(mesh, "rest", nested(limits.JSON_DEPTH_MAX))
    assert (answer.status, outcomes, reached) == (200, ["allow"], 1)
    answer, outcomes, reached = posted(mesh, "rest", nested(limits.JSON_DEPTH_MAX + 1))
    assert (answer.status, outcomes, reached) == (403, ["deny MALFORMED_BODY"], 0)


def test_members(mesh: Mesh) -> None:
    def items(members: int) -> bytes:
        return order([0] * (members - 3))  # order, amount, note

    answer, outcomes, reached = posted(mesh, "rest", items(limits.JSON_MEMBERS_MAX))
    assert (answer.status, outcomes, reached) == (200, ["allow"], 1)
    answer, outcomes, reached = posted(mesh, "rest", items(limits.JSON_MEMBERS_MAX + 1))
    assert (answer.status, outcomes, reached) == (403, ["deny MALFORMED_BODY"], 0)
