"""TCP: one check per connection. Nothing of what flows through it is seen."""

from authz_server.core.attributes import ActionAttributes, ObjectAttributes, Protocol
from authz_server.core.protocols.operation import Operation
from authz_server.core.request import AccessRequest, RouteContext


def operation(request: AccessRequest, route: RouteContext) -> Operation:
    """Return the connect operation; the host is the TLS server name, if the client sent one."""
    return Operation(
        act=ActionAttributes(protocol=Protocol.TCP, name="connect", read_only=False),
        obj=ObjectAttributes(
            type="tcp", host=request.sni, resource=route.resource, labels=route.labels
        ),
    )
