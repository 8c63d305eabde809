"""gRPC client interceptors: every call carries the delegation, as metadata of the same names.

    channel = grpc.intercept_channel(channel, *delegation_interceptors())
    channel = grpc.aio.secure_channel(target, credentials, interceptors=aio_interceptors())

A denial arrives as the `RpcError` it is; `typed_refusals` around a call makes it `Denied` or
`Escalated`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import grpc.aio

from authz_server.agent.delegator import Delegator
from authz_server.agent.onward import HandOff, Onward
from authz_server.agent.received import DELEGATION_HEADERS, Delegation


def delegation_interceptors(
    delegator: Delegator | None = None,
    hand_off: HandOff | None = None,
    *,
    delegation: Delegation | None = None,
) -> list[Any]:
    """Return the interceptors for `grpc.intercept_channel`; the arguments are those of `Onward`."""
    return [_Interceptor(Onward(delegator, hand_off, delegation=delegation))]


def aio_interceptors(
    delegator: Delegator | None = None,
    hand_off: HandOff | None = None,
    *,
    delegation: Delegation | None = None,
) -> list[grpc.aio.ClientInterceptor]:
    """Return the interceptors for a `grpc.aio` channel; the arguments are those of `Onward`."""
    onward = Onward(delegator, hand_off, delegation=delegation)
    # grpc.aio looks at the class of each and takes it for one kind of call only.
    return [
        _AioUnaryUnary(onward),
        _AioUnaryStream(onward),
        _AioStreamUnary(onward),
        _AioStreamStream(onward),
    ]


class _CallDetails(NamedTuple):
    """`grpc.ClientCallDetails`, which the library gives no way of making."""

    method: Any
    timeout: Any
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


def _metadata(onward: Onward, metadata: Any) -> list[tuple[str, Any]]:
    delegation = onward.delegation()
    if delegation is None:
        return list(metadata or ())
    own = [(key, value) for key, value in metadata or () if key not in DELEGATION_HEADERS]
    return [*own, *delegation.headers.items()]


class _Interceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def __init__(self, onward: Onward) -> None:
        self._onward = onward

    def _intercept(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        members = {name: getattr(details, name, None) for name in _CallDetails._fields}
        members["metadata"] = _metadata(self._onward, members["metadata"])
        return continuation(_CallDetails(**members), request)

    intercept_unary_unary: Any = _intercept
    intercept_unary_stream: Any = _intercept
    intercept_stream_unary: Any = _intercept
    intercept_stream_stream: Any = _intercept


class _Aio:
    def __init__(self, onward: Onward) -> None:
        self._onward = onward

    async def _intercept(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        metadata = grpc.aio.Metadata(*_metadata(self._onward, details.metadata))
        return await continuation(details._replace(metadata=metadata), request)


class _AioUnaryUnary(_Aio, grpc.aio.UnaryUnaryClientInterceptor):
    intercept_unary_unary: Any = _Aio._intercept


class _AioUnaryStream(_Aio, grpc.aio.UnaryStreamClientInterceptor):
    intercept_unary_stream: Any = _Aio._intercept


class _AioStreamUnary(_Aio, grpc.aio.StreamUnaryClientInterceptor):
    intercept_stream_unary: Any = _Aio._intercept


class _AioStreamStream(_Aio, grpc.aio.StreamStreamClientInterceptor):
    intercept_stream_stream: Any = _Aio._intercept
