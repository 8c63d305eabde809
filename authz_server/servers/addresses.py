"""Addresses to listen on: whether one may be taken, and what is left behind when it is released."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from authz_server.core.errors import AuthzError

_SOCKET_UMASK: Final = 0o117  # 0660: the server's user and its group, which Envoy's user joins


class ListenError(AuthzError):
    """An address cannot be listened on. The message is one line for the operator."""


class SocketFile:
    """The file of a Unix socket that is bound; removed only while it is still ours."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = _identity(path)

    def remove(self) -> None:
        """Remove the file unless another server has replaced it."""
        with contextlib.suppress(FileNotFoundError):
            if _identity(self._path) == self._identity:
                self._path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return (status.st_dev, status.st_ino)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host` (an address, or `localhost`)."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def claim_tcp(host: str, port: int) -> None:
    """Bind an address and release it, because gRPC does not tell why it cannot.

    Raises `OSError` with the reason.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, target = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(target)


def claim_unix(path: Path) -> None:
    """Make way for a Unix socket: remove the file of one that nobody listens on any more.

    Raises `OSError` when a server answers there, a file that is no socket is in the way, or the
    directory does not admit one. gRPC would unlink any socket it finds, even one in use.
    """
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.bind(str(path))
    path.unlink()


@contextlib.contextmanager
def socket_file_mode() -> Iterator[None]:
    """Let sockets bound inside be reachable by the server's user and group alone."""
    before = os.umask(_SOCKET_UMASK)
    try:
        yield
    finally:
        os.umask(before)
