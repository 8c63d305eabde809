"""Look whether a part of a mesh answers yet."""

import http.client
import socket
from http import HTTPStatus
from pathlib import Path
from typing import Final

from authz_server.settings.addresses import TcpAddress

_TIMEOUT_S: Final = 2.0


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket (httpcore2 2.16 leaks the socket of a connection refused)."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(str(self._path))


def page(address: TcpAddress | Path, path: str) -> tuple[int, str]:
    """Return status and body of a page at an address or Unix socket; status 0: nobody answers."""
    connection = (
        _UnixConnection(address)
        if isinstance(address, Path)
        else http.client.HTTPConnection(address.host, address.port, timeout=_TIMEOUT_S)
    )
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def envoy_ready(admin: Path) -> bool:
    """Tell whether the Envoy with the admin socket `admin` has bound its listeners."""
    return page(admin, "/ready")[0] == HTTPStatus.OK


def listens(path: Path) -> bool:
    """Tell whether somebody accepts connections on the Unix socket `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0
