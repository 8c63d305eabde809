"""Load the policy bundles that are fit to serve: sound, and passing their own tests.

A bundle is loaded by `policy.bundle` and judged by its `failed_cases`, which is all that
`policy lint` and `policy test` do too: what a pipeline lets pass, the server takes.
"""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from authz_server.core.errors import ConfigurationError
from authz_server.policy.bundle import (
    MANIFEST,
    PolicyBundle,
    load_bundle_files,
    load_bundles,
    read_bundle_files,
    row_source,
)
from authz_server.policy.rules import RuleObserver
from authz_server.reload.memo import Memo
from authz_server.reload.tables import PolicyTables


def load_tested_bundles(
    root: Path, *, tables: PolicyTables, memo: Memo
) -> Mapping[str, PolicyBundle]:
    """Return every bundle under `root` by name. All or nothing.

    Raises `ConfigurationError` with the faults of all of them: what does not load, and each failed
    case of those that do, at its place in `cases.yaml`.
    """
    return load_bundles(root, load=partial(_tested, tables=tables, memo=memo))


def _tested(
    directory: Path, *, observe: RuleObserver, tables: PolicyTables, memo: Memo
) -> PolicyBundle:
    files = read_bundle_files(directory)
    place = str(directory / MANIFEST)
    source = row_source(files)
    rows = None if source is None else tables.digest(source, place)

    def make() -> PolicyBundle:
        table = None if source is None else tables.read(source, place)
        bundle = load_bundle_files(
            files, name_hint=directory.name, directory=str(directory), table=table, observe=observe
        )
        if failures := bundle.failed_cases():
            raise ConfigurationError([failure.fault() for failure in failures], bundle.warnings)
        return bundle

    digests = tuple(sorted((name, hashlib.sha256(data).digest()) for name, data in files.items()))
    return memo.part((directory, digests, rows), make)
