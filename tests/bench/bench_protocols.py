"""Print what it costs to read a request: MCP, A2A and REST bodies as attributes and a digest.

    python tests/bench/bench_protocols.py [--calls N]

Shapes are what agents send, and the worst that the limits admit. Figures only; nothing here passes
or fails. The floor beside each figure is `json.loads`, without a single check.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from authz_server.core import limits
from authz_server.core.arguments import Pointer
from authz_server.core.protocols import a2a, http, mcp
from authz_server.core.request import Headers, HttpRequest, RouteContext
from tests.bench.load import percentiles

REVISION = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": REVISION,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    "progressToken": 7,
}
MCP = RouteContext.parse({"protocol": "mcp", "bundle": "tools", "resource": "crm"})
A2A = RouteContext.parse({"protocol": "a2a", "bundle": "agents", "resource": "analyst"})
REST = RouteContext.parse({"bundle": "data", "resource": "orders"})
DECLARATION = {
    "amount": Pointer.parse("/order/amount"),
    "currency": Pointer.parse("/order/currency"),
    "first": Pointer.parse("/rows/0/id"),
}
SMALL, LARGE = 4 * 1024, limits.BODY_BYTES_MAX
MEMBERS = limits.JSON_MEMBERS_MAX - 40  # room for the message around the arguments


@dataclass(frozen=True, slots=True)
class Shape:
    """The arguments of one call, made to fill a body."""

    name: str
    body_bytes: int
    arguments: dict[str, Any]


def shapes() -> Iterator[Shape]:
    """Yield what is measured: of each size what is usual, then what is worst."""
    order = {"order": {"amount": 125.5, "currency": "EUR"}, "limit": 20}
    for size in (SMALL, LARGE):
        yield Shape("text", size, {**order, "text": "lorem ipsum dolor " * (size // 20)})
        yield Shape("records", size, {**order, "rows": list(_rows(size // 190))})
        yield Shape(
            "code", size, {**order, "patch": 'if (a["b"] > 1) {\n\t"x": 1,\n}' * (size // 42)}
        )
    yield Shape("10,000 short texts", LARGE, {"a": ["é" * 11] * MEMBERS})
    yield Shape("5,000 objects", LARGE, {"a": [{"name": "x" * 36}] * (MEMBERS // 2)})
    yield Shape("10,000 names", LARGE, {f"name-{n}": n for n in range(MEMBERS)})
    yield Shape(
        "10,000 long fractions", LARGE, {"a": [n + 0.12345678901234 for n in range(MEMBERS)]}
    )
    yield Shape("10,000 exponents", LARGE, {"a": [(n + 1) * 1.2345e-9 for n in range(MEMBERS)]})


def _rows(count: int) -> Iterator[dict[str, object]]:
    for number in range(count):
        yield {
            "id": f"C-{number}",
            "amount": number * 1.25,
            "open": number % 2 == 0,
            "note": "call back on Monday, 9:30; asked for “terms”, twice. " * 2,
        }


def mcp_request(arguments: dict[str, Any]) -> HttpRequest:
    """Return a `tools/call` of the current revision, its headers complete."""
    params = {"name": "crm_update", "arguments": arguments, "_meta": META}
    message = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
    named = {
        "mcp-method": b"tools/call",
        "mcp-name": b"crm_update",
        "mcp-protocol-version": REVISION.encode(),
    }
    return _request("/mcp", json.dumps(message, ensure_ascii=False).encode(), named)


def a2a_request(arguments: dict[str, Any]) -> HttpRequest:
    """Return a message of A2A 1.0 over JSON-RPC that has the same arguments as data."""
    parts = [{"text": "why"}, {"data": arguments}]
    message = {"messageId": "m", "contextId": "c", "role": "ROLE_USER", "parts": parts}
    params = {"message": message, "configuration": {"acceptedOutputModes": ["text/plain"]}}
    call = {"jsonrpc": "2.0", "id": 7, "method": "SendMessage", "params": params}
    body = json.dumps(call, ensure_ascii=False).encode()
    return _request("/a2a", body, {"a2a-version": b"1.0"})


def rest_request(arguments: dict[str, Any]) -> HttpRequest:
    """Return a POST of the same arguments."""
    return _request("/v1/orders", json.dumps(arguments, ensure_ascii=False).encode(), {})


def _request(path: str, body: bytes, headers: dict[str, bytes]) -> HttpRequest:
    fields = {"content-type": b"application/json", "user-agent": b"bench/1", **headers}
    return HttpRequest(
        method="POST",
        scheme="https",
        host="crm.example",
        path=path,
        headers=Headers(fields={name: (value,) for name, value in fields.items()}),
        body=body,
        protocol="HTTP/2",
        size=len(body),
    )


def timed(call: Callable[[], object], count: int) -> tuple[float, float]:
    """Return p50 and p99 of `call` in microseconds."""
    took = []
    for _ in range(count):
        started = time.perf_counter_ns()
        call()
        took.append((time.perf_counter_ns() - started) / 1000)
    return percentiles(took)


def report(calls: int) -> None:
    """Print the table; `calls` for each figure of 4 KiB, fewer for larger bodies."""
    print("request -> operation (attributes, declared arguments, digest), µs")
    print(
        f"  {'arguments':22} {'body':>8}   {'MCP p50':>8} {'p99':>8}   {'A2A p50':>8} {'p99':>8}"
        f"   {'REST p50':>8} {'p99':>8}"
    )
    for shape in shapes():
        call, post = mcp_request(shape.arguments), rest_request(shape.arguments)
        message = a2a_request(shape.arguments)
        assert len(call.body) <= limits.BODY_BYTES_MAX, (shape.name, len(call.body))
        count = max(calls * SMALL // shape.body_bytes, 50)
        tool = timed(lambda: mcp.operation(call, MCP, {}, DECLARATION), count)  # noqa: B023
        sent = timed(lambda: a2a.operation(message, A2A, {}, DECLARATION), count)  # noqa: B023
        rest = timed(lambda: http.operation(post, REST, DECLARATION), count)  # noqa: B023
        floor, _ = timed(lambda: json.loads(call.body), count)  # noqa: B023
        print(
            f"  {shape.name:22} {len(call.body):8}   {tool[0]:8.0f} {tool[1]:8.0f}"
            f"   {sent[0]:8.0f} {sent[1]:8.0f}   {rest[0]:8.0f} {rest[1]:8.0f}"
            f"   (json.loads {floor:.0f})",
            flush=True,
        )
    print()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2_000, help="calls for each figure of 4 KiB")
    report(parser.parse_args().calls)


if __name__ == "__main__":
    main()
