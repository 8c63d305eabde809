"""`authz-server identities`: the inventory beside what the ledger saw of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Final, TypeVar

import click

from authz_server.cli.ledger_source import duration
from authz_server.cli.listing_group import ListingGroup
from authz_server.cli.options import config_option
from authz_server.cli.terminal import examples, show, show_json, table
from authz_server.core.attributes import Kind
from authz_server.core.errors import InvalidValueError, Reason
from authz_server.core.identities import Identity, Inventory
from authz_server.core.parties import PROFILE_CONTRADICTED
from authz_server.core.record import format_time
from authz_server.core.spiffe import SpiffeId
from authz_server.identity.file_content import FileContent
from authz_server.identity.inventory_file import INVENTORY_BYTES_MAX, parse_inventory
from authz_server.ledger.identity_usage import IdentityUsage, Usage

# An agent of a handful of people is nothing unusual, whatever the others do.
_SUBJECTS_MIN: Final = 20
_UNUSUAL: Final = 5  # times what callers have in the middle
# What acts for a person in its own right is an agent; these only do so as part of a chain.
_NOT_AGENTS: Final = frozenset({Kind.SERVICE, Kind.TOOL, Kind.PROXY})

_Command = TypeVar("_Command", bound=Callable[..., object])
_Document = Mapping[str, object]

_output = click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the output; json is one document a line.",
)
_ledger = click.option(
    "--ledger",
    "ledger_url",
    metavar="URL",
    help="Ledger to use instead of the configuration's, such as sqlite:///authz.db.",
)
_window = click.option(
    "--within",
    type=duration,
    default="30d",
    show_default=True,
    metavar="TIME",
    help="How far to look back: 12h, 7d, 4w.",
)


def _options(command: _Command) -> _Command:
    return config_option(_ledger(_window(_output(command))))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sight:
    """The inventory, and what the ledger saw within the window."""

    inventory: Inventory
    usage: IdentityUsage
    since: datetime


@click.group(
    cls=ListingGroup,
    epilog=examples(
        "identities list --config authz.yaml",
        "identities unseen --config authz.yaml --within 90d",
        "identities unregistered --config authz.yaml",
        "identities borrowed --config authz.yaml",
    ),
)
def group() -> None:
    """Compare the identity inventory with what the ledger saw."""


@group.command("list", epilog=examples("identities list --config authz.yaml --within 7d"))
@_options
def list_command(config: Path, ledger_url: str | None, within: timedelta, output: str) -> None:
    """List every entry of the inventory: its kind, its owner, and when it was last seen."""
    sight = _sight(config, ledger_url, within)
    _show(_entries(sight), output)


@group.command("unseen", epilog=examples("identities unseen --config authz.yaml --within 90d"))
@_options
def unseen_command(config: Path, ledger_url: str | None, within: timedelta, output: str) -> None:
    """List the entries that nobody went by: candidates for removal."""
    sight = _sight(config, ledger_url, within)
    _show((entry for entry in _entries(sight) if entry["last_seen"] is None), output)


@group.command("unregistered", epilog=examples("identities unregistered --config authz.yaml"))
@_options
def unregistered_command(
    config: Path, ledger_url: str | None, within: timedelta, output: str
) -> None:
    """List callers and actors that no entry matches: a deployment nobody owns, or a stranger.

    Exit code 1 if there are any.
    """
    sight = _sight(config, ledger_url, within)
    found = [
        _usage(usage)
        for usage in sorted(sight.usage.by_id(sight.since).values(), key=lambda one: one.id)
        if (usage.as_principal or usage.as_actor) and _entry_of(sight.inventory, usage.id) is None
    ]
    _show(found, output)
    if found:
        raise SystemExit(1)


@group.command("borrowed", epilog=examples("identities borrowed --config authz.yaml"))
@_options
@click.option(
    "--subjects-min",
    type=click.IntRange(min=2),
    default=_SUBJECTS_MIN,
    show_default=True,
    help="Acting for fewer is never unusual.",
)
def borrowed_command(
    config: Path, ledger_url: str | None, within: timedelta, output: str, *, subjects_min: int
) -> None:
    """List identities that somebody else may be using.

    One that acts for unusually many subjects; a service, tool or proxy that a person's grant was
    made out to; a first actor that its issuer took for something else than the inventory does
    (which is denied as well). Signs to look into, not proofs. Exit code 1 if there are any.
    """
    sight = _sight(config, ledger_url, within)
    found = [*_crowded(sight, subjects_min), *_persons_at_services(sight), *_contradicted(sight)]
    _show(found, output)
    if found:
        raise SystemExit(1)


def _sight(config: Path, ledger_url: str | None, within: timedelta) -> _Sight:
    from authz_server.settings import load_settings

    settings = load_settings(config)
    path = settings.identity.inventory
    if path is None:
        raise click.UsageError("the configuration names no `identity.inventory`")
    inventory = parse_inventory(FileContent.read(path, bytes_max=INVENTORY_BYTES_MAX))
    usage = IdentityUsage.open(ledger_url or settings.ledger.url)
    return _Sight(inventory=inventory, usage=usage, since=datetime.now(UTC) - within)


def _entries(sight: _Sight) -> Iterator[_Document]:
    """Yield each entry with everyone who went by it."""
    seen: dict[str, list[Usage]] = {}
    for usage in sight.usage.by_id(sight.since).values():
        entry = _entry_of(sight.inventory, usage.id)
        if entry is not None:
            seen.setdefault(entry.id, []).append(usage)
    for entry in _all(sight.inventory):
        users = seen.get(entry.id, [])
        yield {
            "id": entry.id,
            "kind": entry.kind.value,
            "owner": entry.owner,
            "purpose": entry.purpose,
            "labels": dict(entry.labels),
            "last_seen": format_time(max(u.last_seen for u in users)) if users else None,
            "identities": len(users),
            "as_principal": sum(usage.as_principal for usage in users),
            "as_actor": sum(usage.as_actor for usage in users),
            "as_subject": sum(usage.as_subject for usage in users),
            "denied": sum(usage.denied for usage in users),
        }


def _all(inventory: Inventory) -> Sequence[Identity]:
    entries = [*inventory.exact.values(), *(entry for _, entry in inventory.patterns)]
    return sorted(entries, key=lambda entry: entry.id)


def _entry_of(inventory: Inventory, id_: str) -> Identity | None:
    try:
        return inventory.find(SpiffeId.parse(id_))
    except InvalidValueError:
        return inventory.find_subject(id_)


def _usage(usage: Usage) -> _Document:
    return {
        "id": usage.id,
        "last_seen": format_time(usage.last_seen),
        "as_principal": usage.as_principal,
        "as_actor": usage.as_actor,
        "denied": usage.denied,
    }


def _crowded(sight: _Sight, subjects_min: int) -> Iterator[_Document]:
    """Yield callers that act for many times more subjects than callers in the middle do."""
    found = sight.usage.acted_for(sight.since)
    middle = median(one.subjects for one in found) if found else 0
    for one in found:
        if one.subjects >= max(subjects_min, _UNUSUAL * middle):
            yield _sign(
                one.principal, f"acts for {one.subjects} subjects", one.decisions, one.last_seen
            )


def _persons_at_services(sight: _Sight) -> Iterator[_Document]:
    """Yield workloads that are no agents, to which the grant of a person was made out."""
    for principal, subject, count, last_seen in sight.usage.alone_for(sight.since):
        entry = _entry_of(sight.inventory, principal)
        if entry is None or entry.kind not in _NOT_AGENTS or subject.startswith("spiffe:"):
            continue
        what = f"{entry.kind.value} holds the grant of `{subject}`"
        yield _sign(principal, what, count, last_seen)


def _contradicted(sight: _Sight) -> Iterator[_Document]:
    denied = sight.usage.denied_with(Reason.CHAIN_BROKEN, PROFILE_CONTRADICTED, sight.since)
    first: dict[str, tuple[int, str]] = {}
    for document in denied:  # newest first
        chain = document.get("chain")
        actors = chain.get("actors") if isinstance(chain, Mapping) else None
        if not isinstance(actors, list) or not actors:
            continue
        count, last_seen = first.get(str(actors[0]), (0, str(document.get("time"))))
        first[str(actors[0])] = count + 1, last_seen
    for id_, (count, last_seen) in sorted(first.items()):
        yield {
            "id": id_,
            "sign": PROFILE_CONTRADICTED,
            "decisions": count,
            "last_seen": last_seen,
        }


def _sign(id_: str, sign: str, decisions: int, last_seen: datetime) -> _Document:
    return {
        "id": id_,
        "sign": sign,
        "decisions": decisions,
        "last_seen": format_time(last_seen),
    }


def _show(documents: Iterable[_Document], output: str) -> None:
    found = list(documents)
    if output == "json":
        for document in found:
            show_json(document)
        return
    if not found:
        click.echo("none", err=True)
        return
    headings = [name for name in found[0] if name not in {"purpose", "labels"}]
    rows = ([_cell(document[name]) for name in headings] for document in found)
    show(table([name.replace("_", " ") for name in headings], rows))


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
