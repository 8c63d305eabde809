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
from mcp_types.version import LATEST_MODERN_VERSION

from authz_server.core.errors import AuthzError
from authz_server.demo.calls import Call, Outcome
from authz_server.demo.mesh_client import ServiceDirectory, mesh_http_client

_DECISION_ID: Final = "x-authz-decision-id"


class CallFailedError(AuthzError):
    """A call got no answer at all: no connection, or one that broke."""


class AgentRuntime:
    """One workload's means of acting: its SVID and the services it can find."""

    def __init__(self, svid_directory: Path, services: ServiceDirectory) -> None:
        self._svid_directory = svid_directory
        self._services = services

    async def perform(self, call: Call, delegation: Mapping[str, str]) -> Outcome:
        """Do `call` with the `delegation` headers and return how it was answered.

        Raises `CallFailedError` when nobody answered, `PeerRefusedError` when a stranger did.
        """
        client = mesh_http_client(self._svid_directory, self._services, delegation)
        try:
            async with client:
                if call.tool is not None:
                    return await _call_tool(client, call, call.tool)
                return await _call_http(client, call)
        except (httpx2.TransportError, BaseExceptionGroup) as error:
            raise CallFailedError(f"`{call}` got no answer: {error!r}") from error


async def _call_http(client: httpx2.AsyncClient, call: Call) -> Outcome:
    response = await client.request(call.method, f"https://{call.host}{call.path}", json=call.body)
    return _outcome(response, _json(response))


async def _call_tool(client: httpx2.AsyncClient, call: Call, tool: str) -> Outcome:
    """Call a tool as the MCP revision without sessions does: one request, one decision."""
    responses: list[httpx2.Response] = []

    async def remember(response: httpx2.Response) -> None:
        if response.request.headers.get("mcp-method") == "tools/call":
            responses.append(response)

    client.event_hooks = {"response": [remember]}
    transport = streamable_http_client(f"https://{call.host}/mcp", http_client=client)
    async with Client(transport, mode=LATEST_MODERN_VERSION) as session:
        # Caught in here: leaving the session wraps what is raised in an exception group.
        try:
            result = await session.call_tool(tool, call.body or {})
            answer: object = result.structured_content
        except MCPError as error:
            answer = error.data
    if not responses:
        raise CallFailedError(f"`{call}` got no answer")
    return _outcome(responses[-1], answer)


def _outcome(response: httpx2.Response, answer: object) -> Outcome:
    """Read the verdict: a denial describes itself, an allowed answer bears the decision's id."""
    # The body is `application/problem+json`, or for a tool the `data` of a JSON-RPC error.
    said = answer if isinstance(answer, dict) and not response.is_success else {}
    if said.get("verdict") in {"deny", "escalate"}:
        ticket = said.get("access_request")
        return Outcome(
            verdict=said["verdict"],
            reason=str(said.get("reason")),
            decision_id=said.get("decision_id"),
            ticket=ticket.get("id") if isinstance(ticket, dict) else None,
        )
    decision_id = response.headers.get(_DECISION_ID)
    if decision_id is None:
        return Outcome(verdict="refused", reason=str(response.status_code))
    return Outcome(verdict="allow", reason="OK", decision_id=decision_id, answer=answer)


def _json(response: httpx2.Response) -> object:
    try:
        return response.json()
    except ValueError:
        return None
