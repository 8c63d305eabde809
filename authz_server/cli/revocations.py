"""`authz-server revocations`: take back what was granted, and see what is taken back."""

import getpass
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

import click

from authz_server.cli.ledger_source import duration, ledger_options, ledger_source
from authz_server.cli.listing_group import ListingGroup
from authz_server.cli.terminal import examples, show, show_json, table
from authz_server.core.errors import InvalidValueError
from authz_server.core.record import format_time
from authz_server.core.revocation import RevocationKind
from authz_server.ledger.revocations import (
    Handle,
    Revocation,
    RevocationRefused,
    RevocationStore,
)

EXIT_REFUSED: Final = 1

_HEADINGS: Final = ("revocation", "kind", "value", "since", "until", "by", "reason", "removed")
_HELP: Final[Mapping[RevocationKind, str]] = {
    RevocationKind.TXN: "Transaction: every token of it.",
    RevocationKind.JTI: "One token, by its id.",
    RevocationKind.SPIFFE_ID: "Workload, as caller, actor, delegate or subject.",
    RevocationKind.SUBJECT: "Whoever is acted for, exactly as tokens spell it.",
    RevocationKind.KID: "Key of an issuer, or an X509-SVID by the SHA-256 of its certificate.",
}

_Command = TypeVar("_Command", bound=Callable[..., object])

_output = click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the output; json is one document a line where several are listed.",
)
_as = click.option(
    "--as",
    "by",
    metavar="WHO",
    default=None,
    help="Who does it, for the record. Default: the account at this machine.",
)


def _handle_options(command: _Command) -> _Command:
    """Add one option for each kind of handle; resolve them with `_handle`."""
    for kind in reversed(RevocationKind):
        name = f"--{kind.value.replace('_', '-')}"
        command = click.option(name, kind.value, metavar="VALUE", help=_HELP[kind])(command)
    return command


@click.group(
    cls=ListingGroup,
    epilog=examples(
        "revocations add --config authz.yaml --spiffe-id spiffe://prod.example.org/agent/research",
        "revocations list --config authz.yaml",
        "revocations remove --config authz.yaml 3f2a",
    ),
)
def group() -> None:
    """Take back a transaction, a token, a workload, a subject or a key."""


@group.command(
    "add",
    epilog=examples(
        "revocations add --config authz.yaml --spiffe-id spiffe://prod.example.org/agent/research "
        '--reason "acts strangely"',
        "revocations add --config authz.yaml --jti k2x9 --expires-in 2h",
    ),
)
@ledger_options
@_handle_options
@click.option("--reason", metavar="TEXT", help="Why, in a sentence; it is recorded.")
@click.option(
    "--expires-in",
    type=duration,
    metavar="TIME",
    help="For how long: 30m, 2h, 7d. Default: until it is removed.",
)
@_as
@_output
def add_command(  # noqa: PLR0913, PLR0917 - one parameter for each option
    config_path: Path | None,
    ledger_url: str | None,
    reason: str | None,
    expires_in: timedelta | None,
    by: str | None,
    output: str,
    **handles: str | None,
) -> None:
    """Revoke one thing. Every server denies it from its next request on (REVOKED).

    A server on the same machine knows within a fraction of a second, every other one that shares
    the ledger within two; `/readyz` and `authz_revocations_revision` say which revision it is at.
    """
    handle = _handle(handles)
    if handle is None:
        raise click.UsageError(f"say what to revoke: one of {_options()}")
    now = _now()
    store = _store(config_path, ledger_url)
    try:
        revocation, revision = store.add(
            handle,
            by=by or _account(),
            now=now,
            reason=reason,
            expires_at=None if expires_in is None else now + expires_in,
        )
    except RevocationRefused as refused:
        _refuse(refused)
    else:
        _show_change([revocation], revision, output)


@group.command("list", epilog=examples("revocations list --config authz.yaml --output json"))
@ledger_options
@click.option("--all", "all_", is_flag=True, help="Those that expired or were removed, too.")
@_output
def list_command(
    config_path: Path | None, ledger_url: str | None, output: str, *, all_: bool
) -> None:
    """List what is revoked, newest first, and the revision that servers must be at."""
    store = _store(config_path, ledger_url)
    found, revision = store.list(now=None if all_ else _now())
    click.echo(f"revision {revision}", err=True)
    if output == "json":
        for revocation in found:
            show_json(_document(revocation, revision))
        return
    show(table(_HEADINGS, map(_row, found)))


@group.command(
    "remove",
    epilog=examples(
        "revocations remove --config authz.yaml 3f2a",
        "revocations remove --config authz.yaml --spiffe-id "
        "spiffe://prod.example.org/agent/research",
    ),
)
@click.argument("revocation_id", metavar="ID", required=False)
@ledger_options
@_handle_options
@_as
@_output
def remove_command(
    revocation_id: str | None,
    config_path: Path | None,
    ledger_url: str | None,
    by: str | None,
    output: str,
    **handles: str | None,
) -> None:
    """End one revocation by ID, whose beginning is enough, or all those of one handle."""
    handle = _handle(handles)
    wanted = revocation_id or handle
    if wanted is None or (revocation_id and handle):
        raise click.UsageError(f"say what to end: an ID, or one of {_options()}")
    store = _store(config_path, ledger_url)
    try:
        ended, revision = store.remove(wanted, by=by or _account(), now=_now())
    except RevocationRefused as refused:
        _refuse(refused)
    else:
        _show_change(ended, revision, output)


def _handle(given: Mapping[str, str | None]) -> Handle | None:
    """Return the one handle the options name, or None. Raises `UsageError`."""
    named = [(kind, value) for kind in RevocationKind if (value := given[kind.value]) is not None]
    if not named:
        return None
    if len(named) > 1:
        raise click.UsageError(f"one at a time: give one of {_options()}")
    kind, value = named[0]
    try:
        return Handle.parse(kind, value)
    except InvalidValueError as error:
        raise click.UsageError(f"`{value}` is no {kind}: {error}") from error


def _options() -> str:
    return ", ".join(f"--{kind.value.replace('_', '-')}" for kind in RevocationKind)


def _store(config_path: Path | None, ledger_url: str | None) -> RevocationStore:
    source = ledger_source(config_path, ledger_url)
    if source.mode == "off":
        # SECURITY: a server of this configuration would never see it.
        raise click.UsageError("`ledger.mode` is `off`: no server reads revocations from it")
    return RevocationStore.open(source.url)


def _account() -> str:
    return f"{getpass.getuser()}@{os.uname().nodename}"


def _refuse(refused: RevocationRefused) -> None:
    click.echo(f"refused: {refused}", err=True)
    raise SystemExit(EXIT_REFUSED)


def _show_change(changed: Sequence[Revocation], revision: int, output: str) -> None:
    click.echo(f"revision {revision}", err=True)
    if output == "json":
        for revocation in changed:
            show_json(_document(revocation, revision))
        return
    show(table(_HEADINGS, map(_row, changed)))


def _document(revocation: Revocation, revision: int) -> Mapping[str, object]:
    return dict(_members(revocation)) | {"revision": revision}


def _members(revocation: Revocation) -> Iterator[tuple[str, object]]:
    """Yield each member as JSON has it."""
    yield "id", revocation.id
    yield "kind", revocation.kind.value
    yield "value", revocation.value
    yield "reason", revocation.reason
    yield "revoked_by", revocation.revoked_by
    yield "revoked_at", format_time(revocation.revoked_at)
    for name in ("expires_at", "removed_at"):
        moment: datetime | None = getattr(revocation, name)
        yield name, None if moment is None else format_time(moment)
    yield "removed_by", revocation.removed_by


def _row(revocation: Revocation) -> tuple[str, ...]:
    return (
        revocation.id,
        revocation.kind.value,
        revocation.value,
        _seconds(revocation.revoked_at),
        _seconds(revocation.expires_at),
        revocation.revoked_by,
        revocation.reason or "-",
        _seconds(revocation.removed_at),
    )


def _seconds(moment: datetime | None) -> str:
    return "-" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _now() -> datetime:
    return datetime.now(UTC)
