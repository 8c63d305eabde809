"""The database tables that policy bundles take their rows from: which are in use, read and watched.

A table that cannot be reached is a fault of its bundle like any other: nothing is replaced, and the
last good snapshot serves on.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from authz_server.core.errors import ConfigurationError, Fault
from authz_server.policy.manifest import RowSource
from authz_server.policy.table import PolicyTable
from authz_server.reload.row_table import RowTable, TableUnreachableError
from authz_server.reload.table_listener import TableListener, can_listen

_UNREACHABLE: Final = ""  # stands where the digest would; no digest is empty


class PolicyTables:
    """Opens each table once, at the URL that the environment has for it."""

    def __init__(
        self, environ: Mapping[str, str], *, changed: Callable[[], None] | None = None
    ) -> None:
        """Have `changed` called, from other threads, when a database tells of a change.

        Without it no database is asked to.
        """
        self._environ = environ
        self._changed = changed
        self._tables: dict[RowSource, RowTable] = {}
        self._listeners: dict[RowSource, TableListener] = {}
        self._digests: dict[RowSource, str] = {}
        self._used: set[RowSource] = set()

    def digest(self, source: RowSource, place: str) -> str:
        """Return the digest of the present rows. Raises as `read` does."""
        with self._table(source, place) as table:
            self._digests[source] = digest = table.digest()
            return digest

    def read(self, source: RowSource, place: str) -> PolicyTable:
        """Return the present rows.

        Raises `ConfigurationError`: at `place`, the `bundle.yaml` that names the table, if it
        cannot be reached; at the table or its row if that is malformed.
        """
        with self._table(source, place) as table:
            found = table.read()
            self._digests[source] = found.digest
            return found

    def poll(self) -> tuple[tuple[str, str], ...]:
        """Ask every table in use for its digest and return `seen`. Never raises."""
        for source in tuple(self._digests):
            try:
                self.digest(source, source.table)
            except ConfigurationError:
                continue  # `_table` took note of it; the load that follows reports it
        self._used.clear()
        return self.seen

    @property
    def seen(self) -> tuple[tuple[str, str], ...]:
        """What each table in use held when it was last asked: equal values, equal rows."""
        return tuple(sorted((repr(source), digest) for source, digest in self._digests.items()))

    def turn(self) -> None:
        """End a load: close the tables that no bundle of it names."""
        for source in self._digests.keys() - self._used:
            self._close(source)
        self._used = set()

    def close(self) -> None:
        """Close every connection and wait for the threads."""
        listeners = tuple(self._listeners.values())
        for source in tuple(self._digests):
            self._close(source)
        for listener in listeners:
            listener.join()

    @contextmanager
    def _table(self, source: RowSource, place: str) -> Iterator[RowTable]:
        self._used.add(source)
        try:
            yield self._open(source)
        except TableUnreachableError as error:
            self._digests[source] = _UNREACHABLE
            message = f"table `{source.table}` cannot be read: {error}"
            raise ConfigurationError([Fault(file=place, message=message)]) from error
        except ConfigurationError as error:
            self._digests[source] = str(error)
            raise

    def _open(self, source: RowSource) -> RowTable:
        found = self._tables.get(source)
        if found is not None:
            return found
        url = self._environ.get(source.url_env)
        if not url:
            raise TableUnreachableError(f"environment variable `{source.url_env}` is not set")
        table = self._tables[source] = RowTable(url, source.table)
        if self._changed is not None and can_listen(table.engine):
            listener = TableListener(table.engine, source.channel, self._changed)
            self._listeners[source] = listener
            listener.start()
        return table

    def _close(self, source: RowSource) -> None:
        del self._digests[source]
        if (listener := self._listeners.pop(source, None)) is not None:
            listener.stop()
        if (table := self._tables.pop(source, None)) is not None:
            table.close()
