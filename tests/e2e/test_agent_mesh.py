"""The SDK in a real mesh: the documented two agents, and an MCP session that waits for a person."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from authz_server.agent import (
    Delegation,
    Denied,
    Escalated,
    Patience,
    PemSvid,
    serving,
    typed_refusals,
)
from authz_server.agent.httpx2_auth import Httpx2Delegation
from authz_server.agent.mcp_client import McpDelegation
from authz_server.demo.cast import ALICE, ASSISTANT, BOB, CRM, DATA, RESEARCH_SERVICE, plan
from authz_server.demo.mesh import Mesh
from authz_server.demo.mesh_client import mesh_http_client
from authz_server.demo.processes import child_environment
from authz_server.demo.run import SHIPPED_BUNDLES
from docs.examples.two_agents import assistant
from tests.e2e import agent_research_service

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("agent-mesh")]

ROOT = Path(__file__).parents[2]
QUICK = Patience(timeout_s=60, first_s=0.01, longest_s=0.05)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    story = plan(SHIPPED_BUNDLES)
    research = replace(RESEARCH_SERVICE, module=agent_research_service.__name__)
    cast = replace(story, services=(CRM, DATA, research))
    with Mesh.start(tmp_path_factory.mktemp("mesh"), cast) as running:
        yield running


def client(mesh: Mesh) -> httpx2.AsyncClient:
    mesh.svid(ASSISTANT)
    return mesh_http_client(mesh.layout.svid(ASSISTANT), mesh.layout.services, {})


def root(mesh: Mesh, *scope: str, subject: str = ALICE) -> str:
    return mesh.issuer.issue_root(
        subject=subject,
        actor=mesh.plan.spiffe_id(ASSISTANT),
        scope=scope,
        purpose="support-case",
        hops=1,
    )


def hand_over(mesh: Mesh, token: str) -> Any:
    async def run() -> object:
        async with client(mesh) as http:
            directory = mesh.layout.svid(ASSISTANT)
            svid = PemSvid(directory / "svid.pem", directory / "svid.key.pem")
            return await assistant(http, svid, token, "C-17")

    return asyncio.run(run())


def test_the_page_shows_the_example_that_runs() -> None:
    page = (ROOT / "docs/agents.md").read_text("utf-8")
    example = (ROOT / "docs/examples/two_agents.py").read_text("utf-8")
    assert example in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(example.splitlines()) < 40


def test_two_agents(mesh: Mesh) -> None:
    before = len(mesh.visits("data"))
    answer = hand_over(mesh, root(mesh, "data.read", "crm.read"))
    assert answer["customer"] == "C-17"
    assert len(mesh.visits("data")) == before + 1


def test_the_second_agent_is_told_why_it_may_not(mesh: Mesh) -> None:
    """The person counts at the data API, whoever acts for them."""
    before = len(mesh.visits("data"))
    token = root(mesh, "data.read", subject="mallory@example.org")
    assert hand_over(mesh, token) == {"refused": "NO_MATCHING_RULE"}
    assert len(mesh.visits("data")) == before


def test_the_first_agent_is_told_with_an_exception(mesh: Mesh) -> None:
    async def run() -> None:
        async with client(mesh) as http:
            http.auth = Httpx2Delegation(delegation=Delegation(root=root(mesh, "crm.read")))
            await http.get(f"https://{DATA.host}/v1/customers/C-17/invoices")

    with pytest.raises(Denied) as caught:
        asyncio.run(run())
    assert caught.value.reason == "NO_MATCHING_RULE"
    assert caught.value.decision_id


def approve(mesh: Mesh, ticket: str) -> None:
    argv = [sys.executable, "-m", "authz_server", "approvals", "approve", ticket, "--as", BOB]
    subprocess.run(
        [*argv, "--config", mesh.layout.configuration],
        env=child_environment(),
        capture_output=True,
        check=True,
    )


@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
def test_a_tool_call_waits_for_a_person(mesh: Mesh, mode: str) -> None:
    received = Delegation(root=root(mesh, "crm.read", "crm.export"))
    tier = {"legacy": "silver"}.get(mode, "gold")  # an approval is for exactly these arguments
    repetitions = 0

    async def run() -> tuple[str, str, Any]:
        async with client(mesh) as http:
            http.auth = McpDelegation()
            transport = streamable_http_client(f"https://{CRM.host}/mcp", http_client=http)
            async with Client(transport, mode=mode) as session:
                try:
                    with typed_refusals():
                        await session.call_tool("crm_payroll", {})
                except Denied as error:
                    denied = error.reason

                async def export() -> Any:
                    nonlocal repetitions
                    repetitions += 1
                    if repetitions == 2 and asked is not None:
                        await asyncio.to_thread(approve, mesh, asked.id)
                    return await session.call_tool("crm_export", {"tier": tier})

                asked = None
                try:
                    with typed_refusals():
                        await export()
                except Escalated as escalated:
                    asked = escalated.access_request
                    result = await escalated.wait_for_approval_async(export, QUICK)
                return denied, escalated_group(asked), result.content[0].text

    def escalated_group(asked: Any) -> str:
        return str(asked.approver_group)

    # As in an agent that serves a request: the session begins and ends inside of it.
    with serving(received):
        denied, group, text = asyncio.run(run())
    assert (denied, group) == ("NO_MATCHING_RULE", "support-leads")
    assert text.startswith("id,name,tier")
    assert repetitions == 2
