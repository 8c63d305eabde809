"""The kinds of value a configuration holds, each parsed once from its text.

A validator raises a *phrase*: the rest of a sentence that begins with the name of the key, so that
`faults` can say "`ledger.url` must be …" wherever the value came from.
"""

from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import BeforeValidator, PlainValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import SpiffeId, SpiffeIdPattern, TrustDomain
from authz_server.settings.addresses import (
    GrpcAddress,
    TcpAddress,
    UnixAddress,
    parse_grpc_address,
)

# Validation context: the directory that relative paths start from. Without it they stay as given.
BASE_DIRECTORY: Final = "base_directory"

# A path below the validated field, and the phrase that is wrong with it.
Contradiction = tuple[tuple[str | int, ...], str]


def phrase(text: str) -> PydanticCustomError:
    """Return the fault that reads "`key` <text>"."""
    return PydanticCustomError("phrase", "{phrase}", {"phrase": text})


def refuse_all(found: Sequence[Contradiction]) -> None:
    """Raise everything in `found` as one error, so that one validator can report many faults."""
    if found:
        raise PydanticCustomError("contradictions", "contradictions", {"found": tuple(found)})


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise phrase("must be text")
    if not value or not value.isprintable():
        raise phrase("must be printable text, not empty")
    return value


def _whole_number(value: object) -> object:
    # bool is an int to Python and to pydantic, not to an operator.
    if isinstance(value, bool):
        raise phrase("must be a whole number")
    return value


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _parsed(parse: Callable[[str], object], *kinds: type) -> PlainValidator:
    def check(value: object) -> object:
        if isinstance(value, kinds):
            return value
        text = _text(value)
        try:
            return parse(text)
        except InvalidValueError as error:
            raise phrase(f"is not valid: {error}") from error

    return PlainValidator(check)


def _path(value: object, info: ValidationInfo) -> Path:
    path = value if isinstance(value, Path) else Path(_text(value))
    context: dict[str, Any] = info.context or {}
    base = context.get(BASE_DIRECTORY)
    # The parts are joined and not resolved: a symlink is followed anew at every load.
    return base / path if isinstance(base, Path) else path


def _ledger_url(value: object, info: ValidationInfo) -> str:
    text = _text(value)
    scheme, separator, name = text.partition(":///")
    if text.partition(":")[0] in {"postgresql", "postgresql+psycopg"}:
        return text  # its many forms are libpq's to judge
    if scheme.partition(":")[0] not in {"sqlite", "sqlite+pysqlite"}:
        raise phrase("must be `sqlite:///path` or `postgresql://…`")
    if not separator or name in {"", ":memory:"}:
        raise phrase("must be `sqlite:///path`; a database in memory keeps no record")
    path = str(_path(name, info))
    if "?" in path or name.startswith("file:"):
        raise phrase("must be `sqlite:///path` without options")
    return f"{scheme}:///{path}"


def _https_url(value: object) -> str:
    text = _text(value)
    try:
        parts = urlsplit(text)
        sound = parts.hostname is not None and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.scheme != "https" or parts.username is not None or parts.fragment:
        raise phrase("must be an address `https://host[:port]/path` without credentials")
    return text


def _webhook_url(value: object) -> str:
    text = _text(value)
    if not text.startswith("http://"):
        return _https_url(value)
    try:
        host, port = urlsplit(text).hostname or "", urlsplit(text).port or 80
        sound = TcpAddress(host, port).is_local and urlsplit(text).username is None
    except ValueError:
        sound = False
    if not sound:
        raise phrase("must be `https://…`; `http://` is for loopback alone")
    return text


def _key_set_url(value: object) -> str:
    text = _text(value)
    try:
        parts = urlsplit(text)
        is_loopback = parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
        sound = parts.port != 0
    except ValueError:
        return _https_url(value)
    if not (parts.scheme == "http" and is_loopback and sound):
        return _https_url(value)
    if parts.username is not None or parts.fragment:
        raise phrase("must be an address without credentials")
    return text


def _checkpoint_sink(value: object, info: ValidationInfo) -> str | Path:
    if isinstance(value, Path):
        return _path(value, info)
    text = _text(value)
    if text == "stdout" or text.startswith("https://"):
        return text
    if "://" in text:
        raise phrase("must be `stdout`, a file or `https://…`")
    return _path(text, info)


ONE_OR_MORE: Final = BeforeValidator(_one_or_more)

Text = Annotated[str, BeforeValidator(_text)]
WholeNumber = Annotated[int, BeforeValidator(_whole_number)]
FilePath = Annotated[Path, PlainValidator(_path)]
LedgerUrl = Annotated[str, PlainValidator(_ledger_url)]
# `stdout`, an address, or a file.
SinkAddress = str | Path
CheckpointSink = Annotated[SinkAddress, PlainValidator(_checkpoint_sink)]
Domain = Annotated[TrustDomain, _parsed(TrustDomain.parse, TrustDomain)]
WorkloadId = Annotated[SpiffeId, _parsed(SpiffeId.parse, SpiffeId)]
WorkloadPattern = Annotated[SpiffeIdPattern, _parsed(SpiffeIdPattern.parse, SpiffeIdPattern)]
GrpcListen = Annotated[GrpcAddress, _parsed(parse_grpc_address, TcpAddress, UnixAddress)]
HttpsUrl = Annotated[str, PlainValidator(_https_url)]
# `https`, or plain `http` on this machine: a sidecar, or a test.
KeySetUrl = Annotated[str, PlainValidator(_key_set_url)]
WebhookUrl = Annotated[str, PlainValidator(_webhook_url)]
WorkloadApiSocket = Annotated[UnixAddress, _parsed(UnixAddress.parse, UnixAddress)]
HttpListen = Annotated[TcpAddress, _parsed(TcpAddress.parse, TcpAddress)]
