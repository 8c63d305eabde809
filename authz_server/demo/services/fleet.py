"""The fleet controller: a real gRPC service with unary and server-streaming methods.

Like every service behind an Envoy it has no check of its own.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc

from authz_server._pb.fleet.v1 import fleet_pb2 as fleet
from authz_server.demo.services.journal import append_visit
from authz_server.demo.services.serving import Arguments, parse_arguments

SERVICE: Final = "fleet.v1.Deployments"
_THREADS: Final = 4
_GRACE_S: Final = 2.0


class Deployments:
    """The deployments, and what can be done to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deployments = {
            name: fleet.Deployment(name=name, replicas=replicas, image=image)
            for name, replicas, image in (
                ("checkout", 3, "registry.example.org/checkout:4.2.0"),
                ("search", 2, "registry.example.org/search:1.9.3"),
            )
        }

    def get(self, request: fleet.GetRequest, context: grpc.ServicerContext) -> fleet.Deployment:
        """Return one deployment."""
        return self._find(request.name, context)

    def list_all(
        self, _request: fleet.ListRequest, _context: grpc.ServicerContext
    ) -> Iterator[fleet.Deployment]:
        """Yield every deployment."""
        with self._lock:
            everything = list(self._deployments.values())
        yield from everything

    def restart(
        self, request: fleet.RestartRequest, context: grpc.ServicerContext
    ) -> fleet.Deployment:
        """Return the deployment as it is after a restart."""
        return self._find(request.name, context)

    def delete(
        self, request: fleet.DeleteRequest, context: grpc.ServicerContext
    ) -> fleet.Deployment:
        """Return the deployment as it was; the demonstration keeps it, to be played again."""
        return self._find(request.name, context)

    def _find(self, name: str, context: grpc.ServicerContext) -> fleet.Deployment:
        with self._lock:
            found = self._deployments.get(name)
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such deployment")
        return found

    def handlers(self) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
        """Return the methods by their names in the service."""
        answer = fleet.Deployment.SerializeToString
        unary: tuple[tuple[str, Callable[..., Any], type[Any]], ...] = (
            ("Get", self.get, fleet.GetRequest),
            ("Restart", self.restart, fleet.RestartRequest),
            ("Delete", self.delete, fleet.DeleteRequest),
        )
        found = {
            name: grpc.unary_unary_rpc_method_handler(
                method, request_deserializer=message.FromString, response_serializer=answer
            )
            for name, method, message in unary
        }
        found["List"] = grpc.unary_stream_rpc_method_handler(
            self.list_all,
            request_deserializer=fleet.ListRequest.FromString,
            response_serializer=answer,
        )
        return found


class _Journal(grpc.ServerInterceptor):
    """Notes every call before its handler sees it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Note a call, then pass it on."""
        headers = [
            (name, "" if isinstance(value, bytes) else value)
            for name, value in details.invocation_metadata
        ]
        append_visit(self._path, "POST", details.method, "", headers)
        return continuation(details)


def main() -> None:
    """Serve until SIGTERM, on the Unix socket of the command line."""
    arguments: Arguments = parse_arguments()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = grpc.server(ThreadPoolExecutor(_THREADS), interceptors=[_Journal(arguments.journal)])
    handlers = grpc.method_handlers_generic_handler(SERVICE, Deployments().handlers())
    server.add_generic_rpc_handlers((handlers,))
    server.add_insecure_port(f"unix:{arguments.socket}")
    server.start()
    stop.wait()
    server.stop(_GRACE_S).wait()


if __name__ == "__main__":
    main()
