"""A request of a scenario as the official MCP client makes it, in the revision without sessions."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types.version import LATEST_MODERN_VERSION

from authz_server.agent.answers import answer_in_error
from authz_server.core.attributes import ActionAttributes, ObjectAttributes
from authz_server.live.http_call import base_url
from authz_server.live.observed import (
    DECISION_ID,
    TIMEOUT_S,
    LiveCallError,
    Observed,
    allowed,
    refused,
)
from authz_server.live.targets import Identity, Target
from authz_server.live.tls import spiffe_context
from authz_server.settings.addresses import UnixAddress

_CALLS: Final[Mapping[str, Callable[[Client, ObjectAttributes], Awaitable[object]]]] = {
    "tools/call": lambda client, obj: client.call_tool(obj.tool or "", dict(obj.args)),
    "tools/list": lambda client, _obj: client.list_tools(),
    "resources/list": lambda client, _obj: client.list_resources(),
    "resources/read": lambda client, obj: client.read_resource(obj.uri or ""),
    "prompts/list": lambda client, _obj: client.list_prompts(),
    "prompts/get": lambda client, obj: client.get_prompt(
        obj.tool or "", {name: str(value) for name, value in obj.args.items()}
    ),
}


def ask_mcp(
    target: Target,
    identity: Identity,
    delegation: Mapping[str, str],
    act: ActionAttributes,
    obj: ObjectAttributes,
) -> Observed:
    """Make the call. Raises `LiveCallError`, also for a method the client has no call for."""
    if act.name not in _CALLS:
        known = ", ".join(sorted(_CALLS))
        raise LiveCallError(f"the MCP client makes {known}, and not `{act.name}`")
    try:
        return asyncio.run(_ask(target, identity, delegation, act, obj))
    except (httpx2.TransportError, BaseExceptionGroup) as error:
        raise LiveCallError(f"{target.name} does not answer: {error!r}") from error


async def _ask(
    target: Target,
    identity: Identity,
    delegation: Mapping[str, str],
    act: ActionAttributes,
    obj: ObjectAttributes,
) -> Observed:
    responses: list[httpx2.Response] = []

    async def remember(response: httpx2.Response) -> None:
        if response.request.headers.get("mcp-method") == act.name:
            responses.append(response)

    http = httpx2.AsyncClient(
        transport=_transport(target, identity),
        headers={"host": target.host, **delegation},
        event_hooks={"response": [remember]},
        timeout=TIMEOUT_S,
        trust_env=False,
    )
    url = base_url(target) + (target.path if target.path != "/" else "/mcp")
    transport = streamable_http_client(url, http_client=http)
    async with http, Client(transport, mode=LATEST_MODERN_VERSION) as client:
        # Caught in here: leaving the session wraps what is raised in an exception group.
        try:
            await _CALLS[act.name](client, obj)
        except MCPError as error:
            answer = answer_in_error(error)
            if answer is not None:
                return refused(answer)
    if not responses:
        raise LiveCallError(f"{target.name} was not asked: the client gave up before")
    decision_id = responses[-1].headers.get(DECISION_ID)
    if decision_id is None:
        return Observed(verdict=None, reason=f"HTTP {responses[-1].status_code}")
    return allowed(decision_id)


def _transport(target: Target, identity: Identity) -> httpx2.AsyncHTTPTransport:
    options: dict[str, Any] = {"trust_env": False}
    if isinstance(target.address, UnixAddress):
        options["uds"] = str(target.address.path)
    if target.peer is not None:
        context: ssl.SSLContext = spiffe_context(identity, target.peer)
        options["verify"] = context
    return httpx2.AsyncHTTPTransport(**options)
