"""The official A2A SDK, client and server, with a real Envoy and the PDP between them.

Every test runs in both versions and both HTTP bindings that the SDK has. The client is the SDK's
own; ours is the `auth` of its httpx client, and the connection to where the mesh says.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import httpx
import pytest
from a2a.client import A2ACardResolver, Client, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError, AgentCardResolutionError
from a2a.helpers import new_raw_message, new_text_message
from a2a.types import (
    AgentCard,
    CancelTaskRequest,
    GetExtendedAgentCardRequest,
    GetTaskRequest,
    ListTasksRequest,
    Message,
    Role,
    SendMessageRequest,
    SubscribeToTaskRequest,
    Task,
    TaskPushNotificationConfig,
    TaskState,
)
from click.testing import CliRunner

from authz_server.agent import (
    Delegation,
    Delegator,
    Denied,
    Escalated,
    HandOff,
    Patience,
    typed_refusals,
)
from authz_server.agent.httpx_auth import HttpxDelegation
from authz_server.agent.onward import Onward
from authz_server.cli.main import group
from authz_server.core.attributes import Kind
from authz_server.core.spiffe import SpiffeId
from authz_server.demo.cast import ALICE, ANALYST, ASSISTANT, BOB, DOMAIN, RESEARCH
from authz_server.demo.mesh import Mesh
from authz_server.demo.plan import MeshPlan, Party
from authz_server.demo.run import SHIPPED_BUNDLES
from authz_server.live.targets import Identity
from authz_server.live.tls import spiffe_context

pytestmark = pytest.mark.xdist_group("a2a-mesh")

BINDINGS = [
    (version, binding) for version in ("1.0", "0.3") for binding in ("JSONRPC", "HTTP+JSON")
]
each_binding = pytest.mark.parametrize(("version", "binding"), BINDINGS)
MESH_HOOK = "https://assistant.agents.demo.example.org/done"
QUICK = Patience(timeout_s=60, first_s=0.01, longest_s=0.05)

Result = TypeVar("Result")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    agents = (ASSISTANT, RESEARCH, ANALYST.workload)
    story = MeshPlan(
        trust_domain=DOMAIN,
        services=(ANALYST,),
        parties=(
            *(Party(id=DOMAIN.uri + path, kind=Kind.AGENT, owner="team-a2a") for path in agents),
            *(Party(id=person, kind=Kind.HUMAN) for person in (ALICE, BOB)),
        ),
        bundles=SHIPPED_BUNDLES,
        approvers={"support-leads": (BOB,)},
    )
    with Mesh.start(tmp_path_factory.mktemp("mesh"), story) as running:
        yield running


class ToTheAnalyst(httpx.AsyncBaseTransport):
    """Connects to the analyst's Envoy, whatever the name; there is no DNS for it."""

    def __init__(self, mesh: Mesh, caller: str) -> None:
        identity = Identity(mesh.layout.svid(caller))
        self._endpoint = mesh.endpoint(ANALYST.name)
        context = spiffe_context(identity, SpiffeId.parse(self._endpoint.spiffe_id))
        self._inner = httpx.AsyncHTTPTransport(verify=context, trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url.copy_with(host=self._endpoint.host, port=self._endpoint.port)
        return await self._inner.handle_async_request(
            httpx.Request(
                request.method,
                url,
                headers=request.headers,
                stream=request.stream,
                extensions=request.extensions | {"sni_hostname": ANALYST.host},
            )
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


def http(mesh: Mesh, auth: httpx.Auth | None, caller: str = ASSISTANT) -> httpx.AsyncClient:
    mesh.svid(caller)
    return httpx.AsyncClient(transport=ToTheAnalyst(mesh, caller), auth=auth, timeout=15)


def root(mesh: Mesh, purpose: str | None = "support-case") -> Delegation:
    token = mesh.issuer.issue_root(
        subject=ALICE,
        actor=mesh.plan.spiffe_id(ASSISTANT),
        scope=["crm.read"],
        purpose=purpose,
        hops=1,
    )
    return Delegation(root=token)


def handing_off(
    mesh: Mesh, to: str = ANALYST.workload, purpose: str | None = "support-case"
) -> Any:
    """Return the hook: it signs a link to the agent that is called, for each request."""
    hand_off = HandOff(
        to=str(mesh.plan.spiffe_id(to)), audience=[ANALYST.audience], scope=["crm.read"]
    )
    return HttpxDelegation(
        Delegator(mesh.svid(ASSISTANT)), hand_off, delegation=root(mesh, purpose)
    )


async def card_of(client: httpx.AsyncClient, version: str, binding: str) -> AgentCard:
    """Return the agent's card, with one of its interfaces."""
    card = await A2ACardResolver(client, f"https://{ANALYST.host}").get_agent_card()
    offered = [
        interface
        for interface in card.supported_interfaces
        if (interface.protocol_version, interface.protocol_binding) == (version, binding)
    ]
    del card.supported_interfaces[:]
    card.supported_interfaces.extend(offered)
    return card


def a2a(client: httpx.AsyncClient, card: AgentCard, *, streaming: bool = False) -> Client:
    binding = card.supported_interfaces[0].protocol_binding
    return ClientFactory(
        ClientConfig(
            httpx_client=client, supported_protocol_bindings=[binding], streaming=streaming
        )
    ).create(card)


def in_session(
    mesh: Mesh,
    version: str,
    binding: str,
    talk: Callable[[httpx.AsyncClient, AgentCard], Awaitable[Result]],
    auth: httpx.Auth | None = None,
) -> Result:
    """Return what `talk` returns, which is given a client and the agent's card."""

    async def run() -> Result:
        async with http(mesh, auth or handing_off(mesh)) as client:
            return await talk(client, await card_of(client, version, binding))

    return asyncio.run(run())


def asking(text: str) -> Message:
    return new_text_message(text, role=Role.ROLE_USER)


async def sent(client: Client, message: Message, **settings: Any) -> Task:
    """Return the task as the last answer has it."""
    task = Task()
    async for answer in client.send_message(SendMessageRequest(message=message, **settings)):
        task = answer.task if answer.HasField("task") else task
    return task


@each_binding
def test_a_session(mesh: Mesh, version: str, binding: str) -> None:
    """Card, message, stream, task, push notification, cancel: all of it through Envoy."""

    async def talk(client: httpx.AsyncClient, card: AgentCard) -> None:
        assert card.name == "analyst"
        streaming, agent = a2a(client, card, streaming=True), a2a(client, card)
        request = SendMessageRequest(message=asking("why"))
        events = [event async for event in streaming.send_message(request)]
        kinds = [event.WhichOneof("payload") for event in events]
        assert kinds == ["task", "status_update", "artifact_update", "status_update"]

        done = await sent(agent, asking("why"))
        assert done.status.state == TaskState.TASK_STATE_COMPLETED
        assert done.artifacts[0].parts[0].text == "looked into: why"
        assert (await agent.get_task(GetTaskRequest(id=done.id))).id == done.id
        config = TaskPushNotificationConfig(task_id=done.id, url=MESH_HOOK)
        assert (await agent.create_task_push_notification_config(config)).url == MESH_HOOK
        extended = await agent.get_extended_agent_card(GetExtendedAgentCardRequest())
        assert extended.name == "analyst"

        draft = await sent(agent, asking("draft"))
        async for event in streaming.subscribe(SubscribeToTaskRequest(id=draft.id)):
            assert event.task.id == draft.id
            break
        cancelled = await agent.cancel_task(CancelTaskRequest(id=draft.id))
        assert cancelled.status.state == TaskState.TASK_STATE_CANCELED

    in_session(mesh, version, binding, talk)


@each_binding
def test_a_denial_is_typed_and_goes_nowhere(mesh: Mesh, version: str, binding: str) -> None:
    """The hook raises what the document says, through the SDK, from unary calls and streams."""

    async def talk(client: httpx.AsyncClient, card: AgentCard) -> list[str]:
        agent, streaming = a2a(client, card), a2a(client, card, streaming=True)
        elsewhere = TaskPushNotificationConfig(url="https://collector.example.net/")
        leaking = {"configuration": {"task_push_notification_config": elsewhere}}
        registering = TaskPushNotificationConfig(task_id="7", url="https://collector.example.net/")
        before = len(mesh.visits("analyst"))
        reasons = []
        for call in (
            lambda: agent.create_task_push_notification_config(registering),
            lambda: sent(agent, asking("why"), **leaking),
            lambda: sent(streaming, asking("why"), **leaking),
        ):
            with pytest.raises(Denied) as caught:
                await call()
            assert caught.value.decision_id
            reasons.append(caught.value.reason)
        assert len(mesh.visits("analyst")) == before
        return reasons

    assert in_session(mesh, version, binding, talk) == ["DENIED_BY_RULE"] * 3


@each_binding
def test_a_denial_without_the_hook(mesh: Mesh, version: str, binding: str) -> None:
    """The SDK raises its own error, and its cause still holds the whole document."""
    headers = root(mesh).headers

    async def talk(client: httpx.AsyncClient, card: AgentCard) -> None:
        client.auth = httpx.Auth()
        client.headers.update(headers)
        agent = a2a(client, card)
        with pytest.raises(A2AClientError, match="403") as caught:
            await sent(agent, asking("why"))
        with pytest.raises(Denied) as typed, typed_refusals():
            raise caught.value
        assert typed.value.reason == "NO_MATCHING_RULE"

    in_session(mesh, version, binding, talk)


@pytest.mark.parametrize(("version", "binding"), [BINDINGS[0], BINDINGS[3]])
def test_a_file_waits_for_a_person(mesh: Mesh, version: str, binding: str) -> None:
    """An approval holds for the same message under a new id, once, and for no other file."""

    async def talk(client: httpx.AsyncClient, card: AgentCard) -> None:
        agent = a2a(client, card)

        async def handing_over(content: bytes) -> Task:
            message = new_raw_message(content, "text/plain", "notes.txt", role=Role.ROLE_USER)
            message.parts.extend(asking(f"draft of {version}").parts)
            return await sent(agent, message)

        with pytest.raises(Escalated) as caught:
            await handing_over(b"minutes")
        asked = caught.value.access_request
        assert asked is not None
        assert asked.approver_group == "support-leads"
        await asyncio.to_thread(approve, mesh, asked.id)
        with pytest.raises(Escalated) as other:
            await handing_over(b"other minutes")
        assert other.value.access_request != asked
        task = await caught.value.wait_for_approval_async(lambda: handing_over(b"minutes"), QUICK)
        assert task.id
        with pytest.raises(Escalated) as again:
            await handing_over(b"minutes")
        assert again.value.access_request is not None
        assert again.value.access_request.id != asked.id

    in_session(mesh, version, binding, talk)


def approve(mesh: Mesh, ticket: str) -> None:
    argv = ["approvals", "approve", ticket, "--as", BOB]
    done = CliRunner().invoke(group, [*argv, "--config", str(mesh.layout.configuration)])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (lambda mesh: HttpxDelegation(delegation=root(mesh)), "NO_MATCHING_RULE"),
        (lambda mesh: handing_off(mesh, to=RESEARCH), "LEAF_MISMATCH"),
        (lambda mesh: handing_off(mesh, purpose=None), "DENIED_BY_RULE"),
        (lambda _mesh: HttpxDelegation(), "DELEGATION_REQUIRED"),
    ],
    ids=["exercised", "to another agent", "for no purpose", "for nobody"],
)
def test_what_is_no_handoff(mesh: Mesh, hook: Any, reason: str) -> None:
    async def run() -> None:
        async with http(mesh, handing_off(mesh)) as client:
            card = await card_of(client, *BINDINGS[0])
            client.auth = hook(mesh)
            await sent(a2a(client, card), asking("why"))

    with pytest.raises(Denied) as caught:
        asyncio.run(run())
    assert caught.value.reason == reason


def test_a_card_that_may_not_be_read(mesh: Mesh) -> None:
    async def run() -> None:
        async with http(mesh, None) as client:
            await A2ACardResolver(client, f"https://{ANALYST.host}").get_agent_card()

    with pytest.raises(AgentCardResolutionError) as caught:
        asyncio.run(run())
    assert caught.value.status_code == 403
    with pytest.raises(Denied, match="DELEGATION_REQUIRED"), typed_refusals():
        raise caught.value


def test_listing_the_tasks_of_everybody(mesh: Mesh) -> None:
    async def talk(client: httpx.AsyncClient, card: AgentCard) -> None:
        await a2a(client, card).list_tasks(ListTasksRequest())

    with pytest.raises(Denied, match="NO_MATCHING_RULE"):
        in_session(mesh, *BINDINGS[1], talk)


# --- requests that no SDK sends -----------------------------------------------------------------


def raw(
    mesh: Mesh, method: str, path: str, content: bytes = b"", headers: Any = ()
) -> httpx.Response:
    """Send a request with the delegation of a handoff, and nothing that reads the answer."""
    hand_off = HandOff(
        to=str(mesh.plan.spiffe_id(ANALYST.workload)),
        audience=[ANALYST.audience],
        scope=["crm.read"],
    )
    delegator = Delegator(mesh.svid(ASSISTANT))
    delegation = Onward(delegator, hand_off, delegation=root(mesh)).delegation()
    assert delegation is not None
    lines = [*delegation.headers.items(), *headers]
    if content and "content-type" not in dict(headers):
        lines.append(("content-type", "application/json"))

    async def run() -> httpx.Response:
        async with http(mesh, None) as client:
            url = f"https://{ANALYST.host}{path}"
            return await client.request(method, url, content=content, headers=lines)

    return asyncio.run(run())


CALL = b'{"jsonrpc":"2.0","id":"r1","method":"SendMessage","params":{"message":%s}}'
MESSAGE = b'{"messageId":"m1","role":"ROLE_USER","parts":[{"text":"why"}]}'
BARE = b'{"message":%s}' % MESSAGE
V1 = ("a2a-version", "1.0")
LEAK = b'{"taskId":"7","url":"https://hook.example.org@collector.example.net/"}'

ATTACKS = {
    "a method twice": (
        ("POST", "/a2a", b'{"method":"GetTask",' + CALL[1:] % MESSAGE, [V1]),
        (403, "MALFORMED_BODY", None),
    ),
    "a method in another case": (
        ("POST", "/a2a", b'{"Method":"CancelTask",' + CALL[1:] % MESSAGE, [V1]),
        (403, "MALFORMED_BODY", None),
    ),
    "a task in two spellings": (
        ("POST", "/a2a", CALL % MESSAGE.replace(b"{", b'{"taskId":"1","task_id":"2",', 1), [V1]),
        (403, "MALFORMED_BODY", "r1"),
    ),
    "a batch": (("POST", "/a2a", b"[%s]" % (CALL % MESSAGE), [V1]), (403, "MALFORMED_BODY", None)),
    "JSON-RPC on a path of the HTTP binding": (
        ("POST", "/message:send", CALL % MESSAGE, [V1]),
        (403, "HEADER_BODY_MISMATCH", ...),
    ),
    "the HTTP binding on the path of JSON-RPC": (
        ("POST", "/a2a", BARE, [V1]),
        (403, "MALFORMED_BODY", None),
    ),
    "an escaped colon": (
        ("POST", "/tasks/7%3Acancel", b"", [V1]),
        (403, "NON_CANONICAL_PATH", ...),
    ),
    "an escaped slash": (("POST", "/tasks%2F7:cancel", b"", [V1]), (400, None, ...)),
    "a tenant called like an operation": (
        ("POST", "/tasks/message:send", BARE, [V1]),
        (403, "UNSUPPORTED_METHOD", ...),
    ),
    "two versions": (
        ("POST", "/message:send", BARE, [V1, ("a2a-version", "0.3")]),
        (403, "DUPLICATE_HEADER", ...),
    ),
    "a version with an underscore": (
        ("POST", "/message:send", BARE, [V1, ("a2a_version", "0.3")]),
        (400, None, ...),
    ),
    "a compressed body": (
        ("POST", "/message:send", BARE, [V1, ("content-encoding", "gzip")]),
        (403, "MALFORMED_BODY", ...),
    ),
    "plain text": (
        ("POST", "/message:send", BARE, [V1, ("content-type", "text/plain")]),
        (403, "MALFORMED_BODY", ...),
    ),
    "user information before the host": (
        ("POST", "/tasks/7/pushNotificationConfigs", LEAK, [V1]),
        (403, "MALFORMED_BODY", ...),
    ),
    "more than is ever read": (
        ("POST", "/a2a", CALL % MESSAGE + b" " * 262_144, [V1]),
        (413, None, ...),
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_denied_in_the_shape_of_its_binding(mesh: Mesh, name: str) -> None:
    """The last member is the id that a JSON-RPC answer echoes; `...` stands for no JSON-RPC."""
    request, (status, reason, identifier) = ATTACKS[name]
    before = len(mesh.visits("analyst"))
    answer = raw(mesh, *request)
    assert answer.status_code == status
    assert len(mesh.visits("analyst")) == before
    if reason is None:
        return
    document = answer.json()
    if identifier is not ...:
        assert answer.headers["content-type"] == "application/json"
        assert (document["jsonrpc"], document["id"]) == ("2.0", identifier)
        assert document["error"]["message"]
        document = document["error"]["data"]
    else:
        assert answer.headers["content-type"] == "application/problem+json"
    assert (document["verdict"], document["reason"]) == ("deny", reason)


def test_the_request_next_to_the_attacks(mesh: Mesh) -> None:
    before = len(mesh.visits("analyst"))
    assert "result" in raw(mesh, "POST", "/a2a", CALL % MESSAGE, [V1]).json()
    assert "task" in raw(mesh, "POST", "/message:send", BARE, [V1]).json()
    assert len(mesh.visits("analyst")) == before + 2


def test_an_escalation_echoes_the_id(mesh: Mesh) -> None:
    """Strings and numbers, in both bindings."""
    with_file = MESSAGE.replace(b'{"text":"why"}', b'{"raw":"aGk="}')
    for body, identifier in ((CALL, "r1"), (CALL.replace(b'"r1"', b"7"), 7)):
        answer = raw(mesh, "POST", "/a2a", body % with_file, [V1])
        assert (answer.status_code, answer.headers["x-authz-verdict"]) == (403, "escalate")
        document = answer.json()
        assert document["id"] == identifier
        assert document["error"]["data"]["access_request"]["approver_group"] == "support-leads"
    answer = raw(mesh, "POST", "/message:send", b'{"message":%s}' % with_file, [V1])
    assert (answer.status_code, answer.headers["x-authz-verdict"]) == (403, "escalate")
    assert answer.json()["access_request"]["status"] == "pending"
