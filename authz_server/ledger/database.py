"""The database behind a ledger: where it is, how it is opened, how it can fail.

A ledger is a SQLite file, or a PostgreSQL database that several servers share. Every third-party
error of this room is turned into a `LedgerError` by `converted`.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
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

# A report over a hundred million records may take this long; a query that hangs may not.
PATIENT_STATEMENT_MS: Final = 600_000
# A host that vanished is noticed within about ten seconds instead of the kernel's minutes.
_SHARED_CONNECTION: Final = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "authz-server",
}
# A server that was stopped half way through a transaction may not hold its locks for ever.
_SHARED_OPTIONS: Final = "-c lock_timeout=5000 -c idle_in_transaction_session_timeout=30000"


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


def is_shared(url: str) -> bool:
    """Return whether `url` names a PostgreSQL database, which several servers may share."""
    return _parsed(url).drivername in {"postgresql", "postgresql+psycopg"}


def sqlite_path(url: str) -> Path:
    """Return the file a `sqlite:///…` URL names. Raises `LedgerError` for any other URL."""
    parsed = _parsed(url)
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise LedgerError(
            f"ledger on `{parsed.drivername}` is not supported; write `sqlite:///authz.db`"
        )
    if not parsed.database or parsed.database == ":memory:" or parsed.query:
        raise LedgerError("ledger must be a plain file; write `sqlite:///authz.db`")
    return Path(parsed.database)


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError as error:
        # SECURITY: not quoted, a malformed URL may still hold a password.
        raise LedgerError("not a database URL; write `sqlite:///authz.db`") from error


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


def open_shared_engine(url: str, *, statement_timeout_ms: int, connections: int = 0) -> Engine:
    """Return an engine on the shared ledger at `url`; nothing is connected yet.

    It keeps up to `connections` open for the next use. Raises `LedgerError` without the driver.
    """
    try:
        import psycopg  # noqa: F401  # the extra `postgres`
    except ImportError as error:
        raise LedgerError("ledger on PostgreSQL needs `pip install authz-server[postgres]`") from (
            error
        )
    # SECURITY: `hide_parameters` as above.
    arguments = {
        **_SHARED_CONNECTION,
        "options": f"-c statement_timeout={statement_timeout_ms} {_SHARED_OPTIONS}",
    }
    parsed = _parsed(url).set(drivername="postgresql+psycopg")
    if not connections:
        return create_engine(
            parsed, connect_args=arguments, poolclass=NullPool, hide_parameters=True
        )
    return create_engine(
        parsed,
        connect_args=arguments,
        pool_size=connections,
        max_overflow=0,
        pool_pre_ping=True,  # a connection that died with the server is replaced, not used
        hide_parameters=True,
    )


@dataclass(frozen=True, slots=True)
class Store:
    """A ledger opened for one kind of use. Each transaction has a connection of its own."""

    engine: Engine
    path: Path | None  # the SQLite file; None for a shared ledger

    @classmethod
    def open(cls, url: str, access: Access) -> Self:
        """Return the ledger at `url` for a patient reader or writer. Raises `LedgerError`."""
        if is_shared(url):
            return cls(open_shared_engine(url, statement_timeout_ms=PATIENT_STATEMENT_MS), None)
        return cls.of_file(sqlite_path(url), access)

    @classmethod
    def of_file(cls, path: Path, access: Access) -> Self:
        """Return the SQLite ledger at `path`; it must exist by the first transaction."""
        return cls(open_engine(path, access, busy_timeout_ms=PATIENT_BUSY_TIMEOUT_MS), path)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Run one transaction; rolled back if the block raises. Raises `LedgerError`."""
        if self.path is not None and not self.path.exists():
            raise LedgerError(f"`{self.path}` does not exist; name the file the server writes")
        with transaction(self.engine) as connection:
            yield connection


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
