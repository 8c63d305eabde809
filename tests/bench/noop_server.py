"""The floor: a grpc.aio server that answers every Check with the same bytes and does nothing.

What it costs is what grpcio costs; the difference to the real server is ours.
Prints the port it listens on.
"""

import asyncio

import grpc.aio

# google.rpc.Status{} as `status`, OkHttpResponse{} as `ok_response`: the shortest allow there is.
ALLOW = b"\x0a\x00\x1a\x00"


async def check(_data: bytes, _context: object) -> bytes:
    return ALLOW


async def serve() -> None:
    server = grpc.aio.server()
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(check)
    handler = grpc.method_handlers_generic_handler(
        "envoy.service.auth.v3.Authorization", {"Check": method}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve())
