"""ASGI middleware: what came with a request is the current delegation while it is served."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from authz_server.agent.received import Delegation, serving

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Callable[..., Any], Callable[..., Any]], Awaitable[None]]


class DelegationMiddleware:
    """Wrap an ASGI application: `app = DelegationMiddleware(app)`, or `app.add_middleware(...)`."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(
        self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        """Serve one connection."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        with serving(Delegation.from_headers(scope["headers"])):
            await self._app(scope, receive, send)
