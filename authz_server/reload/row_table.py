"""One table of policy rows in SQLite or PostgreSQL: whether it changed, and what it holds.

Nothing is ever written: the SQLite file is opened read-only, every PostgreSQL transaction is.
"""

import hashlib
import os
import re
import socket
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import quote

from sqlalchemy import Connection, Engine, column, create_engine, inspect, select, table, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchTableError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from authz_server.core.errors import AuthzError, ConfigurationError, Fault
from authz_server.policy.limits import COLUMNS_MAX, ROWS_MAX
from authz_server.policy.table import PolicyTable, TableRow

if TYPE_CHECKING:  # an extra
    import psycopg

_POSTGRESQL: Final = frozenset({"postgresql", "postgresql+psycopg"})
_SQLITE: Final = frozenset({"sqlite", "sqlite+pysqlite"})
_BUSY_TIMEOUT_S: Final = 5.0  # another process writes the SQLite file; a reload can wait
_CONNECTION: Final = {
    # A host that vanished is noticed within about ten seconds instead of the kernel's minutes.
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "authz-server policy rows",
    # A locked or overloaded table must not hold up the watch of files for longer than this.
    "options": "-c default_transaction_read_only=on -c statement_timeout=10000",
}
_ANSWER_TIMEOUT_S: Final = 15.0  # beyond what the server allows a statement: then it hangs
_PORTION_ROWS: Final = 500
_VALUE_COLUMN = re.compile(r"v(0|[1-9][0-9]?)")
_REASON_CHARS_MAX: Final = 200  # of what a driver says, which may be a page


class TableUnreachableError(AuthzError):
    """The table cannot be read now. The message is one line for operators, without credentials."""


class RowTable:
    """One table behind one connection. One thread at a time uses it."""

    def __init__(self, url: str, name: str) -> None:
        """`name` may have a schema. Raises `TableUnreachableError` for a URL of another kind."""
        self._name = name
        self._schema, _, self._table = name.rpartition(".")
        self._engine = _engine(_parsed(url))
        self._connection: Connection | None = None
        self._opened: tuple[int, int] | None = None  # the file behind it
        self._seen: object = None  # what `_version` was when `_digest` was taken
        self._digest = ""

    @property
    def engine(self) -> Engine:
        """Where connections to the same database come from."""
        return self._engine

    def digest(self) -> str:
        """Return the digest of the present content; reads the rows only after a commit.

        Raises `TableUnreachableError`, or `ConfigurationError` if the table is of another form.
        """
        with self._transaction() as connection:
            if self._seen is None or self._version(connection) != self._seen:
                self._read(connection)
            return self._digest

    def read(self) -> PolicyTable:
        """Return the present content. Raises as `digest` does."""
        with self._transaction() as connection:
            return self._read(connection)

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._seen = None, None
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Open a transaction that sees one state of the database, on the connection that stays."""
        try:
            # A connection to a SQLite file that was replaced goes on reading the old one.
            place = _file(self._engine.url)
            if self._connection is not None and place != self._opened:
                self.close()
            if self._connection is None:
                self._connection, self._opened = self._engine.connect(), place
            with _answered_in_time(self._connection), self._connection.begin():
                yield self._connection
        except (SQLAlchemyError, OSError) as error:
            self.close()
            raise TableUnreachableError(_reason(error)) from error
        except BaseException:
            self.close()
            raise

    def _read(self, connection: Connection) -> PolicyTable:
        version = self._version(connection)
        names = self._value_columns(connection)
        source = table(
            self._table,
            *(column(name) for name in ("id", "ptype", *names)),
            schema=self._schema or None,
        )
        query = select(*source.c).order_by(source.c.id).limit(ROWS_MAX + 1)
        # In portions: a driver that makes 100,000 rows at once holds up every request meanwhile.
        found = connection.execute(query, execution_options={"yield_per": _PORTION_ROWS})
        rows = tuple(_checked(self._name, found))
        digest = hashlib.sha256()
        for row in rows:
            digest.update(repr(row).encode())
        self._seen, self._digest = version, digest.hexdigest()
        return PolicyTable(name=self._name, digest=self._digest, rows=rows)

    def _version(self, connection: Connection) -> object:
        """Return something that differs whenever the content does.

        SQLite counts, for this connection, the commits of all others. PostgreSQL has nothing cheap
        that shows an update in place: it digests the rows itself, and only the digest travels.
        """
        if connection.dialect.name == "sqlite":
            return connection.execute(text("PRAGMA data_version")).scalar_one()
        name = connection.dialect.identifier_preparer.format_table(
            table(self._table, schema=self._schema or None)
        )
        digest = (
            "encode(sha256(convert_to(string_agg(t::text, E'\\n' ORDER BY id), 'UTF8')), 'hex')"
        )
        return connection.execute(text(f"SELECT count(*), {digest} FROM {name} AS t")).one()  # noqa: S608

    def _value_columns(self, connection: Connection) -> list[str]:
        """Return v0, v1, ... as far as the table has them."""
        try:
            found = inspect(connection).get_columns(self._table, schema=self._schema or None)
        except NoSuchTableError as error:
            raise self._malformed("there is no such table") from error
        names = {str(one["name"]) for one in found}
        values = [name for name in names if _VALUE_COLUMN.fullmatch(name)]
        wanted = [f"v{number}" for number in range(max(len(values), 1))]
        for name in ("id", "ptype", *wanted):
            if name not in names:
                raise self._malformed(f"has no column `{name}`")
        # SECURITY: a column such as `is_deleted` or `tenant` says which rows count.
        for name in sorted(names - {"id", "ptype", *wanted}):
            message = f"column `{name}` has no meaning here; make a view of id, ptype, v0, ..."
            raise self._malformed(message)
        if len(wanted) > COLUMNS_MAX:
            raise self._malformed(f"more than {COLUMNS_MAX} columns")
        return wanted

    def _malformed(self, message: str) -> ConfigurationError:
        return ConfigurationError([Fault(file=self._name, message=message)])


def _checked(name: str, found: Iterable[Iterable[object]]) -> Iterator[TableRow]:
    """Yield the rows as types; what a policy cannot be made of is a fault at its row."""
    faults: list[Fault] = []
    last = 0
    for row_id, kind, *values in found:
        if type(row_id) is not int or row_id <= last:
            message = f"ids are unique whole numbers from 1; found `{str(row_id)[:40]}`"
            raise ConfigurationError([Fault(file=name, message=message)])
        last = row_id
        texts = [value for value in (kind, *values) if isinstance(value, str | None)]
        if len(texts) == 1 + len(values):
            yield TableRow(row_id, texts[0], tuple(texts[1:]))
        else:
            faults.append(Fault(file=name, line=row_id, message="a value that is not text"))
    if faults:
        raise ConfigurationError(faults)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        # SECURITY: not quoted, a malformed URL may still hold a password.
        raise TableUnreachableError("the variable does not hold a database URL") from error
    if parsed.drivername in _POSTGRESQL:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in _SQLITE:
        raise TableUnreachableError(f"a database of kind `{parsed.drivername}` is not supported")
    if parsed.query or not Path(parsed.database or "").is_absolute():
        raise TableUnreachableError("write `sqlite:////absolute/path.db`")
    return parsed


def _engine(url: URL) -> Engine:
    if url.drivername in _SQLITE:
        # Only this spelling opens a file without creating or changing it.
        place = f"file:{quote(str(url.database))}?mode=ro"
        return create_engine(
            url,
            poolclass=NullPool,
            creator=lambda: sqlite3.connect(
                place, uri=True, timeout=_BUSY_TIMEOUT_S, check_same_thread=False
            ),
        )
    try:
        return create_engine(
            url, poolclass=NullPool, connect_args=_CONNECTION, isolation_level="REPEATABLE READ"
        )
    except ImportError as error:
        message = "PostgreSQL needs the extra: pip install 'authz-server[postgres]'"
        raise TableUnreachableError(message) from error


@contextmanager
def _answered_in_time(connection: Connection) -> Iterator[None]:
    """Cut the connection if what is done inside takes longer than `_ANSWER_TIMEOUT_S`.

    `statement_timeout` is kept by the server, and one that hangs keeps no time.
    """
    if connection.dialect.name == "sqlite":
        yield
        return
    number = cast("psycopg.Connection[object]", connection.connection.driver_connection).fileno()
    with socket.socket(fileno=os.dup(number)) as line:

        def cut() -> None:
            with suppress(OSError):  # answered just now
                line.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(_ANSWER_TIMEOUT_S, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def _file(url: URL) -> tuple[int, int] | None:
    """Return what stays the same as long as the SQLite file is. Raises `OSError`."""
    if url.drivername not in _SQLITE:
        return None
    status = Path(str(url.database)).stat()
    return status.st_dev, status.st_ino


def _reason(error: Exception) -> str:
    """Return the first line of what the driver said; never the statement or its values."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return lines[0][:_REASON_CHARS_MAX]
