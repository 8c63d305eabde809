"""The gRPC listener: one server, replaced by its like when open connections must not go on.

A TLS connection rests on the certificate of its handshake. When the authority behind that is taken
back, `Admission` denies each further call on the connection, also to an Envoy that has long got a
new SVID and would only have to connect anew. So a second server takes over the addresses, and the
first one ends its connections, calls answered.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from authz_server.core import limits
from authz_server.servers.addresses import ListenError
from authz_server.servers.grpc_server import Check, GrpcServer
from authz_server.servers.guarded_calls import Admit
from authz_server.servers.listener_tls import ListenerTls


class Listener:
    """A `GrpcServer` that can be renewed. Order of use: as there."""

    def __init__(
        self,
        check: Check,
        *,
        max_connection_age_s: float,
        tls: ListenerTls | None = None,
        admit: Admit | None = None,
    ) -> None:
        """Take the arguments of `GrpcServer`."""
        self._make: Callable[[], GrpcServer] = partial(
            GrpcServer, check, max_connection_age_s=max_connection_age_s, tls=tls, admit=admit
        )
        self._server = self._make()
        self._tls = tls
        self._bound: list[str] = []
        self._serving = False
        self._authorities = frozenset[bytes]()  # that open connections may rest on
        self._leaving = set[asyncio.Task[None]]()

    def listen(self, address: str) -> str:
        """Bind `address`; return what is bound. Raises `ListenError`."""
        self._bound.append(self._server.listen(address))
        return self._bound[-1]

    async def start(self) -> None:
        """Begin to answer."""
        if self._tls is not None:
            self._authorities = self._tls.authorities()
        await self._server.start()

    async def set_serving(self) -> None:
        """Let health say SERVING."""
        self._serving = True
        await self._server.set_serving()

    async def set_not_serving(self) -> None:
        """Let health say NOT_SERVING; calls are answered all the same."""
        self._serving = False
        await self._server.set_not_serving()

    async def renew_if_distrusted(self) -> bool:
        """End the open connections if an authority that one may rest on is gone; tell whether.

        Nothing happens while there is no authority at all: each call is denied until there is one.
        """
        present = self._tls.authorities() if self._tls is not None else frozenset()
        if not present:
            return False
        if self._authorities <= present:
            self._authorities = present
            return False
        successor = await self._successor()
        if successor is None:
            return False  # the next time, then; calls on the old connections are denied
        self._authorities = present
        leaving = asyncio.create_task(self._server.stop(limits.LISTENER_RENEWAL_GRACE_S))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        self._server = successor
        return True

    async def _successor(self) -> GrpcServer | None:
        successor = self._make()
        try:
            for address in self._bound:
                successor.take_over(address)
        except (ListenError, RuntimeError):
            await successor.stop(0)
            return None
        await successor.start()
        if self._serving:
            await successor.set_serving()
        return successor

    async def stop(self, grace_s: float) -> None:
        """Accept no more calls, wait up to `grace_s` for those in flight, then cut them off."""
        await self._server.stop(grace_s)
        await asyncio.gather(*self._leaving)
