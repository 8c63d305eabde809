"""The official gRPC and HTTP clients complete a session through the hardened Envoys.

Nothing in the clients is ours but the delegation hook (`sdk_sessions`).
"""

import asyncio

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from authz_server._pb.fleet.v1 import fleet_pb2 as fleet
from authz_server.demo.mesh import Mesh
from tests.e2e import sdk_sessions


def test_a_grpc_session(everywhere: Mesh) -> None:
    asyncio.run(sdk_sessions.grpc_session(everywhere, "search"))


def test_a_rest_session(everywhere: Mesh) -> None:
    asyncio.run(sdk_sessions.rest_session(everywhere))


def test_a_grpc_client_without_a_hook_for_refusals_sees_the_standard_error_model(
    everywhere: Mesh,
) -> None:
    async def refused() -> grpc.aio.AioRpcError:
        held = sdk_sessions.delegation(everywhere, "fleet.read")
        async with sdk_sessions.grpc_channel(everywhere, held) as channel:
            delete = sdk_sessions.unary(channel, "Delete", fleet.DeleteRequest)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await delete("checkout")
            return caught.value

    error = asyncio.run(refused())
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    (detail,) = status_pb2.Status.FromString(details).details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert (info.reason, info.domain) == ("NO_MATCHING_RULE", "authz-server")
    assert info.metadata["verdict"] == "deny"


def test_two_sessions_of_one_agent_do_not_share_an_approval(everywhere: Mesh) -> None:
    """An approval is for one deployment: the same call for another one is a new question."""

    async def run() -> tuple[sdk_sessions.Told, sdk_sessions.Told]:
        held = sdk_sessions.delegation(everywhere, "fleet.delete")
        async with sdk_sessions.grpc_channel(everywhere, held) as channel:
            delete = sdk_sessions.unary(channel, "Delete", fleet.DeleteRequest)
            first = await sdk_sessions.told(delete("one"))
            assert first.ticket is not None
            await asyncio.to_thread(sdk_sessions.approve, everywhere, first.ticket.id)
            return first, await sdk_sessions.told(delete("two"))

    first, other = asyncio.run(run())
    assert other.verdict == "escalate"
    assert first.ticket is not None
    assert other.ticket is not None
    assert other.ticket.id != first.ticket.id
