"""Ask, before any call of any service of the listener, whether its client may make it."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc.aio

from authz_server.servers.admission import NotAdmittedError, PeerProperties

# Raises `NotAdmittedError` for a client that may not call.
Admit = Callable[[PeerProperties], object]

# Quoted: generic to the type checker alone.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class GuardedCalls(grpc.aio.ServerInterceptor):
    """Ends calls of clients that are not admitted with `PERMISSION_DENIED`, a denial to Envoy.

    SECURITY: for health and reflection too. What is refused here is not recorded: a stranger must
    not be able to fill the ledger.
    """

    def __init__(self, admit: Admit) -> None:
        self._admit = admit

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        """Return the method's handler behind the question."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:  # no such method
            return None
        guarded = {
            kind: self._guarded(method)
            for kind in _KINDS
            if (method := getattr(handler, kind)) is not None
        }
        # A named tuple in all but its type.
        return handler._replace(**guarded)  # type: ignore[no-any-return]

    def _guarded(self, method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def once(request: Any, context: _Context) -> Any:
            await self._ask(context)
            return await method(request, context)

        async def many(request: Any, context: _Context) -> AsyncIterator[Any]:
            await self._ask(context)
            async for message in method(request, context):
                yield message

        return many if inspect.isasyncgenfunction(method) else once

    async def _ask(self, context: _Context) -> None:
        try:
            self._admit(context.auth_context())
        except NotAdmittedError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
