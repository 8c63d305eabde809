"""Read the configuration that a running Envoy has, from its admin interface."""

import http.client
import socket
from typing import Final
from urllib.parse import urlsplit

from authz_server.core.errors import ConfigurationError, Fault
from authz_server.envoy_config.lint.source import SOURCE_BYTES_MAX

TIMEOUT_S: Final = 10.0  # the main thread of a busy Envoy takes a second for a large dump
_TARGET: Final = "/config_dump"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def read_dump(address: str) -> bytes:
    """Return the configuration dump of the Envoy whose admin interface is at `address`.

    `http://HOST:PORT` or `unix:///PATH`. Raises `ConfigurationError` if there is none.
    """
    connection = _connection(address)
    try:
        connection.request("GET", _TARGET)
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise _error(address, f"answered {answer.status} to `{_TARGET}`")
        return answer.read(SOURCE_BYTES_MAX + 1)
    except OSError as error:
        why = error.strerror or str(error)
        raise _error(address, f"no admin interface of an Envoy: {why}") from error
    except http.client.HTTPException as error:
        raise _error(address, "no admin interface of an Envoy: it speaks no HTTP/1.1") from error
    finally:
        connection.close()


def _connection(address: str) -> http.client.HTTPConnection:
    try:
        parts = urlsplit(address)
        if parts.scheme == "unix" and not parts.netloc and parts.path:
            return _UnixConnection(parts.path)
        if parts.scheme == "http" and parts.hostname and parts.path in {"", "/"}:
            return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT_S)
    except ValueError as error:
        raise _error(address, "not an address: a port is a number") from error
    raise _error(address, "not of the form `http://HOST:PORT` or `unix:///PATH`")


def _error(address: str, message: str) -> ConfigurationError:
    return ConfigurationError([Fault(file=address, message=message)])
