"""Finding the ledger a command reads: `--ledger URL`, or the configuration's."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

import click

from authz_server.ledger.approvals import ApproverGroups
from authz_server.ledger.database import is_shared, sqlite_path
from authz_server.ledger.pseudonym import PREFIX, Pseudonyms
from authz_server.ledger.seal import key_file_beside

_Command = TypeVar("_Command", bound=Callable[..., object])

_AGO: Final = re.compile(r"([0-9]{1,6})([smhdw])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSource:
    """Where the ledger is, who may answer what it asks, and what its server signs with.

    `key_paths` and `checkpoint_paths` are those of the configuration that exist on this machine.
    """

    url: str
    groups: ApproverGroups
    two_persons: tuple[str, ...] = ()
    key_paths: tuple[Path, ...] = ()
    checkpoint_paths: tuple[Path, ...] = ()
    subject_key: Path | None = None

    def recorded_subject(self, subject: str | None) -> str | None:
        """Return `subject` as this ledger records it. Raises `LedgerError`."""
        if subject is None or self.subject_key is None or subject.startswith(PREFIX):
            return subject
        return Pseudonyms.load(self.subject_key).of(subject)

    mode: str = "durable"  # off: no server of this configuration opens it


def ledger_options(command: _Command) -> _Command:
    """Add `--config` and `--ledger` to a command; resolve them with `ledger_source`."""
    ledger = click.option(
        "--ledger",
        "ledger_url",
        metavar="URL",
        help="Ledger to use instead of the configuration's, such as sqlite:///authz.db.",
    )
    config = click.option(
        "--config",
        "config_path",
        metavar="FILE",
        envvar="AUTHZ_CONFIG",
        show_envvar=True,
        type=click.Path(path_type=Path),
        help="Configuration of the server whose ledger it is.",
    )
    return config(ledger(command))


def ledger_source(config_path: Path | None, ledger_url: str | None) -> LedgerSource:
    """Return the ledger that the options name. Raises `ConfigurationError`, `UsageError`."""
    if config_path is None:
        if ledger_url is None:
            raise click.UsageError("name the ledger: give --config FILE or --ledger URL")
        return LedgerSource(url=ledger_url, groups={})
    from authz_server.settings import load_settings

    settings = load_settings(config_path)
    groups, two_persons = settings.approvals.groups, settings.approvals.two_persons
    if ledger_url is not None:
        return LedgerSource(url=ledger_url, groups=groups, two_persons=two_persons)
    ledger = settings.ledger
    file = ledger.outbox if is_shared(ledger.url) else sqlite_path(ledger.url)
    sinks = (sink for sink in ledger.checkpoint_sinks if isinstance(sink, Path))
    return LedgerSource(
        url=ledger.url,
        groups=groups,
        mode=ledger.mode,
        key_paths=tuple(filter(Path.exists, [ledger.signing_key or key_file_beside(file)])),
        checkpoint_paths=tuple(filter(Path.exists, sinks)),
        subject_key=ledger.subject_key,
    )


def duration(text: str) -> timedelta:
    """Return the length of time an option gives: `30m`, `2h`, `7d`."""
    match = _AGO.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise click.BadParameter(f"`{text}` is no length of time; write 30m, 2h or 7d")
    return timedelta(seconds=int(match[1]) * _UNIT_S[match[2]])


def moment(text: str) -> datetime:
    """Return the aware moment an option gives: RFC 3339, or how long ago (`15m`, `2h`, `7d`)."""
    if match := _AGO.fullmatch(text):
        return datetime.now(UTC) - timedelta(seconds=int(match[1]) * _UNIT_S[match[2]])
    try:
        value = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(
            f"`{text}` is no time; write 2026-07-01T09:00:00Z, or 15m for ago"
        ) from error
    if value.tzinfo is None:
        raise click.BadParameter(f"`{text}` lacks its offset; write {text}Z for UTC")
    return value
