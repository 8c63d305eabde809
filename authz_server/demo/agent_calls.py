"""How an agent of the demonstration calls tools and services, and reads the answer.

Tools are called with the official MCP client, services with plain HTTP; both over the mesh's
mutual TLS. The delegation travels as two headers that the caller was given or minted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from authz_server.demo.calls import Call, Outcome
from authz_server.demo.mesh_client import ServiceDirectory, mesh_http_client

_DECISION_ID: Final = "x-authz-decision-id"


class AgentRuntime:
    """One workload's means of acting: its SVID and the services it can find."""

    def __init__(self, svid_directory: Path, services: ServiceDirectory) -> None:
        self._svid_directory = svid_directory
        self._services = services

    async def perform(self, call: Call, delegation: Mapping[str, str]) -> Outcome:
        """Do `call` with the `delegation` headers and return how it was answered."""
        client = mesh_http_client(self._svid_directory, self._services, delegation)
        async with client:
            if call.tool is not None:
                return await _call_tool(client, call, call.tool)
            return await _call_http(client, call)


async def _call_http(client: httpx2.AsyncClient, call: Call) -> Outcome:
    response = await client.request(call.method, f"https://{call.host}{call.path}", json=call.body)
    content = _json(response)
    if response.is_success:
        return Outcome(
            verdict="allow",
            reason="OK",
            decision_id=response.headers.get(_DECISION_ID),
            answer=content,
        )
    return _denial(content) or Outcome(verdict="refused", reason=str(response.status_code))


async def _call_tool(client: httpx2.AsyncClient, call: Call, tool: str) -> Outcome:
    seen: list[httpx2.Response] = []

    async def remember(response: httpx2.Response) -> None:
        seen.append(response)

    client.event_hooks = {"response": [remember]}
    transport = streamable_http_client(f"https://{call.host}/mcp", http_client=client)
    try:
        async with Client(transport) as session:
            result = await session.call_tool(tool, call.body or {})
    except MCPError as error:
        status = str(seen[-1].status_code) if seen else str(error)
        return _denial(error.data) or Outcome(verdict="refused", reason=status)
    return Outcome(
        verdict="allow",
        reason="OK",
        decision_id=seen[-1].headers.get(_DECISION_ID),
        answer=result.structured_content,
    )


def _denial(content: object) -> Outcome | None:
    """Return what the PDP said, from `application/problem+json` or a JSON-RPC error's data."""
    if not isinstance(content, dict) or content.get("verdict") not in {"deny", "escalate"}:
        return None
    ticket = content.get("access_request")
    return Outcome(
        verdict=content["verdict"],
        reason=str(content.get("reason")),
        decision_id=content.get("decision_id"),
        ticket=ticket.get("id") if isinstance(ticket, dict) else None,
    )


def _json(response: httpx2.Response) -> object:
    try:
        return response.json()
    except ValueError:
        return None
