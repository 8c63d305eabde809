"""The official MCP client and server complete a session through the hardened Envoy.

Envoy's MCP filter rejects what it takes for no MCP; this holds it to what the SDK really sends, in
the revision with sessions (`initialize`) and the one without (`server/discover`).
"""

import asyncio

import pytest

from authz_server.demo.mesh import Mesh
from tests.e2e import sdk_sessions


@pytest.mark.parametrize(
    ("mode", "revision", "tier"),
    [
        ("legacy", "2025-11-25", "gold"),
        ("2026-07-28", "2026-07-28", "silver"),
        ("auto", "2026-07-28", "gold"),
    ],
)
def test_a_session_through_envoy(mode: str, revision: str, tier: str, everywhere: Mesh) -> None:
    asyncio.run(sdk_sessions.mcp_session(everywhere, mode, revision, tier))


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_a_session_without_a_delegation_does_not_begin(mode: str, everywhere: Mesh) -> None:
    async def run() -> None:
        nobody = sdk_sessions.delegation(everywhere, "calendar.read")
        async with sdk_sessions.mcp_client(everywhere, mode, nobody) as client:
            found = await sdk_sessions.told(client.list_tools())
            assert (found.verdict, found.reason) == ("deny", "NO_MATCHING_RULE")

    asyncio.run(run())
