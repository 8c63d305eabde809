"""gRPC server interceptors: the delegation in a call's metadata is the current one in its handler.

grpc.server(pool, interceptors=[DelegationInterceptor()])
grpc.aio.server(interceptors=[AioDelegationInterceptor()])
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio

from authz_server.agent.received import Delegation, serving

Behaviour = Callable[[Any, Any], Any]


class DelegationInterceptor(grpc.ServerInterceptor):
    """For `grpc.server`, whose handlers run in threads."""

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Return the handler of this call, wrapped."""
        handler = continuation(details)
        return handler and _wrapped(handler, details, _in_thread, _stream_in_thread)


class AioDelegationInterceptor(grpc.aio.ServerInterceptor):
    """For `grpc.aio.server`, whose handlers are coroutines."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        """Return the handler of this call, wrapped."""
        handler = await continuation(details)
        return handler and _wrapped(handler, details, _in_task, _stream_in_task)


def _wrapped(
    handler: Any,
    details: Any,
    single: Callable[[Behaviour, Delegation | None], Behaviour],
    stream: Callable[[Behaviour, Delegation | None], Behaviour],
) -> Any:
    metadata = details.invocation_metadata or ()
    # Binary metadata, whose values are bytes of any kind, is never ours.
    received = Delegation.from_headers([(k, v) for k, v in metadata if isinstance(v, str)])
    kind = "stream" if handler.request_streaming else "unary"
    answer = "stream" if handler.response_streaming else "unary"
    behaviour: Behaviour = getattr(handler, f"{kind}_{answer}")
    make: Callable[..., Any] = getattr(grpc, f"{kind}_{answer}_rpc_method_handler")
    return make(
        (stream if handler.response_streaming else single)(behaviour, received),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _in_thread(behaviour: Behaviour, received: Delegation | None) -> Behaviour:
    def handle(request: Any, context: Any) -> Any:
        with serving(received):
            return behaviour(request, context)

    return handle


def _stream_in_thread(behaviour: Behaviour, received: Delegation | None) -> Behaviour:
    def handle(request: Any, context: Any) -> Iterator[Any]:
        with serving(received):
            yield from behaviour(request, context)

    return handle


def _in_task(behaviour: Behaviour, received: Delegation | None) -> Behaviour:
    async def handle(request: Any, context: Any) -> Any:
        with serving(received):
            return await behaviour(request, context)

    return handle


def _stream_in_task(behaviour: Behaviour, received: Delegation | None) -> Behaviour:
    async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
        with serving(received):
            async for answer in behaviour(request, context):
                yield answer

    return handle
