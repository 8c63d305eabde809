"""From a DIR of the command line to bundles: one bundle, or a directory of bundles.

Bundles are loaded by the function the server loads them with, rows in a database included.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.suggestion import did_you_mean
from authz_server.policy.bundle import (
    MANIFEST,
    MODEL,
    PolicyBundle,
    TableReader,
    load_bundle,
    load_bundles,
    read_bundle_files,
)
from authz_server.policy.definitions import RoleRows, role_rows
from authz_server.policy.manifest import RowSource
from authz_server.policy.replay import LoadedPolicy
from authz_server.policy.rule_notes import RuleNotes
from authz_server.policy.rules import RuleObserver, unobserved
from authz_server.policy.table import PolicyTable

_OF_A_BUNDLE: Final = (MODEL, MANIFEST, "*.csv")


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedBundle:
    """A loaded bundle and what was noted of its rules meanwhile; `table` if its rows are in one."""

    directory: Path
    bundle: PolicyBundle
    notes: RuleNotes
    table: PolicyTable | None

    @property
    def roles(self) -> RoleRows:
        """The role rows of the bundle."""
        return role_rows(read_bundle_files(self.directory), self.table)

    @property
    def policy(self) -> LoadedPolicy:
        """The bundle as it is compared and replayed."""
        return LoadedPolicy.of(self.bundle, self.notes, self.roles)

    def load_again(self) -> PolicyBundle:
        """Return the bundle loaded from its files anew, without notes, as the server does."""
        with _loader() as load:
            return load(self.directory, observe=unobserved)


@dataclass(slots=True)
class _Loader:
    """Loads bundles and keeps the tables they were made of, by directory."""

    read: TableReader
    tables: dict[Path, PolicyTable] = field(default_factory=dict)

    def __call__(self, directory: Path, *, observe: RuleObserver) -> PolicyBundle:
        def read_table(source: RowSource, place: str) -> PolicyTable:
            table = self.tables[directory] = self.read(source, place)
            return table

        return load_bundle(directory, read_table=read_table, observe=observe)


@contextmanager
def _loader() -> Iterator[_Loader]:
    from authz_server.reload.tables import PolicyTables

    tables = PolicyTables(os.environ)
    try:
        yield _Loader(tables.read)
    finally:
        tables.close()


def is_bundle(directory: Path) -> bool:
    """Tell whether `directory` is one bundle rather than a directory of bundles."""
    return any(next(directory.glob(name), None) is not None for name in _OF_A_BUNDLE)


def load_noted(directory: Path) -> Mapping[str, NotedBundle]:
    """Return the bundle in `directory`, or all bundles under it, by name.

    Raises `ConfigurationError` with every fault and warning.
    """
    notes: dict[Path, RuleNotes] = {}
    with _loader() as load:
        if is_bundle(directory):
            notes[directory] = RuleNotes()
            one = load(directory, observe=notes[directory])
            loaded: Mapping[str, PolicyBundle] = {one.name: one}
        else:
            loaded = load_bundles(
                directory,
                load=load,
                observers=lambda part: notes.setdefault(part, RuleNotes()),
            )
        return {
            bundle.name: NotedBundle(
                directory=part, bundle=bundle, notes=notes[part], table=load.tables.get(part)
            )
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
            raise click.UsageError(
                f"`{directory}` holds several bundles; --bundle is one of {names}"
            )
        return next(iter(found.values()))
    if name not in found:
        hint = did_you_mean(name, found)
        raise click.UsageError(f"no bundle is called `{name}` in `{directory}`{hint}")
    return found[name]
