"""The shape of rendered configuration: plain JSON values, with Envoy's typed extensions."""

from collections.abc import Mapping

from authz_server.envoy_config.enforcement_point import Address
from authz_server.settings.addresses import TcpAddress

# Rendered rather than built from `envoy_data_plane` messages: version 2.2 lacks fields that the
# binary has and we set (MCP filter 9-11), and would drop them without a word. The real binary
# validates every rendered file in the tests, unknown fields included.
Tree = dict[str, object]


def extension(name: str, type_name: str, settings: Mapping[str, object]) -> Tree:
    """Return an extension entry: `type_name` is the message name below `envoy.extensions.`."""
    return {"name": name, "typed_config": typed(type_name, settings)}


def typed(type_name: str, settings: Mapping[str, object]) -> Tree:
    """Return `settings` as an `Any` of `envoy.extensions.<type_name>`."""
    return {"@type": f"type.googleapis.com/envoy.extensions.{type_name}", **settings}


def address_tree(address: Address) -> Tree:
    """Return `config.core.v3.Address`."""
    if isinstance(address, TcpAddress):
        return {"socket_address": {"address": address.host, "port_value": address.port}}
    # Only the proxy's own account may connect to a socket it makes.
    return {"pipe": {"path": str(address.path), "mode": 0o600}}


def seconds(value: float) -> str:
    """Return a protobuf `Duration` in its JSON form."""
    return f"{value:g}s"
