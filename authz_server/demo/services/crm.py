"""The CRM tool: a real MCP server (streamable HTTP) with two tools, one harmless, one not."""

import csv
import io
from typing import Final

from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import ASGIApp

from authz_server.demo.services.serving import Arguments, run

_CUSTOMERS: Final = (
    {"id": "C-17", "name": "Northwind Traders", "tier": "gold"},
    {"id": "C-18", "name": "Contoso Logistics", "tier": "silver"},
    {"id": "C-19", "name": "Fabrikam Labs", "tier": "gold"},
)


def application(_arguments: Arguments) -> ASGIApp:
    """Return the tool's application, answering at `/mcp`."""
    server = MCPServer("crm")

    @server.tool()
    def crm_search(query: str) -> list[dict[str, str]]:
        """Find customers whose name or id contains `query`."""
        return [row for row in _CUSTOMERS if query.casefold() in " ".join(row.values()).casefold()]

    @server.tool()
    def crm_export(tier: str) -> str:
        """Export every customer of a tier as CSV: the call a person should agree to."""
        output = io.StringIO()
        writer = csv.DictWriter(output, fieldnames=["id", "name", "tier"])
        writer.writeheader()
        writer.writerows(row for row in _CUSTOMERS if row["tier"] == tier)
        return output.getvalue()

    # Envoy answers for the one host name of its route alone, and the socket has no other door.
    reached_through_envoy_only = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    return server.streamable_http_app(transport_security=reached_through_envoy_only)


if __name__ == "__main__":
    run(application)
