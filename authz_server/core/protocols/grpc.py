"""gRPC: the full method name out of the path. Messages are opaque to us."""

import hashlib
import re

from authz_server.core.attributes import ActionAttributes, ObjectAttributes, Protocol
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.protocols.http import request_line
from authz_server.core.protocols.operation import Operation
from authz_server.core.request import HttpRequest, RouteContext

_METHOD = re.compile(
    r"/((?:[A-Za-z_][A-Za-z0-9_]*\.)*[A-Za-z_][A-Za-z0-9_]*/[A-Za-z_][A-Za-z0-9_]*)"
)
_CONTENT_TYPE = re.compile(r"application/grpc(?:\+[a-z0-9.-]+)?(?:\s*;.*)?")


def is_method(name: str) -> bool:
    """Tell whether `name` is the full name of a method, `package.Service/Method`."""
    return _METHOD.fullmatch(f"/{name}") is not None


def operation(http: HttpRequest, route: RouteContext) -> Operation:
    """Return the RPC that is called (gRPC over HTTP/2: `POST /package.Service/Method`).

    Raises `RequestFault` (`UNSUPPORTED_METHOD` for anything that is not a gRPC call).
    """
    target, host = request_line(http)
    content_type = http.headers.text("content-type") or ""
    match = _METHOD.fullmatch(target.path)
    if http.method != "POST" or target.query or not _CONTENT_TYPE.fullmatch(content_type.lower()):
        raise RequestFault(Reason.UNSUPPORTED_METHOD, "request is not a gRPC call")
    if match is None:
        raise RequestFault(Reason.UNSUPPORTED_METHOD, "path is not `/package.Service/Method`")
    return Operation(
        act=ActionAttributes(protocol=Protocol.GRPC, name=match[1], read_only=False),
        obj=ObjectAttributes(
            type="grpc",
            host=host,
            path=target.path,
            segments=target.segments,
            args_sha256=hashlib.sha256(http.body).hexdigest() if http.body else None,
            resource=route.resource,
            labels=route.labels,
        ),
        # Even an empty message has a five-byte frame, so no body means Envoy did not buffer it.
        arguments_seen=bool(http.body),
    )
