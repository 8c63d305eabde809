"""The gRPC transport: Check, health and reflection on TCP and on Unix sockets.

Check is carried as bytes from socket to `CheckService.handle` and back; this module knows protobuf
only for the two standard services beside it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from authz_server._pb.envoy.service.auth.v3 import external_auth_pb2
from authz_server.core import limits
from authz_server.servers.addresses import (
    ListenError,
    SocketFile,
    claim_tcp,
    claim_unix,
    is_loopback,
    socket_file_mode,
)
from authz_server.servers.guarded_calls import Admit, GuardedCalls
from authz_server.servers.listener_tls import ListenerTls

# From the descriptor, which reflection serves; its import registers it.
SERVICE: Final[str] = external_auth_pb2.DESCRIPTOR.services_by_name["Authorization"].full_name

# Larger than what `wire` admits, so that an oversize request gets a recorded denial with its
# reason; only beyond this does gRPC itself refuse (RESOURCE_EXHAUSTED, a denial to Envoy).
_MESSAGE_BYTES_MAX: Final = 4 * limits.CHECK_REQUEST_BYTES_MAX

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", limits.CONCURRENT_CHECKS_MAX),
    # Envoy pings idle connections every few seconds (connection_keepalive); the default tolerates
    # one ping in five minutes and then closes the connection as abusive.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    # Notice an Envoy whose host is gone; the default is two hours.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

# Well below the hour that an SVID of SPIRE lives by default.
MAX_CONNECTION_AGE_S: Final = 600.0

# Time for the last health message to reach the watchers, whose streams never end by themselves.
_WATCH_LINGER_S: Final = 0.05

Check = Callable[[bytes], Awaitable[bytes]]


class GrpcServer:
    """One gRPC server on several addresses.

    Order of use: construct in a running loop, `listen`, `start`, `set_serving`, `stop`.
    """

    def __init__(
        self,
        check: Check,
        *,
        max_connection_age_s: float = MAX_CONNECTION_AGE_S,
        tls: ListenerTls | None = None,
        admit: Admit | None = None,
    ) -> None:
        """`tls` serves every address with mutual TLS; `admit` is asked before each call.

        A connection older than `max_connection_age_s` is ended once its calls are answered, so that
        Envoys spread over replicas that came later and prove themselves anew.
        """
        self._tls = tls
        self._server = grpc.aio.server(
            interceptors=() if admit is None else (GuardedCalls(admit),),
            options=(
                *_OPTIONS,
                *_connection_age(max_connection_age_s),
                # With the default, a second server would silently share the port and half the
                # calls. With TLS one of our own has to (`take_over`); `claim_tcp` stops the others.
                ("grpc.so_reuseport", int(tls is not None)),
            ),
            maximum_concurrent_rpcs=limits.CONCURRENT_CHECKS_MAX,
        )
        self._sockets: list[SocketFile] = []
        self._server.add_generic_rpc_handlers((_check_handler(check),))
        self._health = _Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    def listen(self, address: str) -> str:
        """Bind `address`, which is `host:port` or `unix:///path`; return what is bound.

        Port 0 picks a free one. Raises `ListenError`.
        SECURITY: without TLS nothing that another host can reach is accepted.
        """
        try:
            if address.startswith("unix:"):
                return self._listen_unix(Path(address.removeprefix("unix:").removeprefix("//")))
            return self._listen_tcp(address)
        except (OSError, ValueError, RuntimeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ListenError(f"cannot listen on grpc {address}: {why}") from error

    def take_over(self, bound: str) -> None:
        """Bind what another server of this process has bound, beside it.

        New connections come to either until the other one stops.
        """
        if bound.startswith("unix:"):
            self._bind_unix(Path(bound.removeprefix("unix://")))
        else:
            self._add_port(bound)

    async def start(self) -> None:
        """Begin to answer; health says NOT_SERVING until `set_serving`."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()

    async def set_serving(self) -> None:
        """Let health say SERVING."""
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def set_not_serving(self) -> None:
        """Let health say NOT_SERVING; calls are answered all the same."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Accept no more calls, wait up to `grace_s` for those in flight, then cut them off."""
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.ensure_future(self._server.stop(grace_s))
        await asyncio.sleep(_WATCH_LINGER_S)
        self._health.end_watches()
        await stopping
        for file in self._sockets:
            file.remove()

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)

    def _listen_tcp(self, address: str) -> str:
        host, _, port = address.rpartition(":")
        if self._tls is None and not is_loopback(host):
            raise ValueError("plaintext is for loopback addresses and Unix sockets only")
        claim_tcp(host.strip("[]"), int(port))
        return f"{host}:{self._add_port(address)}"

    def _listen_unix(self, path: Path) -> str:
        claim_unix(path)
        self._bind_unix(path)
        return f"unix://{path.absolute()}"

    def _bind_unix(self, path: Path) -> None:
        with socket_file_mode():
            self._add_port(f"unix:{path}")
        self._sockets.append(SocketFile(path))

    def _add_port(self, address: str) -> int:
        if self._tls is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._tls.credentials())


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """The standard health service, whose watches can be ended.

    An open watch would hold up every drain until its time is over.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Future[None]] = set()
        self._ended = False

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: object
    ) -> None:
        """Send the state, and every change of it (grpc.health.v1)."""
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await watch
        except asyncio.CancelledError:
            if not self._ended:  # by the client, then
                raise
        finally:
            self._watches.discard(watch)

    def end_watches(self) -> None:
        """End every open watch."""
        self._ended = True
        for watch in self._watches:
            watch.cancel()


def _connection_age(age_s: float) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.max_connection_age_ms", int(age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", int(limits.DRAIN_TIMEOUT_S * 1000)),
    )


def _check_handler(check: Check) -> grpc.GenericRpcHandler:
    async def handle(data: bytes, _context: object) -> bytes:
        return await check(data)

    # No serializers: gRPC hands over the bytes of the message and takes those of the answer.
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(handle)
    return grpc.method_handlers_generic_handler(SERVICE, {"Check": method})
