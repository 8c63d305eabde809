"""TCP: one check for each connection, raw or through an HTTP CONNECT tunnel.

Nothing of what flows through it is seen. A raw connection carries no delegation and names its
destination at most by TLS server name, which the client chooses: what stands behind the listener is
the operator's word (`RouteContext`). A tunnel names host and port, and its CONNECT request carries
the delegation headers as any HTTP request does.
"""

from typing import Final

from authz_server.core.attributes import ActionAttributes, ObjectAttributes, Protocol
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.paths import CanonicalHost, canonical_destination, canonical_host
from authz_server.core.protocols.operation import Operation
from authz_server.core.request import AccessRequest, HttpRequest, RouteContext

_CONNECT: Final = ActionAttributes(protocol=Protocol.TCP, name="connect", read_only=False)
# A CONNECT that has one of these is more than that: extended (RFC 8441 §4), an upgrade, or with
# content, which RFC 9110 §9.3.6 does not define.
_NOT_PLAIN: Final = (":protocol", "upgrade", "content-length", "transfer-encoding")


def operation(request: AccessRequest, route: RouteContext) -> Operation:
    """Return the connect operation of a raw connection.

    Its host is the TLS server name, None if the client sent none. Raises `RequestFault`
    (`MALFORMED_REQUEST`) for a server name that is no host.
    """
    host = canonical_host(request.sni) if request.sni is not None else None
    return _connect(host, None, route)


def tunnel(http: HttpRequest, route: RouteContext) -> Operation:
    """Return the connect operation that an HTTP CONNECT asks for.

    `host` is the destination's, `uri` is `tcp://host:port`.

    Raises `RequestFault`: `UNSUPPORTED_METHOD` for anything but a plain CONNECT, `MALFORMED_BODY`
    for one with content, `MALFORMED_REQUEST` for a destination that is not one host and port.
    """
    if http.method != "CONNECT" or http.path:
        raise RequestFault(Reason.UNSUPPORTED_METHOD, "route is for CONNECT tunnels alone")
    if any(name in http.headers.fields for name in _NOT_PLAIN):
        raise RequestFault(Reason.UNSUPPORTED_METHOD, "tunnel is asked for by a plain CONNECT only")
    if http.body or http.body_truncated:
        # SECURITY: early data, which an upstream would have before its client is judged.
        raise RequestFault(Reason.MALFORMED_BODY, "a CONNECT request must not have a body")
    host, port = canonical_destination(http.host)
    return _connect(host, f"tcp://{host}:{port}", route)


def _connect(host: CanonicalHost | None, uri: str | None, route: RouteContext) -> Operation:
    return Operation(
        act=_CONNECT,
        obj=ObjectAttributes(
            type="tcp", host=host, uri=uri, resource=route.resource, labels=route.labels
        ),
    )
