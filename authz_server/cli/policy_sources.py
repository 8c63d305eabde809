"""From a DIR of the command line to bundles: one bundle, or a directory of bundles."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.suggestion import did_you_mean
from authz_server.policy.bundle import MANIFEST, MODEL, PolicyBundle, load_bundle, load_bundles
from authz_server.policy.rule_notes import RuleNotes

_OF_A_BUNDLE: Final = (MODEL, MANIFEST, "*.csv")


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedBundle:
    """A loaded bundle and what was noted of its rules meanwhile."""

    directory: Path
    bundle: PolicyBundle
    notes: RuleNotes


def is_bundle(directory: Path) -> bool:
    """Tell whether `directory` is one bundle rather than a directory of bundles."""
    return any(next(directory.glob(name), None) is not None for name in _OF_A_BUNDLE)


def load_noted(directory: Path) -> Mapping[str, NotedBundle]:
    """Return the bundle in `directory`, or all bundles under it, by name.

    Reads them as the server does. Raises `ConfigurationError` with every fault and warning.
    """
    notes: dict[Path, RuleNotes] = {}
    if is_bundle(directory):
        notes[directory] = RuleNotes()
        one = load_bundle(directory, observe=notes[directory])
        loaded: Mapping[str, PolicyBundle] = {one.name: one}
    else:
        loaded = load_bundles(directory, observers=lambda part: notes.setdefault(part, RuleNotes()))
    return {
        bundle.name: NotedBundle(directory=part, bundle=bundle, notes=notes[part])
        for part, bundle in zip(notes, loaded.values(), strict=True)
    }


def load_each(directories: tuple[Path, ...]) -> Iterator[NotedBundle]:
    """Yield every bundle of `directories`; raises `ConfigurationError` with all faults first."""
    found: list[NotedBundle] = []
    faults: list[Fault] = []
    for directory in directories:
        try:
            found.extend(load_noted(directory).values())
        except ConfigurationError as error:
            faults.extend(error.faults)
    if faults:
        raise ConfigurationError(faults)
    yield from found


def load_one(directory: Path, name: str | None) -> NotedBundle:
    """Return the bundle called `name`, or the only one. Raises `click.UsageError`."""
    found = load_noted(directory)
    if name is None:
        if len(found) > 1:
            names = ", ".join(found)
            raise click.UsageError(f"`{directory}` holds several bundles: --bundle {names}")
        return next(iter(found.values()))
    if name not in found:
        hint = did_you_mean(name, found)
        raise click.UsageError(f"no bundle is called `{name}` in `{directory}`{hint}")
    return found[name]
