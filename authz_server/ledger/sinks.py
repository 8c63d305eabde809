"""Where checkpoints go besides the ledger, so that they cannot be changed together with it.

A sink takes one line of JSON: `{"kind":…,"writer":…,"last":…,"time":…,"jws":…}`. The members
beside `jws` repeat it for people; verifiers read `jws` alone.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol, TextIO

from authz_server.core.errors import LedgerError
from authz_server.core.record import format_time
from authz_server.ledger.seal import Statement

WEBHOOK_TIMEOUT_S: Final = 10.0  # the next checkpoint says more than this one; nobody waits longer
_OWNER_ONLY: Final = 0o600


class Sink(Protocol):
    """One place outside the ledger."""

    def write(self, line: str) -> None:
        """Keep `line`, which has no line break. Raises `LedgerError`."""


class FileSink:
    """Appends to a file; on a volume of its own, or one that only grows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, line: str) -> None:
        """Append `line` and wait until it is on the disk."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path, flags, _OWNER_ONLY)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(descriptor)
        except OSError as error:
            raise LedgerError(f"cannot write `{self._path}`: {error.strerror or error}") from error


class StreamSink:
    """Writes to standard output, where a log collector takes it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: str) -> None:
        """Write `line` at once."""
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError) as error:
            raise LedgerError(f"cannot write standard output: {error}") from error


class WebhookSink:
    """Posts to an address, as `application/json`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def write(self, line: str) -> None:
        """Post `line`; any 2xx answer counts as kept."""
        request = urllib.request.Request(  # noqa: S310  # the scheme is the configuration's
            self._url, data=line.encode(), headers={"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=WEBHOOK_TIMEOUT_S):  # noqa: S310
                pass
        except (OSError, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            # SECURITY: the address may hold a secret of the receiver.
            raise LedgerError(f"cannot post a checkpoint: {type(error).__name__}") from error


def sinks_for(addresses: Iterable[str | Path]) -> tuple[Sink, ...]:
    """Return the sinks that the configuration names: `stdout`, addresses and files."""
    return tuple(_sink(address) for address in addresses)


def line_of(statement: Statement, jws: str) -> str:
    """Return what a sink is given."""
    members = {
        "kind": statement.kind.value,
        "writer": statement.writer,
        "last": statement.last,
        "time": format_time(statement.time),
        "jws": jws,
    }
    return json.dumps(members, separators=(",", ":"))


def _sink(address: str | Path) -> Sink:
    if isinstance(address, Path):
        return FileSink(address)
    return StreamSink(sys.stdout) if address == "stdout" else WebhookSink(address)
