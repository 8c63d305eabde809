"""gRPC through the hardened Envoy with the official client: every kind of call, every refusal."""

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from authz_server.core import limits
from tests.e2e.grpc_site import SERVICE, GrpcSite, running_site

pytestmark = pytest.mark.xdist_group("grpc-calls")

DEADLINE_S = 10.0  # only what would hang forever meets it


@pytest.fixture(scope="module")
def site() -> Iterator[GrpcSite]:
    # Not `tmp_path`: the path of a Unix socket holds 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="authz-") as directory,
        running_site(Path(directory)) as running,
    ):
        yield running


@pytest.fixture
def reached(site: GrpcSite) -> list[str]:
    """What reaches the service from now on."""
    site.service.calls.clear()
    return site.service.calls


def rpc(channel: grpc.Channel, kind: str, method: str, request: object) -> Any:
    """Call a method that takes and gives bytes."""
    return getattr(channel, kind)(f"/{SERVICE}/{method}")(request, timeout=DEADLINE_S)


def unary(site: GrpcSite, method: str, message: bytes = b"x", **options: Any) -> object:
    with site.channel(**options) as channel:
        return rpc(channel, "unary_unary", method, message)


def refusal(error: pytest.ExceptionInfo[grpc.RpcError]) -> tuple[grpc.StatusCode, dict[str, str]]:
    """Return code and details of a refused call, which say the same."""
    call = cast("grpc.Call", error.value)
    (encoded,) = (
        value for name, value in call.trailing_metadata() or () if name == "grpc-status-details-bin"
    )
    status = status_pb2.Status.FromString(encoded)
    assert (status.code, status.message) == (call.code().value[0], call.details())
    info = error_details_pb2.ErrorInfo()
    (detail,) = status.details
    assert detail.Unpack(info)
    assert info.domain == "authz-server"
    assert info.reason == info.metadata["reason"]
    assert info.metadata["detail"] == call.details()
    return call.code(), dict(info.metadata)


def outcomes(site: GrpcSite, seq: int) -> list[str]:
    return [record.outcome for record in site.mesh.ledger.since(seq)]


# --- calls that pass -------------------------------------------------------------------------


def test_a_call_passes(site: GrpcSite, reached: list[str]) -> None:
    seq = site.mesh.ledger.last()
    assert unary(site, "Unary") == b"x"
    assert (outcomes(site, seq), reached) == (["allow"], ["Unary"])


def test_a_stream_of_answers_passes(site: GrpcSite, reached: list[str]) -> None:
    with site.channel() as channel:
        assert list(rpc(channel, "unary_stream", "Down", b"x")) == [b"x"] * 3
    assert reached == ["Down"]


def test_a_stream_of_requests_is_judged_once_it_is_there(
    site: GrpcSite, reached: list[str]
) -> None:
    """Undeclared: Envoy keeps it back until its end, and the PDP sees all of it."""
    seq, go_on = site.mesh.ledger.last(), threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"a"
        assert site.mesh.ledger.last() == seq
        assert reached == []
        go_on.set()
        yield b"b"

    with site.channel() as channel:
        answer = rpc(channel, "stream_unary", "Up", requests())
    assert (answer, go_on.is_set()) == (b"a,b", True)
    assert (outcomes(site, seq), reached) == (["allow"], ["Up"])


def ping_pong(site: GrpcSite, method: str, listener: str = "rpc") -> list[bytes]:
    """Send a message, wait for its answer, and send another."""
    answered = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"ping"
        answered.wait(DEADLINE_S)
        yield b"pong"

    with site.channel(listener=listener) as channel:
        call = rpc(channel, "stream_stream", method, requests())
        try:
            answers = [next(call)]
        finally:
            answered.set()
        return [*answers, *call]


def test_a_declared_stream_is_judged_at_once(site: GrpcSite, reached: list[str]) -> None:
    seq = site.mesh.ledger.last()
    assert ping_pong(site, "Both") == [b"ping", b"pong"]
    assert (outcomes(site, seq), reached) == (["allow"], ["Both"])


# --- calls that do not -----------------------------------------------------------------------


def test_an_undeclared_stream_that_waits_for_answers_is_cut_off(
    site: GrpcSite, reached: list[str]
) -> None:
    """Nobody is asked and nothing is reached; the hardened Envoy ends it after 30 seconds."""
    seq = site.mesh.ledger.last()
    with pytest.raises(grpc.RpcError) as error:
        ping_pong(site, "Duplex", listener="hasty")
    assert error.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    assert (outcomes(site, seq), reached) == ([], [])


@pytest.mark.parametrize(
    ("method", "reason"), [("Never", "DENIED_BY_RULE"), ("Unknown", "NO_MATCHING_RULE")]
)
def test_a_denied_call(site: GrpcSite, reached: list[str], method: str, reason: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        unary(site, method)
    code, details = refusal(error)
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert (details["verdict"], details["reason"], details["status"]) == ("deny", reason, "403")
    assert reached == []


def test_a_call_without_an_identity(site: GrpcSite, reached: list[str]) -> None:
    with pytest.raises(grpc.RpcError) as error:
        unary(site, "Unary", listener="plain")
    code, details = refusal(error)
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert (details["reason"], details["status"]) == ("NO_PRINCIPAL", "401")
    assert reached == []


def test_a_call_that_needs_an_approval(site: GrpcSite, reached: list[str]) -> None:
    with pytest.raises(grpc.RpcError) as error:
        unary(site, "Approve")
    code, details = refusal(error)
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert details["verdict"] == "escalate"
    assert details["access_request.approver_group"] == "operators"
    assert details["access_request.status"] == "pending"
    with pytest.raises(grpc.RpcError) as again:
        unary(site, "Approve")
    assert refusal(again)[1]["access_request.id"] == details["access_request.id"]
    with pytest.raises(grpc.RpcError) as other:
        unary(site, "Approve", b"another message")
    assert refusal(other)[1]["access_request.id"] != details["access_request.id"]
    assert reached == []


def test_no_approval_covers_messages_that_nobody_saw(site: GrpcSite, reached: list[str]) -> None:
    with site.channel() as channel, pytest.raises(grpc.RpcError) as error:
        rpc(channel, "stream_unary", "ApproveUp", iter([b"a"]))
    assert refusal(error)[1]["reason"] == "BODY_TRUNCATED"
    assert reached == []


@pytest.mark.parametrize(
    ("kind", "method"),
    [("stream_stream", "Both"), ("unary_stream", "Down"), ("stream_unary", "Up")],
)
def test_a_denied_stream(site: GrpcSite, reached: list[str], kind: str, method: str) -> None:
    request = b"x" if kind == "unary_stream" else iter([b"x"])
    with site.channel("other") as channel, pytest.raises(grpc.RpcError) as error:
        any(rpc(channel, kind, method, request))
    assert refusal(error)[1]["reason"] == "NO_MATCHING_RULE"
    assert reached == []


@pytest.mark.parametrize(("kind", "method"), [("unary_unary", "Unary"), ("stream_unary", "Up")])
def test_messages_over_the_limit_are_refused_without_a_check(
    site: GrpcSite, reached: list[str], kind: str, method: str
) -> None:
    seq, piece = site.mesh.ledger.last(), b"x" * (limits.BODY_BYTES_MAX // 4)
    request = piece * 5 if kind == "unary_unary" else iter([piece] * 5)
    with site.channel() as channel, pytest.raises(grpc.RpcError) as error:
        rpc(channel, kind, method, request)
    assert cast("grpc.Call", error.value).details() == "Payload Too Large"
    assert (outcomes(site, seq), reached) == ([], [])
