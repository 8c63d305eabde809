"""Follow the SPIFFE Workload API: our own X509-SVID, and the bundles of every trust domain.

py-spiffe makes the connection and speaks the protocol. Its streams parse each message on the way
and end for good at the first part they dislike, so ours read the messages themselves, and a stream
that ends, however it ends, is opened again with a new connection.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

import grpc
from spiffe import WorkloadApiClient
from spiffe._proto import workload_pb2
from spiffe.errors import ArgumentError

from authz_server.core.spiffe import TrustDomain
from authz_server.core.trust import TrustBundle
from authz_server.identity.backoff import Backoff
from authz_server.identity.live_bundles import NEVER, Clock, LiveBundles
from authz_server.identity.own_svid import OwnSvid
from authz_server.identity.workload_messages import (
    Authorities,
    JwtKeys,
    Report,
    authorities,
    jwt_keys,
    own_svid,
)

# An agent on the same machine: a second apart costs nothing, and one that comes back is noticed.
_LONGEST_WAIT_S: Final = 2.0
# SPIRE's agent refuses everyone for a moment while it renews what a tainted authority has signed.
# To believe the first refusal would deny every request whenever a key is replaced in good order.
REFUSAL_GRACE: Final = timedelta(seconds=5)
_STOP_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """All that is known from both streams. Replaced as a whole."""

    svid: OwnSvid | None = None
    authorities: Authorities = field(default_factory=lambda: MappingProxyType({}))
    jwt_keys: JwtKeys = field(default_factory=lambda: MappingProxyType({}))
    lost_since: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    heard: frozenset[str] = frozenset()  # streams that have answered at least once
    refused_since: datetime | None = None  # the agent says that we are nobody
    fault: str = "it has not answered yet"


class WorkloadApi:
    """Keeps the state of the Workload API at `socket` (`unix:///path`) until stopped.

    `changed` is called after every change, from a thread of its own. `max_age_s` is how long the
    bundles serve on after contact is lost. Thread-safe.
    """

    def __init__(
        self,
        socket: str,
        *,
        max_age_s: float,
        clock: Clock,
        changed: Callable[[], None],
        report: Report,
    ) -> None:
        self.socket = socket
        self._max_age = timedelta(seconds=max_age_s)
        self._clock = clock
        self._changed = changed
        self._report = report
        self._state = _State()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._complete = threading.Event()  # every stream has answered at least once
        self._calls: dict[str, grpc.Call] = {}
        self._threads = [
            threading.Thread(target=self._follow, args=(stream,), name=stream.name, daemon=True)
            for stream in (_X509, _JWT)
        ]

    def start(self) -> None:
        """Begin to follow both streams."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop, and wait for it a moment. The state stays as it is."""
        self._stopping.set()
        with self._lock:
            for call in self._calls.values():
                call.cancel()
        for thread in self._threads:
            thread.join(_STOP_TIMEOUT_S)

    def wait_until_complete(self, timeout_s: float) -> bool:
        """Wait until both streams have answered; tell whether they have."""
        return self._complete.wait(timeout_s)

    @property
    def svid(self) -> OwnSvid | None:
        """The server's own SVID, or None before there was one."""
        return self._state.svid

    @property
    def fault(self) -> str:
        """Why there is no contact now; empty while there is."""
        return self._state.fault

    @property
    def bundles(self) -> LiveBundles:
        """Every trust domain's bundle, and until when they may be used."""
        state = self._state
        domains = state.authorities.keys() | state.jwt_keys.keys()
        found = {domain: _bundle(domain, state) for domain in sorted(domains)}
        return LiveBundles(bundles=MappingProxyType(found), good_until=self._good_until(state))

    def _good_until(self, state: _State) -> datetime | None:
        if state.svid is None:
            return NEVER
        # An agent that hangs keeps its streams open and falls silent: our SVID would have been
        # renewed before its end. So even in contact nothing serves for ever.
        since = min((*state.lost_since.values(), state.svid.not_after))
        if state.refused_since is None:
            return since + self._max_age
        return min(since + self._max_age, state.refused_since + REFUSAL_GRACE)

    # --- the streams ---------------------------------------------------------------------------

    def _follow(self, stream: "_Stream") -> None:
        backoff = Backoff(longest_s=_LONGEST_WAIT_S)
        while not self._stopping.is_set():
            fault = "the stream ended"
            try:
                with WorkloadApiClient(self.socket) as client:
                    for response in self._responses(client, stream):
                        self._received(stream, stream.read(response, self._report))
                        backoff.reset()
            except grpc.RpcError as error:
                code = error.code() if isinstance(error, grpc.Call) else None
                if code is grpc.StatusCode.UNIMPLEMENTED and stream is _JWT:
                    self._received(stream, lambda state: state)
                    return  # an implementation without JWT-SVIDs, which has no keys to withdraw
                if code is grpc.StatusCode.PERMISSION_DENIED and stream is _X509:
                    self._refused()
                fault = f"gRPC {code.name if code else 'UNKNOWN'}"
            except ArgumentError as error:
                fault = str(error)  # there is no socket yet
            # A defect must not end the thread: its state would pass for the present one for ever.
            except Exception as error:  # noqa: BLE001
                fault = f"internal error `{type(error).__name__}`"
            if not self._stopping.is_set():
                self._lost(stream, fault)
                self._stopping.wait(backoff.next_s())

    def _responses(self, client: WorkloadApiClient, stream: "_Stream") -> Iterator[Any]:
        # The one private name of py-spiffe that is used; docs/adr/0015 says why.
        call = stream.open(client._spiffe_workload_api_stub)
        with self._lock:
            self._calls[stream.name] = call
            if self._stopping.is_set():
                call.cancel()
        yield from call

    def _received(self, stream: "_Stream", change: "_Change") -> None:
        with self._lock:
            lost = {k: v for k, v in self._state.lost_since.items() if k != stream.name}
            heard = self._state.heard | {stream.name}
            state = change(replace(self._state, lost_since=MappingProxyType(lost), heard=heard))
            self._state = state if lost else replace(state, fault="")
        self._changed()
        if heard == {_X509.name, _JWT.name}:
            self._complete.set()

    def _refused(self) -> None:
        # SECURITY: Workload API §5.2.1: what was handed out before must not be used any more.
        with self._lock:
            since = self._state.refused_since or self._clock()
            self._state = replace(self._state, refused_since=since)

    def _lost(self, stream: "_Stream", fault: str) -> None:
        with self._lock:
            since = MappingProxyType({stream.name: self._clock(), **self._state.lost_since})
            news = stream.name not in self._state.lost_since or fault != self._state.fault
            self._state = replace(self._state, lost_since=since, fault=fault)
        if news:
            self._report(f"no contact with the Workload API ({stream.name}): {fault}")
            self._changed()


# What one message changes in the state.
_Change = Callable[[_State], _State]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stream:
    """One of the two streams: how it is opened, and how its messages are read."""

    name: str
    open: Callable[[Any], Any]
    read: Callable[[Any, Report], _Change]


def _read_x509(response: Any, report: Report) -> _Change:
    svid, found = own_svid(response, report), authorities(response, report)
    return lambda state: replace(state, svid=svid, authorities=found, refused_since=None)


def _read_jwt(response: Any, report: Report) -> _Change:
    found = jwt_keys(response.bundles, report)
    return lambda state: replace(state, jwt_keys=found)


_X509: Final = _Stream(
    name="X.509",
    open=lambda stub: stub.FetchX509SVID(workload_pb2.X509SVIDRequest()),
    read=_read_x509,
)
_JWT: Final = _Stream(
    name="JWT",
    open=lambda stub: stub.FetchJWTBundles(workload_pb2.JWTBundlesRequest()),
    read=_read_jwt,
)


def _bundle(domain: TrustDomain, state: _State) -> TrustBundle:
    return TrustBundle(
        trust_domain=domain,
        authorities=state.authorities.get(domain, ()),
        jwt_keys=state.jwt_keys.get(domain, MappingProxyType({})),
    )
