"""Where the server listens: an address and port, or a Unix socket."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from authz_server.core.errors import InvalidValueError

UNIX_PATH_BYTES_MAX: Final = 107  # sockaddr_un.sun_path holds 108 bytes with its NUL, unix(7)

_HOST_AND_PORT = re.compile(
    r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[0-9a-zA-Z._-]+)):(?P<port>[0-9]{1,5})"
)


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host and a port. `str()` gives what gRPC and sockets bind to, IPv6 in brackets."""

    host: str  # IP address or host name, without brackets
    port: int  # 0: any free port

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address spelled `host:port`. Raises `InvalidValueError`."""
        match = _HOST_AND_PORT.fullmatch(text)
        if match is None:
            raise InvalidValueError("expected `host:port`, with IPv6 in brackets")
        port = int(match["port"])
        if port > 65535:
            raise InvalidValueError("port is above 65535")
        if match["v6"] is not None and not _is_ip(match["v6"], version=6):
            raise InvalidValueError("IPv6 address is malformed")
        return cls(match["v6"] or match["host"], port)

    @property
    def is_local(self) -> bool:
        """Whether only processes of this machine can reach it."""
        if self.host == "localhost":
            return True
        return _is_ip(self.host) and ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket. `str()` gives `unix:///path`, as gRPC and Envoy spell it."""

    path: Path  # absolute

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address spelled `unix:///path`. Raises `InvalidValueError`."""
        path = text.removeprefix("unix://")
        if path == text or not path.startswith("/") or path.endswith("/") or "\0" in path:
            raise InvalidValueError("expected `unix:///path` with an absolute path")
        if len(path.encode()) > UNIX_PATH_BYTES_MAX:
            raise InvalidValueError(f"socket path is over {UNIX_PATH_BYTES_MAX} bytes")
        return cls(Path(path))

    @property
    def is_local(self) -> bool:
        """Whether only processes of this machine can reach it."""
        return True

    def __str__(self) -> str:
        return f"unix://{self.path}"


GrpcAddress = TcpAddress | UnixAddress


def parse_grpc_address(text: str) -> GrpcAddress:
    """Return the address spelled `host:port` or `unix:///path`. Raises `InvalidValueError`."""
    if text.startswith("unix:"):
        return UnixAddress.parse(text)
    return TcpAddress.parse(text)


def _is_ip(text: str, version: int | None = None) -> bool:
    try:
        return version in {None, ipaddress.ip_address(text).version}
    except ValueError:
        return False
