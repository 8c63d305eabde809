"""The gRPC interceptors, real channels to real servers: all kinds of call, threads and asyncio."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from authz_server.agent import (
    Delegation,
    Delegator,
    Denied,
    HandOff,
    current,
    serving,
    typed_refusals,
)
from authz_server.agent.grpc_client import aio_interceptors, delegation_interceptors
from authz_server.agent.grpc_server import AioDelegationInterceptor, DelegationInterceptor
from tests.harness.chains import ASSISTANT, CRM, NOW, RESEARCH, svid, three_hops, verify

ROOT, FIRST, _ = three_hops()
RECEIVED = Delegation(root=ROOT, chain=FIRST)
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


def seen() -> bytes:
    """Return what a handler is served under."""
    found = current()
    return b"" if found is None else f"{found.root}|{found.chain}".encode()


def deny(context: Any) -> None:
    info = error_details_pb2.ErrorInfo(reason="REVOKED", domain="authz-server")
    info.metadata.update(
        {"type": "urn:authz-server:problem:access-denied", "verdict": "deny", "reason": "REVOKED"}
    )
    detail = any_pb2.Any()
    detail.Pack(info)
    status = status_pb2.Status(code=7, message="no", details=[detail])
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))


class Handlers(grpc.GenericRpcHandler):
    """Every kind of call at `/s/<kind>`, answered with what it was served under."""

    def __init__(self, kinds: dict[str, Any]) -> None:
        self._kinds = kinds

    def service(self, handler_call_details: Any) -> Any:
        name = handler_call_details.method.rpartition("/")[2]
        if name not in self._kinds:
            return None
        kind = "unary_unary" if name == "denied" else name
        return getattr(grpc, f"{kind}_rpc_method_handler")(self._kinds[name])


def _one(_request: Any, _context: Any) -> bytes:
    return seen()


def _many(_request: Any, _context: Any) -> Iterator[bytes]:
    yield seen()
    yield seen()


def _denied(_request: Any, context: Any) -> bytes:
    deny(context)
    context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")
    return b""


async def _one_later(_request: Any, _context: Any) -> bytes:
    await asyncio.sleep(0)
    return seen()


async def _many_later(_request: Any, _context: Any) -> AsyncIterator[bytes]:
    yield seen()
    await asyncio.sleep(0)
    yield seen()


async def _denied_later(_request: Any, context: Any) -> bytes:
    deny(context)
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")
    return b""


THREADED = dict(zip((*KINDS, "denied"), (_one, _many, _one, _many, _denied), strict=True))
ASYNC = dict(
    zip(
        (*KINDS, "denied"),
        (_one_later, _many_later, _one_later, _many_later, _denied_later),
        strict=True,
    )
)


@contextmanager
def threaded_server() -> Iterator[str]:
    server = grpc.server(
        futures.ThreadPoolExecutor(2),
        handlers=[Handlers(THREADED)],
        interceptors=[DelegationInterceptor()],
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@pytest.fixture
def target() -> Iterator[str]:
    with threaded_server() as address:
        yield address


def call(target: str, kind: str, interceptors: list[Any]) -> list[bytes]:
    with grpc.insecure_channel(target) as plain:
        channel = grpc.intercept_channel(plain, *interceptors)
        stub = getattr(channel, "unary_unary" if kind == "denied" else kind)(f"/s/{kind}")
        request: Any = iter([b"x"]) if kind.startswith("stream") else b"x"
        answer = stub(request, metadata=(("x-own", "1"), ("txn-token", "older")), timeout=10)
        return [answer] if isinstance(answer, bytes) else list(answer)


@pytest.mark.parametrize("kind", KINDS)
def test_threads(target: str, kind: str) -> None:
    with serving(RECEIVED):
        answers = call(target, kind, delegation_interceptors())
    assert set(answers) == {f"{ROOT}|{FIRST}".encode()}
    assert len(answers) == (2 if kind.endswith("stream") else 1)


def test_without_a_delegation_metadata_is_as_the_caller_has_it(target: str) -> None:
    assert call(target, "unary_unary", delegation_interceptors()) == [b"older|"]


def test_a_call_that_hands_off(target: str) -> None:
    hand_off = HandOff(to=str(RESEARCH), audience=[CRM], scope=["crm.read"])
    delegator = Delegator(svid(ASSISTANT), clock=NOW.timestamp)
    interceptors = delegation_interceptors(delegator, hand_off, delegation=Delegation(root=ROOT))
    root, _, link = call(target, "unary_unary", interceptors)[0].decode().partition("|")
    assert verify(root, link).grants[-1].delegate == RESEARCH


def test_a_denial(target: str) -> None:
    with pytest.raises(Denied) as caught, typed_refusals():
        call(target, "denied", delegation_interceptors())
    assert caught.value.reason == "REVOKED"


def test_an_unknown_method_stays_unknown(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        stub: Any = channel.unary_unary("/s/nothing")
        with pytest.raises(grpc.RpcError) as caught:
            stub(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- asyncio -----------------------------------------------------------------------------------


async def _aio_call(kind: str, *, denied: bool = False) -> list[bytes]:
    server = grpc.aio.server(handlers=[Handlers(ASYNC)], interceptors=[AioDelegationInterceptor()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", interceptors=aio_interceptors(delegation=RECEIVED)
        ) as channel:
            stub = getattr(channel, kind)("/s/denied" if denied else f"/s/{kind}")
            request: Any = iter([b"x"]) if kind.startswith("stream") else b"x"
            made = stub(request, metadata=(("txn-token", "older"),), timeout=10)
            if kind.endswith("stream"):
                return [answer async for answer in made]
            with typed_refusals():
                return [await made]
    finally:
        await server.stop(None)


@pytest.mark.parametrize("kind", KINDS)
def test_asyncio(kind: str) -> None:
    answers = asyncio.run(_aio_call(kind))
    assert set(answers) == {f"{ROOT}|{FIRST}".encode()}
    assert len(answers) == (2 if kind.endswith("stream") else 1)


def test_a_denial_in_asyncio() -> None:
    with pytest.raises(Denied) as caught:
        asyncio.run(_aio_call("unary_unary", denied=True))
    assert caught.value.reason == "REVOKED"
