"""The SQLite database file behind a ledger: where it is, how it is opened, how it can fail.

Every third-party error of this room is turned into a `LedgerError` by `converted`.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from authz_server.core.errors import LedgerError

# Envoy gives a check 250 ms in our configuration; waiting longer for a lock helps nobody.
BUSY_TIMEOUT_MS: Final = 250
# A person at a prompt would rather wait than be told to try again.
PATIENT_BUSY_TIMEOUT_MS: Final = 5_000
# Upper levels of the index trees of 100 million rows stay in memory; 2 MiB is SQLite's default.
_CACHE_KIB: Final = 32 * 1024
_OWNER_ONLY: Final = 0o600


class Synchronous(StrEnum):
    """How hard a commit is pressed onto the disk.

    NORMAL survives the death of the process (kill -9) but may lose the last commits to a power
    cut or kernel crash; FULL syncs the log on every commit and survives those too, at three to
    four times the cost of a single commit.
    """

    NORMAL = "NORMAL"
    FULL = "FULL"


class Access(StrEnum):
    """What a connection is for; becomes the statement that opens its transactions."""

    READ = "BEGIN"
    # The write lock is taken first, so that no transaction fails half way for having read early.
    WRITE = "BEGIN IMMEDIATE"


def sqlite_path(url: str) -> Path:
    """Return the file a `sqlite:///…` URL names. Raises `LedgerError` for any other URL."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise LedgerError(f"`{url}` is not a database URL; write `sqlite:///authz.db`") from error
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise LedgerError(
            f"ledger on `{parsed.drivername}` is not supported; write `sqlite:///authz.db`"
        )
    if not parsed.database or parsed.database == ":memory:" or parsed.query:
        raise LedgerError("ledger must be a plain file; write `sqlite:///authz.db`")
    return Path(parsed.database)


def create_file(path: Path) -> None:
    """Create an empty file only its owner can read, unless there is one. Raises `OSError`."""
    # SQLite gives the log and index files beside it the mode of this one.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _OWNER_ONLY)
    os.close(descriptor)


def file_identity(path: Path) -> tuple[int, int]:
    """Return what stays the same as long as `path` is the same file. Raises `OSError`."""
    status = path.stat()
    return status.st_dev, status.st_ino


def open_engine(
    path: Path,
    access: Access,
    *,
    synchronous: Synchronous = Synchronous.NORMAL,
    busy_timeout_ms: int = BUSY_TIMEOUT_MS,
) -> Engine:
    """Return an engine on an existing file; it keeps no connection open by itself."""

    def connect() -> sqlite3.Connection:
        # mode=rw: a file that went away is an error, never silently a new and empty ledger.
        connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode=rw",
            uri=True,
            timeout=busy_timeout_ms / 1000,
            isolation_level=None,  # transactions begin and end where this package says so
            check_same_thread=False,  # `close` may come from another thread
        )
        try:
            _configure(connection, access, synchronous)
        except BaseException:
            connection.close()
            raise
        return connection

    # SECURITY: an error must not carry what a request said; errors are logged and shown.
    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(access.value))
    return engine


def _configure(connection: sqlite3.Connection, access: Access, synchronous: Synchronous) -> None:
    if access is Access.READ:
        connection.execute("PRAGMA query_only = ON")
        return
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise LedgerError("ledger needs a local file system that supports SQLite's WAL mode")
    connection.execute(f"PRAGMA synchronous = {synchronous.value}")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")


@contextmanager
def converted(doing: str) -> Iterator[None]:
    """Turn every database and file error into a `LedgerError` that says what was being done."""
    try:
        yield
    except LedgerError as error:
        raise LedgerError(f"cannot {doing}: {error}") from error
    except DBAPIError as error:
        raise LedgerError(f"cannot {doing}: {error.orig}") from error
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise LedgerError(f"cannot {doing}: {error}") from error
    except OSError as error:
        raise LedgerError(f"cannot {doing}: {error.strerror or error}") from error


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Run one transaction on a connection of its own; rolled back if the block raises."""
    with engine.connect() as connection, connection.begin():
        yield connection
