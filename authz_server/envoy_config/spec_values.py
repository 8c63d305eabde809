"""The kinds of value that only a file of `spec` holds, each parsed once from its text."""

from pathlib import Path
from typing import Annotated, Final

from pydantic import PlainValidator

from authz_server.core.protocols.grpc import is_method
from authz_server.envoy_config.enforcement_point import is_destination, is_host, is_label
from authz_server.settings.values import phrase

STDOUT: Final = "stdout"


def _absolute(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable():
        # Envoy would take it from wherever it happens to be started.
        raise phrase("must be an absolute path on the machine where Envoy runs")
    return Path(value)


def _access_log(value: object) -> str | Path:
    return STDOUT if value == STDOUT else _absolute(value)


def _label(value: object) -> str:
    if not isinstance(value, str) or not is_label(value):
        raise phrase("must be of the form `[a-z0-9][a-z0-9_-]*`, 63 characters at most")
    return value


def _served_host(value: object) -> str:
    if not isinstance(value, str) or not is_host(value.removeprefix("*.")):
        raise phrase(
            "must be one lower-case host name without port, or `*.` and one: what it answers for "
            "is what a policy can be written about"
        )
    return value


def _host(value: object) -> str:
    if not isinstance(value, str) or not is_host(value):
        raise phrase("must be one lower-case host name without port")
    return value


def _destination(value: object) -> str:
    if not isinstance(value, str) or not is_destination(value):
        raise phrase("must be one lower-case `host:port`")
    return value


def _method(value: object) -> str:
    if not isinstance(value, str) or not is_method(value):
        raise phrase("must be the full name of a gRPC method, `package.Service/Method`")
    return value


AbsolutePath = Annotated[Path, PlainValidator(_absolute)]
Label = Annotated[str, PlainValidator(_label)]
ServedHost = Annotated[str, PlainValidator(_served_host)]
Host = Annotated[str, PlainValidator(_host)]
Destination = Annotated[str, PlainValidator(_destination)]
MethodName = Annotated[str, PlainValidator(_method)]
# `stdout`, or a file.
AccessLog = Annotated[str | Path, PlainValidator(_access_log)]
