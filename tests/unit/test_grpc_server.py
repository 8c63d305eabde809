"""The transport: bytes through, health before drain, reflection, Unix sockets, bind errors."""

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from authz_server.core import limits
from authz_server.servers.addresses import ListenError
from authz_server.servers.grpc_server import SERVICE, GrpcServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

Check = Callable[[bytes], Awaitable[bytes]]


async def echo(data: bytes) -> bytes:
    return b"<" + data + b">"


@asynccontextmanager
async def serving(
    check: Check, address: str = "127.0.0.1:0"
) -> AsyncIterator[tuple[GrpcServer, str]]:
    server = GrpcServer(check)
    bound = server.listen(address)
    await server.start()
    await server.set_serving()
    try:
        yield server, bound
    finally:
        await server.stop(0)


def call(channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(f"/{SERVICE}/Check")


async def ask(address: str, data: bytes) -> bytes:
    async with grpc.aio.insecure_channel(address) as channel:
        return await call(channel)(data)


def test_bytes_go_through_unchanged() -> None:
    async def run() -> None:
        async with serving(echo) as (_, address), grpc.aio.insecure_channel(address) as channel:
            assert await call(channel)(b"\x00\xff") == b"<\x00\xff>"
            assert await call(channel)(b"") == b"<>"

    asyncio.run(run())


def test_a_message_over_our_limit_still_reaches_the_decision() -> None:
    async def run() -> None:
        async with serving(echo) as (_, address), grpc.aio.insecure_channel(address) as channel:
            big = b"x" * (2 * limits.CHECK_REQUEST_BYTES_MAX)
            assert len(await call(channel)(big)) == len(big) + 2
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(channel)(big * 3)
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(run())


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_follows_and_stays_down_in_a_drain(service: str) -> None:
    async def run() -> None:
        release = asyncio.Event()
        entered = asyncio.Event()

        async def slow(data: bytes) -> bytes:
            entered.set()
            await release.wait()
            return data

        async with serving(slow) as (server, address):
            async with grpc.aio.insecure_channel(address) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                watch = stub.Watch(health_pb2.HealthCheckRequest(service=service))
                assert (await watch.read()).status == SERVING
                await server.set_not_serving()
                assert (await watch.read()).status == NOT_SERVING
                await server.set_serving()
                assert (await watch.read()).status == SERVING

                in_flight = asyncio.ensure_future(call(channel)(b"hello"))
                await entered.wait()
                stopping = asyncio.ensure_future(server.stop(5))
                assert (await watch.read()).status == NOT_SERVING
                watch.cancel()
                assert not in_flight.done()
                release.set()
                assert await in_flight == b"hello"
                await stopping
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*address.split(":"))

    asyncio.run(run())


def test_a_call_that_outlives_the_grace_is_cut_off() -> None:
    async def run() -> None:
        entered = asyncio.Event()
        cancelled = asyncio.Event()

        async def stuck(data: bytes) -> bytes:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return data

        async with serving(stuck) as (server, addr), grpc.aio.insecure_channel(addr) as channel:
            in_flight = asyncio.ensure_future(call(channel)(b""))
            await entered.wait()
            await server.stop(0.01)
            await cancelled.wait()
            with pytest.raises(grpc.aio.AioRpcError):
                await in_flight

    asyncio.run(run())


def test_an_open_watch_does_not_hold_up_a_drain() -> None:
    async def run() -> None:
        async with serving(echo) as (server, addr), grpc.aio.insecure_channel(addr) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            stopping = asyncio.ensure_future(server.stop(3600))
            assert (await watch.read()).status == NOT_SERVING
            await stopping
            assert await watch.read() is grpc.aio.EOF

    asyncio.run(run())


def test_calls_beyond_the_limit_are_refused_and_do_not_use_it_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "CONCURRENT_CHECKS_MAX", 2)

    async def run() -> None:
        release, entered = asyncio.Event(), asyncio.Semaphore(0)

        async def slow(data: bytes) -> bytes:
            entered.release()
            await release.wait()
            return data

        async with serving(slow) as (_, addr), grpc.aio.insecure_channel(addr) as channel:
            held = [asyncio.ensure_future(call(channel)(b"held")) for _ in range(2)]
            for _ in held:
                await entered.acquire()
            others = [asyncio.ensure_future(ask(addr, b"more")) for _ in range(3)]
            for other in others:
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await other
                assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            release.set()
            assert await asyncio.gather(*held) == [b"held"] * 2
            assert await ask(addr, b"after") == b"after"

    asyncio.run(run())


def test_reflection_names_the_services_and_describes_check() -> None:
    async def run() -> list[str]:
        async with serving(echo) as (_, address), grpc.aio.insecure_channel(address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest
            stream = stub.ServerReflectionInfo(
                iter([request(list_services=""), request(file_containing_symbol=SERVICE)])
            )
            listed = await stream.read()
            described = await stream.read()
            assert b"CheckRequest" in described.file_descriptor_response.file_descriptor_proto[0]
            return [service.name for service in listed.list_services_response.service]

    assert SERVICE in asyncio.run(run())


def test_a_unix_socket_is_private_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "pdp.sock"

    async def run() -> None:
        async with serving(echo, f"unix://{path}") as (_, address):
            assert address == f"unix://{path}"
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert await ask(address, b"x") == b"<x>"

    mask = os.umask(0)
    try:
        asyncio.run(run())
        assert os.umask(0) == 0, "the umask of the process is as it was"
    finally:
        os.umask(mask)
    assert not path.exists()


def test_the_socket_of_a_dead_server_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "pdp.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # never listens: as a killed server leaves it

    async def run() -> None:
        async with serving(echo, f"unix://{path}") as (_, addr):
            assert await ask(addr, b"x") == b"<x>"

    asyncio.run(run())


def test_the_socket_of_a_living_server_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pdp.sock"

    async def run() -> None:
        async with serving(echo, f"unix://{path}") as (_, address):
            with pytest.raises(ListenError, match="Address already in use"):
                GrpcServer(echo).listen(address)
            assert await ask(address, b"x") == b"<x>"

    asyncio.run(run())


def test_a_stopping_server_leaves_its_successors_socket(tmp_path: Path) -> None:
    path = tmp_path / "pdp.sock"

    async def run() -> None:
        async with serving(echo, f"unix://{path}"):
            path.unlink()
            path.write_text("someone else's")

    asyncio.run(run())
    assert path.read_text() == "someone else's"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("0.0.0.0:0", "loopback"),
        ("[::]:0", "loopback"),
        ("10.0.0.1:9191", "loopback"),
        ("pdp.example.org:9191", "loopback"),
        ("127.0.0.1:none", "invalid literal"),
        ("unix:///nonexistent/pdp.sock", "No such file or directory"),
        ("unix:///" + "x" * 120, "too long"),
    ],
)
def test_an_unusable_address_is_one_clear_line(address: str, message: str) -> None:
    async def run() -> None:
        with pytest.raises(ListenError, match=message) as error:
            GrpcServer(echo).listen(address)
        assert str(error.value).startswith(f"cannot listen on grpc {address}: ")
        assert "\n" not in str(error.value)

    asyncio.run(run())


def test_a_port_in_use_is_refused_not_shared() -> None:
    async def run() -> None:
        async with serving(echo) as (_, address):
            with pytest.raises(ListenError, match="Address already in use"):
                GrpcServer(echo).listen(address)

    asyncio.run(run())


def test_a_file_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")

    async def run() -> None:
        with pytest.raises(ListenError, match="Address already in use"):
            GrpcServer(echo).listen(f"unix://{path}")

    asyncio.run(run())
    assert path.read_text() == "data"
