"""The Workload API client against an agent that says anything: a real gRPC server on a socket."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from spiffe import X509Source
from spiffe._proto import workload_pb2, workload_pb2_grpc

from authz_server.core.spiffe import TrustDomain
from authz_server.demo.authority import TrustDomainAuthority
from authz_server.identity.live_bundles import NEVER
from authz_server.identity.workload_api import REFUSAL_GRACE, WorkloadApi
from tests.e2e.waiting import until

DOMAIN, PARTNER = TrustDomain.parse("prod.example.org"), TrustDomain.parse("partner.example")
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
_END = object()


class _Agent(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """Sends what a test puts into its queues; a status code ends the stream with it."""

    def __init__(self) -> None:
        self.x509: SimpleQueue[Any] = SimpleQueue()
        self.jwt: SimpleQueue[Any] = SimpleQueue()
        self.streams = 0
        self.headers: list[tuple[str, str]] = []

    def FetchX509SVID(self, request: object, context: Any) -> Iterator[Any]:  # noqa: N802
        self.streams += 1
        self.headers = [(key, value) for key, value in context.invocation_metadata()]
        return self._stream(self.x509, context)

    def FetchJWTBundles(self, request: object, context: Any) -> Iterator[Any]:  # noqa: N802
        return self._stream(self.jwt, context)

    def _stream(self, queue: "SimpleQueue[Any]", context: Any) -> Iterator[Any]:
        ended = threading.Event()

        def end() -> None:
            ended.set()
            queue.put(None)

        context.add_callback(end)
        while not ended.is_set():
            message = queue.get()
            if message is None:
                continue
            if message is _END:
                return
            if isinstance(message, grpc.StatusCode):
                context.abort(message, "as the test has it")
            yield message


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wl-") as name:  # short: sun_path
        yield Path(name) / "agent.sock"


@contextmanager
def _running(socket: Path) -> Iterator[_Agent]:
    servicer = _Agent()
    server = grpc.server(futures.ThreadPoolExecutor(8))
    add: Any = workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server
    add(servicer, server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    yield servicer
    server.stop(0).wait()


@pytest.fixture
def agent(socket: Path) -> Iterator[_Agent]:
    with _running(socket) as servicer:
        yield servicer


class _Watch:
    """A client and what it told."""

    def __init__(self, socket: Path, clock: Callable[[], datetime]) -> None:
        self.said: list[str] = []
        self.changes = 0
        self.api = WorkloadApi(
            f"unix://{socket}",
            max_age_s=60,
            clock=clock,
            changed=self._changed,
            report=self.said.append,
        )

    def _changed(self) -> None:
        self.changes += 1

    def authorities(self, domain: TrustDomain = DOMAIN) -> int | None:
        bundle = self.api.bundles.bundles.get(domain)
        return None if bundle is None else len(bundle.authorities)


@pytest.fixture
def watch(socket: Path) -> Iterator[_Watch]:
    made = _Watch(socket, lambda: NOW)
    made.api.start()
    yield made
    made.api.stop()


OURS = TrustDomainAuthority.create(DOMAIN)
THEIRS = TrustDomainAuthority.create(PARTNER)
SVID = OURS.issue_svid("/pdp", lifetime=timedelta(hours=1))


def _der(*authorities: TrustDomainAuthority) -> bytes:
    return b"".join(a.root.public_bytes(Encoding.DER) for a in authorities)


def _x509(bundle: bytes | None = None, **federated: bytes) -> Any:
    svid = workload_pb2.X509SVID(
        spiffe_id=str(SVID.spiffe_id),
        x509_svid=b"".join(c.public_bytes(Encoding.DER) for c in SVID.certificates),
        x509_svid_key=SVID.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        bundle=_der(OURS) if bundle is None else bundle,
    )
    named = {f"spiffe://{PARTNER}" if k == "partner" else k: v for k, v in federated.items()}
    return workload_pb2.X509SVIDResponse(svids=[svid], federated_bundles=named)


def _jwt(**bundles: bytes) -> Any:
    named = {f"spiffe://{DOMAIN}" if k == "ours" else k: v for k, v in bundles.items()}
    return workload_pb2.JWTBundlesResponse(bundles=named)


def _begin(agent: _Agent, watch: _Watch) -> None:
    agent.x509.put(_x509(partner=_der(THEIRS)))
    agent.jwt.put(_jwt(ours=b'{"keys": []}'))
    assert watch.api.wait_until_complete(30)


def test_the_svid_and_every_domain_arrive(agent: _Agent, watch: _Watch) -> None:
    assert watch.api.bundles.good_until == NEVER
    _begin(agent, watch)
    svid = watch.api.svid
    assert svid is not None
    assert svid.spiffe_id == SVID.spiffe_id
    assert "PRIVATE" not in repr(svid)
    assert (watch.authorities(), watch.authorities(PARTNER)) == (1, 1)
    assert watch.api.fault == ""
    assert ("workload.spiffe.io", "true") in agent.headers  # Workload API §4.2


def test_a_message_is_the_whole_state(agent: _Agent, watch: _Watch) -> None:
    _begin(agent, watch)
    agent.x509.put(_x509())
    until(lambda: watch.authorities(PARTNER) is None, "the withdrawal")
    assert watch.authorities() == 1


def test_the_source_of_py_spiffe_ends_there_for_good(agent: _Agent, socket: Path) -> None:
    """What the next test would be without our own reading of the messages."""
    agent.x509.put(_x509(partner=_der(THEIRS)))
    source = X509Source(socket_path=f"unix://{socket}", timeout_in_seconds=30)
    agent.x509.put(_x509(partner=b""))
    agent.x509.put(_x509())
    until(source.is_closed, "the end")
    assert agent.streams == 1, "it never comes back"


@pytest.mark.parametrize("broken", [b"", b"\x30\x82", b"not der", _der(THEIRS) + b"\0"])
def test_a_bundle_that_is_empty_or_broken_proves_nothing_and_spares_the_rest(
    agent: _Agent, watch: _Watch, broken: bytes
) -> None:
    _begin(agent, watch)
    agent.x509.put(_x509(partner=broken))
    until(lambda: watch.authorities(PARTNER) == 0, "the empty bundle")
    assert watch.authorities() == 1
    assert any(str(PARTNER) in line for line in watch.said) == bool(broken)


@pytest.mark.parametrize(
    "keys",
    [
        b'{"keys": [{"kty": "oct", "kid": "a", "k": "AAAA"}]}',
        b'{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "a"}]}',
        b'{"keys": [], "keys": []}',
        b"[]",
        b"",
    ],
)
def test_jwt_keys_that_are_refused_take_the_domain_s_keys_back(
    agent: _Agent, watch: _Watch, keys: bytes
) -> None:
    _begin(agent, watch)
    agent.jwt.put(_jwt(ours=keys))
    until(lambda: any(str(DOMAIN) in line for line in watch.said), "the report")
    assert watch.api.bundles.bundles[DOMAIN].jwt_keys == {}
    assert watch.authorities() == 1, "X.509 is another stream"


@pytest.mark.parametrize(
    "name", ["UPPER.example", "spiffe://a b", "spiffe://", "x\n", "spiffe://" + "a" * 256]
)
def test_a_domain_with_a_malformed_name_is_ignored(agent: _Agent, watch: _Watch, name: str) -> None:
    agent.x509.put(_x509(**{name: _der(THEIRS)}))
    agent.jwt.put(_jwt())
    assert watch.api.wait_until_complete(30)
    assert [*watch.api.bundles.bundles] == [DOMAIN]
    assert any("is ignored" in line for line in watch.said)


def test_a_federated_bundle_cannot_stand_in_for_our_own(agent: _Agent, watch: _Watch) -> None:
    agent.x509.put(_x509(**{f"spiffe://{DOMAIN}": _der(THEIRS)}))
    agent.jwt.put(_jwt())
    assert watch.api.wait_until_complete(30)
    assert watch.api.bundles.bundles[DOMAIN].authorities == (OURS.root,)


@pytest.mark.parametrize(
    "end",
    [
        _END,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INVALID_ARGUMENT,  # for which py-spiffe closes its source for good
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
    ],
)
def test_a_stream_that_ends_is_opened_again(agent: _Agent, watch: _Watch, end: object) -> None:
    _begin(agent, watch)
    agent.x509.put(end)
    until(lambda: watch.api.fault != "", "the loss")
    assert watch.api.bundles.good_until == NOW + timedelta(seconds=60)
    assert watch.authorities() == 1, "the last bundles serve on"

    agent.x509.put(_x509())
    until(lambda: watch.api.fault == "", "contact")
    assert agent.streams == 2
    assert watch.api.svid is not None
    assert watch.api.bundles.good_until == watch.api.svid.not_after + timedelta(seconds=60)


def test_a_refusal_takes_everything_back_within_seconds(agent: _Agent, watch: _Watch) -> None:
    _begin(agent, watch)
    for _ in range(2):
        agent.x509.put(grpc.StatusCode.PERMISSION_DENIED)
    soon = NOW + REFUSAL_GRACE
    until(lambda: agent.streams == 3, "a second refusal")
    assert watch.api.bundles.good_until == soon, "counted from the first"
    agent.x509.put(_x509())
    until(lambda: watch.api.bundles.good_until != soon, "the pardon")
    assert watch.api.fault == ""


def test_an_agent_without_jwt_svids_is_enough(agent: _Agent, watch: _Watch) -> None:
    agent.x509.put(_x509())
    agent.jwt.put(grpc.StatusCode.UNIMPLEMENTED)
    assert watch.api.wait_until_complete(30)
    assert watch.api.fault == ""


def test_an_svid_that_is_not_ours_is_refused(agent: _Agent, watch: _Watch) -> None:
    message = _x509()
    message.svids[0].spiffe_id = f"spiffe://{DOMAIN}/other"
    agent.x509.put(message)
    agent.jwt.put(_jwt())
    assert watch.api.wait_until_complete(30)
    assert watch.api.svid is None
    assert watch.api.bundles.good_until == NEVER


def test_it_waits_for_a_socket_that_is_not_there_yet(socket: Path) -> None:
    watch = _Watch(socket, lambda: NOW)
    watch.api.start()
    until(lambda: "does not exist" in watch.api.fault, "the reason")
    with _running(socket) as agent:
        _begin(agent, watch)
        watch.api.stop()
