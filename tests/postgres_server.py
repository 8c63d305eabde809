"""The PostgreSQL of `demo.postgres` for tests, which are skipped where it is not installed."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from authz_server.demo.postgres import (
    PostgresError,
    PostgresServer,
    installed_programs,
    running_postgres,
)

__all__ = ["PostgresServer", "postgres_server"]


@contextmanager
def postgres_server(settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """Run a server; skip the test on a machine without the package."""
    try:
        installed_programs()
    except PostgresError as missing:
        pytest.skip(f"needs PostgreSQL: {missing}")
    directory = Path(tempfile.mkdtemp(prefix="authz-pg-"))
    try:
        with running_postgres(directory, settings) as server:
            yield server
    finally:
        shutil.rmtree(directory)
