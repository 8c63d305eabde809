"""The analyst: a real A2A agent on the official SDK, in both versions and both HTTP bindings.

It answers a question with a task: two working states, an artifact, and the end. Told to `draft`, it
leaves the task open for more input, so that there is something to cancel. It keeps push
notification configs and calls nobody.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from a2a.helpers import new_task_from_user_message, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import (
    create_agent_card_routes,
    create_jsonrpc_routes,
    create_rest_routes,
)
from a2a.server.tasks import InMemoryPushNotificationConfigStore, InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill
from a2a.utils.constants import TransportProtocol
from starlette.applications import Starlette
from starlette.types import ASGIApp

from authz_server.agent.svid import PemSvid
from authz_server.demo.mesh_client import ServiceDirectory
from authz_server.demo.services.serving import Arguments, run

RPC_PATH: Final = "/a2a"
_VERSIONS: Final = ("1.0", "0.3")
_TEXT: Final = "text/plain"


class Analyst(AgentExecutor):
    """Does the work of a task, which here is to repeat the question."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Work on the message in `context`, and say so in `event_queue`."""
        task = context.current_task
        if task is None:
            assert context.message is not None, "the SDK calls only with a message"
            task = new_task_from_user_message(context.message)
            await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        question = context.get_user_input()
        if question.startswith("draft"):
            await updater.requires_input()
            return
        await updater.add_artifact([new_text_part(f"looked into: {question}")], name="answer")
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """End the task in `context`."""
        task = context.current_task
        assert task is not None, "the SDK calls only for a task it has"
        await TaskUpdater(event_queue, task.id, task.context_id).cancel()


def application(arguments: Arguments) -> ASGIApp:
    """Return the agent's application: its card, JSON-RPC at `/a2a`, HTTP+JSON at the root."""
    own_id = PemSvid(arguments.svid / "svid.pem", arguments.svid / "svid.key.pem").svid().spiffe_id
    card = agent_card(ServiceDirectory(arguments.directory).name_of(str(own_id)))
    handler = DefaultRequestHandler(
        agent_executor=Analyst(),
        task_store=InMemoryTaskStore(),
        agent_card=card,
        push_config_store=InMemoryPushNotificationConfigStore(),
        extended_agent_card=card,
    )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await handler.aclose()

    return Starlette(
        routes=[
            *create_agent_card_routes(card),
            *create_jsonrpc_routes(handler, RPC_PATH, enable_v0_3_compat=True),
            *create_rest_routes(handler, enable_v0_3_compat=True),
        ],
        lifespan=lifespan,
    )


def agent_card(host: str) -> AgentCard:
    """Return the card of the analyst that is reached as `host`."""
    urls = {
        TransportProtocol.JSONRPC: f"https://{host}{RPC_PATH}",
        TransportProtocol.HTTP_JSON: f"https://{host}",
    }
    return AgentCard(
        name="analyst",
        description="Looks into the questions of other agents.",
        version="1.0.0",
        supported_interfaces=[
            AgentInterface(url=url, protocol_binding=binding.value, protocol_version=version)
            for version in _VERSIONS
            for binding, url in urls.items()
        ],
        capabilities=AgentCapabilities(
            streaming=True, push_notifications=True, extended_agent_card=True
        ),
        default_input_modes=[_TEXT],
        default_output_modes=[_TEXT],
        skills=[
            AgentSkill(
                id="analysis",
                name="Analysis",
                description="Looks into a question.",
                tags=["analysis"],
                input_modes=[_TEXT],
                output_modes=[_TEXT],
            )
        ],
    )


if __name__ == "__main__":
    run(application)
