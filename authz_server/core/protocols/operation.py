"""The common result of every protocol: an action on an object."""

from dataclasses import dataclass

from authz_server.core.attributes import ActionAttributes, ObjectAttributes


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is being done to what.

    `arguments_seen` is False when the request carries a body that was not shown to us: no approval
    can be bound to it. `json_rpc_id` is the raw JSON text of the id to echo, for MCP.
    """

    act: ActionAttributes
    obj: ObjectAttributes
    arguments_seen: bool = True
    json_rpc_id: str | None = None
