"""Addresses as Envoy's messages: what a listener binds, and what a cluster connects to."""

from envoy_data_plane.envoy.config.core.v3 import Address as AddressMessage
from envoy_data_plane.envoy.config.core.v3 import Pipe, SocketAddress

from authz_server.envoy_config.enforcement_point import Address
from authz_server.settings.addresses import TcpAddress


def bound(address: Address) -> AddressMessage:
    """Return the address that Envoy itself listens at."""
    if isinstance(address, TcpAddress):
        return _socket(address)
    # Only the proxy's own account may connect to a socket it makes.
    return AddressMessage(pipe=Pipe(path=str(address.path), mode=0o600))


def reached(address: Address) -> AddressMessage:
    """Return the address that Envoy connects to."""
    if isinstance(address, TcpAddress):
        return _socket(address)
    return AddressMessage(pipe=Pipe(path=str(address.path)))


def _socket(address: TcpAddress) -> AddressMessage:
    return AddressMessage(
        socket_address=SocketAddress(address=address.host, port_value=address.port)
    )
