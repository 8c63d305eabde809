"""A request of a scenario as the official A2A client makes it, over JSON-RPC in version 1.0."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import httpx
from a2a.client import A2ACardResolver, Client, ClientConfig, ClientFactory
from a2a.helpers import new_text_message
from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    Role,
    SendMessageRequest,
)
from a2a.utils.constants import PROTOCOL_VERSION_CURRENT, TransportProtocol
from a2a.utils.errors import A2AError

from authz_server.agent.answers import answer_in_error
from authz_server.core.attributes import ActionAttributes, ObjectAttributes
from authz_server.live.http_call import base_url, observed_http
from authz_server.live.observed import TIMEOUT_S, LiveCallError, Observed, refused
from authz_server.live.targets import Identity, Target
from authz_server.live.tls import spiffe_context
from authz_server.settings.addresses import UnixAddress

_CARD: Final = "agent/getCard"
_TEXT: Final = "what is known of this case?"


async def _send(client: Client, obj: ObjectAttributes) -> None:
    message = new_text_message(str(obj.args.get("text", _TEXT)), role=Role.ROLE_USER)
    async for _ in client.send_message(SendMessageRequest(message=message)):
        pass


def _task(obj: ObjectAttributes) -> str:
    return str(obj.args.get("task_id", "unknown"))


_CALLS: Final[Mapping[str, Callable[[Client, ObjectAttributes], Awaitable[object]]]] = {
    "message/send": _send,
    "message/stream": _send,
    "tasks/get": lambda client, obj: client.get_task(GetTaskRequest(id=_task(obj))),
    "tasks/list": lambda client, _obj: client.list_tasks(ListTasksRequest()),
    "tasks/cancel": lambda client, obj: client.cancel_task(CancelTaskRequest(id=_task(obj))),
}


def ask_a2a(
    target: Target,
    identity: Identity,
    delegation: Mapping[str, str],
    act: ActionAttributes,
    obj: ObjectAttributes,
) -> Observed:
    """Make the call. Raises `LiveCallError`, also for a method the client has no call for."""
    if act.name not in {*_CALLS, _CARD}:
        known = ", ".join(sorted({*_CALLS, _CARD}))
        raise LiveCallError(f"the A2A client makes {known}, and not `{act.name}`")
    return asyncio.run(_ask(target, identity, delegation, act, obj))


async def _ask(
    target: Target,
    identity: Identity,
    delegation: Mapping[str, str],
    act: ActionAttributes,
    obj: ObjectAttributes,
) -> Observed:
    responses: list[httpx.Response] = []

    async def remember(response: httpx.Response) -> None:
        responses.append(response)

    async with httpx.AsyncClient(
        transport=_transport(target, identity),
        headers={"host": target.host, **delegation},
        event_hooks={"response": [remember]},
        timeout=TIMEOUT_S,
        trust_env=False,
    ) as http:
        try:
            await _call(target, http, act, obj)
        except A2AError as error:
            answer = answer_in_error(error)
            if answer is not None:
                return refused(answer)
            if not responses:
                raise LiveCallError(f"{target.name} does not answer: {error}") from error
        return observed_http(responses[-1])


async def _call(
    target: Target, http: httpx.AsyncClient, act: ActionAttributes, obj: ObjectAttributes
) -> None:
    if act.name == _CARD:
        await A2ACardResolver(http, base_url(target)).get_agent_card()
        return
    streaming = act.name == "message/stream"
    config = ClientConfig(httpx_client=http, streaming=streaming)
    async with ClientFactory(config).create(_card(target, streaming=streaming)) as client:
        await _CALLS[act.name](client, obj)


def _card(target: Target, *, streaming: bool) -> AgentCard:
    """Return a card that leads to the target: its own would lead by names that no DNS has."""
    path = target.path if target.path != "/" else "/a2a"
    interface = AgentInterface(
        url=base_url(target) + path,
        protocol_binding=TransportProtocol.JSONRPC.value,
        protocol_version=PROTOCOL_VERSION_CURRENT,
    )
    capabilities = AgentCapabilities(streaming=streaming)
    return AgentCard(name=target.name, supported_interfaces=[interface], capabilities=capabilities)


def _transport(target: Target, identity: Identity) -> httpx.AsyncHTTPTransport:
    socket = str(target.address.path) if isinstance(target.address, UnixAddress) else None
    if target.peer is None:
        return httpx.AsyncHTTPTransport(uds=socket, trust_env=False)
    context = spiffe_context(identity, target.peer)
    return httpx.AsyncHTTPTransport(verify=context, uds=socket, trust_env=False)
