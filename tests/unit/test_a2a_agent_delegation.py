"""An agent on the official A2A SDK acts for whoever sent the message, and for nobody before.

The SDK runs an agent in tasks of its own, which outlive the request: a delegation in a context
variable must be that of the message being worked on, also where another caller goes on with a task.
"""

import asyncio
from typing import Any

import httpx
import pytest
from a2a.helpers import new_task_from_user_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from starlette.applications import Starlette

from authz_server.agent import DelegationMiddleware, current
from authz_server.demo.services.a2a_agent import agent_card
from tests.harness.chains import three_hops

ROOT, FIRST, SECOND = three_hops()


class Noting(AgentExecutor):
    """Notes for whom it works, and leaves the task open for more."""

    def __init__(self) -> None:
        self.worked_for: list[tuple[str, ...] | None] = []

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        held = current()
        self.worked_for.append(None if held is None else (held.root, *held.links))
        task = context.current_task
        if task is None:
            assert context.message is not None
            task = new_task_from_user_message(context.message)
            await event_queue.enqueue_event(task)
        await TaskUpdater(event_queue, task.id, task.context_id).requires_input()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError


async def told(client: httpx.AsyncClient, path: str, task: Any, headers: dict[str, str]) -> Any:
    """Send a message, to a task if there is one, and return the task it is worked on in."""
    message = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "go on"}]}
    if task is not None:
        message |= {"taskId": task["id"], "contextId": task["contextId"]}
    params: dict[str, Any] = {"message": message}
    call = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": params}
    body = call if path == "/a2a" else params
    answer = (await client.post(path, json=body, headers={"a2a-version": "1.0", **headers})).json()
    return answer.get("result", answer)["task"]


@pytest.mark.parametrize("path", ["/a2a", "/message:send"])
def test_each_message_is_worked_on_for_its_own_sender(path: str) -> None:
    agent = Noting()

    async def run() -> None:
        handler = DefaultRequestHandler(agent, InMemoryTaskStore(), agent_card("agent.example"))
        routes = [*create_jsonrpc_routes(handler, "/a2a"), *create_rest_routes(handler)]
        application = DelegationMiddleware(Starlette(routes=routes))
        transport = httpx.ASGITransport(app=application)
        async with httpx.AsyncClient(transport=transport, base_url="http://agent.example") as http:
            one = {"txn-token": ROOT, "delegation-chain": FIRST}
            other = {"txn-token": ROOT, "delegation-chain": f"{FIRST}, {SECOND}"}
            task = await told(http, path, None, one)
            assert (await told(http, path, task, other))["id"] == task["id"]
            await told(http, path, task, {})
        await handler.aclose()

    asyncio.run(run())
    assert agent.worked_for == [(ROOT, FIRST), (ROOT, FIRST, SECOND), None]
