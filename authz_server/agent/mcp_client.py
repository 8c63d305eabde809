"""Delegation for clients of the official MCP SDK, which speaks httpx2.

http = httpx2.AsyncClient(auth=McpDelegation())
async with Client(streamable_http_client(url, http_client=http)) as session:
    with typed_refusals():
        await session.call_tool("crm_search", {"query": "northwind"})
"""

from typing import Any

from authz_server.agent.httpx2_auth import Httpx2Delegation


class McpDelegation(Httpx2Delegation):
    """The flow for the HTTP client of an MCP session.

    It raises nothing: it runs in the session's own tasks, where an exception ends the session and
    not the call. The SDK turns a denial into its `MCPError`, and `typed_refusals` around a call
    turns that into `Denied` or `Escalated`.
    """

    def raises_for(self, response: Any) -> bool:  # noqa: ARG002
        """Leave every answer to the SDK."""
        return False
