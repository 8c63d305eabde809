"""The official MCP client and server talk through the hardened Envoy, whatever the revision.

Envoy's MCP filter rejects what it takes for no MCP; this holds it to what the SDK really sends.
"""

import asyncio
from collections.abc import Iterator

import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from authz_server.core.errors import Reason
from authz_server.demo.cast import ALICE, ASSISTANT, CRM, plan
from authz_server.demo.grants import Grant, Wallet
from authz_server.demo.mesh import Mesh
from authz_server.demo.mesh_client import mesh_http_client
from authz_server.demo.run import SHIPPED_BUNDLES

pytestmark = pytest.mark.xdist_group("demo")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh.start(tmp_path_factory.mktemp("mesh"), plan(SHIPPED_BUNDLES)) as running:
        yield running


@pytest.mark.parametrize(
    ("mode", "revision"),
    [("legacy", "2025-11-25"), ("2026-07-28", "2026-07-28"), ("auto", "2026-07-28")],
)
def test_a_session_through_envoy(mode: str, revision: str, mesh: Mesh) -> None:
    grant = Grant(subject=ALICE, agent=ASSISTANT, scope=("crm.read",), purpose="support-case")
    headers = Wallet(mesh).headers(grant)
    mesh.svid(ASSISTANT)

    async def session() -> tuple[str, set[str], object, object]:
        http = mesh_http_client(mesh.layout.svid(ASSISTANT), mesh.layout.services, headers)
        transport = streamable_http_client(f"https://{CRM.host}/mcp", http_client=http)
        async with http, Client(transport, mode=mode) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            found = await client.call_tool("crm_search", {"query": "northwind"})
            denial: object = None
            try:
                await client.call_tool("crm_export", {"tier": "gold"})
            except MCPError as error:
                denial = error.data
            return client.protocol_version, tools, found.structured_content, denial

    version, tools, found, denial = asyncio.run(session())
    assert version == revision
    assert tools == {"crm_search", "crm_export"}
    assert found == {"result": [{"id": "C-17", "name": "Northwind Traders", "tier": "gold"}]}
    assert isinstance(denial, dict)
    assert (denial["verdict"], denial["reason"]) == ("deny", Reason.NO_MATCHING_RULE)
