"""The SVID source on the Workload API, against a server that speaks the protocol."""

import tempfile
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe._proto import workload_pb2, workload_pb2_grpc

from authz_server.agent import Svid
from authz_server.agent.workload_api import WorkloadApiSvid
from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import SpiffeId
from authz_server.demo.authority import TrustDomainAuthority
from tests.e2e.waiting import until

AUTHORITY = TrustDomainAuthority.create("td.example")


class WorkloadApi(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """Streams the SVIDs it is given; each `give` is one update to every stream."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._given: list[tuple[Svid, ...]] = []
        self._ended = False

    def give(self, *svids: Svid) -> None:
        with self._changed:
            self._given.append(svids)
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def FetchX509SVID(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        assert ("workload.spiffe.io", "true") in context.invocation_metadata()
        position = max(len(self._given) - 1, 0)
        while (svids := self._update(position)) is not None:
            yield workload_pb2.X509SVIDResponse(svids=[_message(svid) for svid in svids])
            position += 1

    def _update(self, position: int) -> tuple[Svid, ...] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._given) > position)
            return None if self._ended else self._given[position]


def _message(svid: Svid) -> Any:
    key = svid.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return workload_pb2.X509SVID(
        spiffe_id=str(svid.spiffe_id),
        x509_svid=b"".join(c.public_bytes(Encoding.DER) for c in svid.certificates),
        x509_svid_key=key,
        bundle=AUTHORITY.root.public_bytes(Encoding.DER),
    )


@pytest.fixture
def api() -> Iterator[tuple[WorkloadApi, str]]:
    with tempfile.TemporaryDirectory(prefix="wl-") as directory:
        address = f"unix://{Path(directory) / 'agent.sock'}"
        service = WorkloadApi()
        server = grpc.server(futures.ThreadPoolExecutor(4))
        register: Any = workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server
        register(service, server)
        server.add_insecure_port(address)
        server.start()
        try:
            yield service, address
        finally:
            service.end()
            server.stop(0).wait()


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rotation_is_followed(api: tuple[WorkloadApi, str]) -> None:
    service, address = api
    first, second = (AUTHORITY.issue_svid("/agent/a") for _ in range(2))
    service.give(first)
    with closing(WorkloadApiSvid(address)) as source:
        found = source.svid()
        assert found.leaf == first.leaf
        assert found.key.private_numbers() == first.key.private_numbers()
        service.give(second)
        until(lambda: source.svid().leaf == second.leaf, what="the second SVID")


def test_one_of_several(api: tuple[WorkloadApi, str]) -> None:
    service, address = api
    service.give(AUTHORITY.issue_svid("/agent/a"), AUTHORITY.issue_svid("/agent/b"))
    wanted = SpiffeId.parse("spiffe://td.example/agent/b")
    with closing(WorkloadApiSvid(address)) as source:
        assert source.svid().spiffe_id.path == "/agent/a"
    with closing(WorkloadApiSvid(address, spiffe_id=wanted)) as source:
        assert source.svid().spiffe_id == wanted


def test_what_is_taken_back_is_not_used_on_and_can_come_again(
    api: tuple[WorkloadApi, str],
) -> None:
    service, address = api
    clock = Clock()
    wanted = SpiffeId.parse("spiffe://td.example/agent/a")
    service.give(AUTHORITY.issue_svid("/agent/a"))
    with closing(WorkloadApiSvid(address, spiffe_id=wanted, clock=clock)) as source:
        assert source.svid()
        service.give(AUTHORITY.issue_svid("/agent/b"))  # py-spiffe closes its source for good
        until(lambda: _refused(source), what="the end of the SVID")
        with pytest.raises(InvalidValueError, match="a moment ago"):
            source.svid()
        renewed = AUTHORITY.issue_svid("/agent/a")
        service.give(renewed)
        clock.now += 10
        assert source.svid().leaf == renewed.leaf


def _refused(source: WorkloadApiSvid) -> bool:
    try:
        source.svid()
    except InvalidValueError:
        return True
    return False


def test_an_address_that_is_none() -> None:
    with pytest.raises(InvalidValueError, match="cannot be reached"):
        WorkloadApiSvid("nowhere").svid()
