"""Where something listens: a TCP address or a Unix socket, as both operators and Envoy spell it."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from authz_server.core.errors import InvalidValueError

# `sockaddr_un.sun_path` on Linux holds 108 bytes with the closing NUL.
UNIX_PATH_BYTES_MAX = 107

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An IP address or host name, and a port. Port 0 lets the system choose one."""

    host: str
    port: int

    @property
    def is_ip(self) -> bool:
        """Whether `host` is an address rather than a name that must be resolved."""
        return _ip(self.host) is not None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect: a loopback address (names are not resolved)."""
        address = _ip(self.host)
        return address is not None and address.is_loopback

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix stream socket."""

    path: Path

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect: always."""
        return True

    def __str__(self) -> str:
        return f"unix://{self.path}"


Address = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """Return the address spelled `host:port`, `[v6]:port` or `unix:///absolute/path`.

    Raises `InvalidValueError` for anything else, and for a socket path that the kernel would cut.
    """
    if text.startswith("unix://"):
        return _unix(text.removeprefix("unix://"))
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise InvalidValueError(f"address `{text}` needs brackets around its IPv6 host")
    if not colon or (_ip(host) is None and not _HOST_NAME.fullmatch(host)):
        raise InvalidValueError(f"address `{text}` is neither `host:port` nor `unix:///path`")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidValueError(f"address `{text}` has no port between 0 and 65535")
    return TcpAddress(host, int(port))


def _unix(path: str) -> UnixAddress:
    if not path.startswith("/"):
        raise InvalidValueError(f"socket path `{path}` is not absolute")
    if len(path.encode()) > UNIX_PATH_BYTES_MAX:
        raise InvalidValueError(f"socket path `{path}` is longer than {UNIX_PATH_BYTES_MAX} bytes")
    return UnixAddress(Path(path))


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
