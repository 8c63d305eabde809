"""Full sessions with official clients: what is allowed, denied, escalated, approved, used up.

The clients are the libraries' own. Ours is the hook that adds the delegation (`McpDelegation`,
`aio_interceptors`, `HttpxDelegation`) and `typed_refusals`, which names what came back.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
import httpx
import httpx2
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.client import Client as A2aClient
from a2a.helpers import new_raw_message, new_text_message
from a2a.types import Message, Role, SendMessageRequest, TaskPushNotificationConfig
from click.testing import CliRunner
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from authz_server._pb.fleet.v1 import fleet_pb2 as fleet
from authz_server.agent import (
    AccessRequest,
    Delegation,
    Delegator,
    Denied,
    Escalated,
    HandOff,
    typed_refusals,
)
from authz_server.agent.grpc_client import aio_interceptors
from authz_server.agent.httpx_auth import HttpxDelegation
from authz_server.agent.mcp_client import McpDelegation
from authz_server.cli.main import group
from authz_server.core.spiffe import SpiffeId
from authz_server.demo.cast import ALICE, ASSISTANT, BOB
from authz_server.demo.mesh import Mesh
from authz_server.live.targets import Identity
from authz_server.live.tls import spiffe_context
from tests.e2e.test_a2a_sdk import ToTheAnalyst


@dataclass(frozen=True, kw_only=True)
class Told:
    """What an agent was told of one call: `allow`, or the refusal and its ticket."""

    verdict: str
    reason: str = "OK"
    answer: Any = None
    ticket: AccessRequest | None = None


async def told(call: Awaitable[Any]) -> Told:
    try:
        with typed_refusals():
            return Told(verdict="allow", answer=await call)
    except Denied as error:
        return Told(verdict="deny", reason=error.reason)
    except Escalated as error:
        return Told(verdict="escalate", reason=error.reason, ticket=error.access_request)


async def answered(call: Callable[[], Awaitable[Any]]) -> Told:
    """Repeat `call` while approvals cannot be reached, as an agent is told to do then.

    A shared database that does not answer within 200 ms leaves an escalation without a ticket.
    """
    while True:  # bounded by the test's time limit
        answer = await told(call())
        if answer.verdict != "escalate" or answer.ticket is not None:
            return answer


async def approved_once(mesh: Mesh, call: Callable[[], Awaitable[Any]], group: str) -> Any:
    """Have `call` escalated, approved by a person, allowed once and escalated again.

    Returns the answer of the one that passed.
    """
    first = await answered(call)
    assert (first.verdict, first.reason) == ("escalate", "ESCALATED_BY_RULE")
    assert first.ticket is not None
    assert (first.ticket.status, first.ticket.approver_group) == ("pending", group)
    again = await answered(call)
    assert again.ticket is not None
    assert again.ticket.id == first.ticket.id, "the same question, not a second one"
    await asyncio.to_thread(approve, mesh, first.ticket.id)
    passed = await answered(call)
    assert passed.verdict == "allow"
    used_up = await answered(call)
    assert used_up.verdict == "escalate"
    assert used_up.ticket is not None
    assert used_up.ticket.id != first.ticket.id
    return passed.answer


def approve(mesh: Mesh, ticket: str) -> None:
    """Answer as a person does: with the command."""
    argv = ["approvals", "approve", ticket, "--as", BOB]
    done = CliRunner().invoke(group, [*argv, "--config", str(mesh.layout.configuration)])
    assert done.exit_code == 0, done.output


def delegation(mesh: Mesh, *scope: str, hops: int = 0) -> Delegation:
    """Return what Alice lets the assistant do."""
    root = mesh.issuer.issue_root(
        subject=ALICE,
        actor=mesh.plan.spiffe_id(ASSISTANT),
        scope=scope,
        purpose="support-case",
        hops=hops,
    )
    return Delegation(root=root)


def identity(mesh: Mesh) -> Identity:
    mesh.svid(ASSISTANT)
    return Identity(mesh.layout.svid(ASSISTANT))


@asynccontextmanager
async def mcp_client(mesh: Mesh, mode: str, held: Delegation) -> AsyncIterator[Client]:
    end = mesh.endpoint("crm")
    context = spiffe_context(identity(mesh), SpiffeId.parse(end.spiffe_id))
    async with httpx2.AsyncClient(
        verify=context,
        auth=McpDelegation(delegation=held),
        headers={"host": mesh.service("crm").host},
        trust_env=False,
    ) as http:
        url = f"https://{end.host}:{end.port}/mcp"
        async with Client(streamable_http_client(url, http_client=http), mode=mode) as client:
            yield client


@asynccontextmanager
async def grpc_channel(mesh: Mesh, held: Delegation) -> AsyncIterator[grpc.aio.Channel]:
    end, own = mesh.endpoint("fleet"), identity(mesh)
    credentials = grpc.ssl_channel_credentials(
        own.trust_bundle.read_bytes(), own.private_key.read_bytes(), own.certificate.read_bytes()
    )
    async with grpc.aio.secure_channel(
        f"{end.host}:{end.port}",
        credentials,
        options=[("grpc.ssl_target_name_override", mesh.service("fleet").host)],
        interceptors=aio_interceptors(delegation=held),
    ) as channel:
        yield channel


def unary(channel: grpc.aio.Channel, name: str, request: Any) -> Callable[[str], Awaitable[Any]]:
    method = channel.unary_unary(
        f"/fleet.v1.Deployments/{name}",
        request_serializer=request.SerializeToString,
        response_deserializer=fleet.Deployment.FromString,
    )

    async def call(deployment: str) -> Any:
        return await method(request(name=deployment))

    return call


@asynccontextmanager
async def rest_client(mesh: Mesh, held: Delegation) -> AsyncIterator[httpx.AsyncClient]:
    end = mesh.endpoint("data")
    async with httpx.AsyncClient(
        verify=spiffe_context(identity(mesh), SpiffeId.parse(end.spiffe_id)),
        base_url=f"https://{end.host}:{end.port}",
        auth=HttpxDelegation(delegation=held),
        headers={"host": mesh.service("data").host},
        trust_env=False,
    ) as client:
        yield client


@asynccontextmanager
async def a2a_client(mesh: Mesh) -> AsyncIterator[A2aClient]:
    """The agent's own card says how it is called; its messages are handed off to it."""
    analyst = mesh.service("analyst")
    audience = (analyst.audience,)
    hand_off = HandOff(
        to=str(mesh.plan.spiffe_id(analyst.workload)), audience=audience, scope=["crm.read"]
    )
    held = delegation(mesh, "crm.read", hops=1)
    hook = HttpxDelegation(Delegator(mesh.svid(ASSISTANT)), hand_off, delegation=held)
    async with httpx.AsyncClient(transport=ToTheAnalyst(mesh, ASSISTANT), auth=hook) as http:
        card = await A2ACardResolver(http, f"https://{analyst.host}").get_agent_card()
        config = ClientConfig(httpx_client=http, streaming=False)
        async with ClientFactory(config).create(card) as client:
            yield client


async def _answer(client: A2aClient, message: Message) -> str:
    """Return the id of the task that the message became."""
    answers = [a async for a in client.send_message(SendMessageRequest(message=message))]
    return str(answers[-1].task.id)


# --- the sessions -------------------------------------------------------------------------------


async def mcp_session(mesh: Mesh, mode: str, revision: str, tier: str) -> None:
    """Initialize or discover, list, call, be denied, be escalated, be approved."""
    async with mcp_client(mesh, mode, delegation(mesh, "crm.read", "crm.export")) as client:
        assert client.protocol_version == revision
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert tools == {"crm_search", "crm_export"}
        found = await client.call_tool("crm_search", {"query": "northwind"})
        assert found.structured_content == {
            "result": [{"id": "C-17", "name": "Northwind Traders", "tier": "gold"}]
        }
        before = len(mesh.visits("crm"))
        denied = await told(client.call_tool("crm_export", {"tier": "everyone"}))
        assert (denied.verdict, denied.reason) == ("deny", "DENIED_BY_RULE")
        assert len(mesh.visits("crm")) == before, "a denied call went nowhere"
        passed = await approved_once(
            mesh, lambda: client.call_tool("crm_export", {"tier": tier}), "support-leads"
        )
        assert passed.content[0].text.startswith("id,name,tier")
        assert len(mesh.visits("crm")) == before + 1


async def a2a_session(mesh: Mesh) -> None:
    """Read the card, ask, be denied, be escalated, be approved."""
    async with a2a_client(mesh) as client:
        assert await _answer(client, new_text_message("why", role=Role.ROLE_USER))
        before = len(mesh.visits("analyst"))
        leak = TaskPushNotificationConfig(task_id="7", url="https://collector.example.net/")
        denied = await told(client.create_task_push_notification_config(leak))
        assert (denied.verdict, denied.reason) == ("deny", "DENIED_BY_RULE")
        assert len(mesh.visits("analyst")) == before

        def handing_over() -> Awaitable[str]:
            file = new_raw_message(b"minutes", "text/plain", "notes.txt", role=Role.ROLE_USER)
            return _answer(client, file)

        assert await approved_once(mesh, handing_over, "support-leads")
        assert len(mesh.visits("analyst")) == before + 1


async def grpc_session(mesh: Mesh, deployment: str) -> None:
    """Get, list (a stream), be denied, be escalated, be approved."""
    async with grpc_channel(mesh, delegation(mesh, "fleet.read", "fleet.delete")) as channel:
        got = await unary(channel, "Get", fleet.GetRequest)("checkout")
        assert (got.name, got.replicas) == ("checkout", 3)
        stream = channel.unary_stream(
            "/fleet.v1.Deployments/List",
            request_serializer=fleet.ListRequest.SerializeToString,
            response_deserializer=fleet.Deployment.FromString,
        )
        assert [item.name async for item in stream(fleet.ListRequest())] == ["checkout", "search"]
        before = len(mesh.visits("fleet"))
        restart = unary(channel, "Restart", fleet.RestartRequest)
        denied = await told(restart("checkout"))
        # On a weekend a rule denies it too; without the scope it is denied on every day.
        assert denied.verdict == "deny"
        assert denied.reason in {"NO_MATCHING_RULE", "DENIED_BY_RULE"}
        assert len(mesh.visits("fleet")) == before
        delete = unary(channel, "Delete", fleet.DeleteRequest)
        passed = await approved_once(mesh, lambda: delete(deployment), "platform-oncall")
        assert passed.name == deployment
        assert len(mesh.visits("fleet")) == before + 1


async def rest_session(mesh: Mesh) -> None:
    """Read, and be denied what changes something or is not for this purpose."""
    async with rest_client(mesh, delegation(mesh, "data.read")) as client:
        invoices = await client.get("/v1/customers/C-17/invoices")
        assert invoices.json()["customer"] == "C-17"
        before = len(mesh.visits("data"))
        for call in (client.delete("/v1/customers/C-17"), client.get("/v1/payroll")):
            denied = await told(call)
            assert (denied.verdict, denied.reason) == ("deny", "DENIED_BY_RULE")
        assert len(mesh.visits("data")) == before
