"""Revocations as a running server knows them: read at every change, never older than a bound.

A thread asks the ledger for the number of the last change and reads everything when it differs.
PostgreSQL wakes it at a change; a SQLite file is asked often instead. What was read last has an end
in the snapshot itself, so that it is denied by when this thread hears nothing more, be it that the
ledger is away or that the thread hangs or is gone.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from sqlalchemy import Connection, select, text

from authz_server.core.errors import LedgerError
from authz_server.core.revocation import RevocationKind
from authz_server.core.snapshot import Revocations, Snapshot
from authz_server.ledger.database import (
    Access,
    Store,
    converted,
    file_identity,
    is_shared,
    open_shared_engine,
    sqlite_path,
)
from authz_server.ledger.record import unix_us
from authz_server.ledger.revocations import CHANNEL
from authz_server.ledger.schema import check, revocation_state, revocations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection as Driver

FILE_POLL_S: Final = 0.1  # one indexed row: 0.1 ms of one core
# NOTIFY comes within milliseconds; this is for what it did not tell (a pooler between, a lost
# connection), and keeps the promise of two seconds.
SHARED_POLL_S: Final = 0.5
RETRY_S: Final = 0.5
_STATEMENT_MS: Final = 5_000  # 100,000 rows take about a second
_STOP_TIMEOUT_S: Final = 2.0
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
_UNHEARD: Final = Revocations(good_until=_NEVER)  # before the first answer nothing is allowed

Clock = Callable[[], datetime]


class _Row(NamedTuple):
    """One revocation that was in force when it was read."""

    kind: str
    value: str
    expires_at_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    """What the ledger said, and when."""

    revision: int
    rows: tuple[_Row, ...]
    at: datetime


class RevocationFeed:
    """Follows the revocations of one ledger, and is an input of every snapshot.

    `changed` is called from the feed's thread after each change, `report` with what an operator
    should know.
    """

    def __init__(
        self,
        url: str,
        *,
        max_stale_s: float,
        clock: Clock,
        changed: Callable[[], None],
        report: Callable[[str], None],
    ) -> None:
        self._url = url
        self._max_stale = timedelta(seconds=max_stale_s)
        self._clock = clock
        self._changed = changed
        self._report = report
        self._heard: _Heard | None = None  # over the present connection
        self._next_end_us: int | None = None
        self._serving = _UNHEARD
        self._fault = ""
        self._first = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="revocations", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for it a moment."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_TIMEOUT_S)

    def wait_for_first(self, timeout_s: float) -> None:
        """Return once the ledger was asked for the first time, whatever it said; or later."""
        self._first.wait(timeout_s)

    def apply(self, snapshot: Snapshot) -> Snapshot:
        """Return `snapshot` with the revocations in it, under a revision that names them."""
        serving = self._serving
        revision = snapshot.revision
        if serving.count:
            revision = f"{revision}.{_digest(serving)[:16]}"
        return replace(snapshot, revocations=serving, revision=revision)

    def why_not(self, snapshot: Snapshot | None) -> str | None:
        """Return why `snapshot` cannot be decided by for its revocations, or None if it can."""
        good_until = snapshot.revocations.good_until if snapshot is not None else None
        if good_until is None or self._clock() < good_until:
            return None
        return "revocations are unknown or too old" + (f": {self._fault}" if self._fault else "")

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except LedgerError as error:
                self._failed(str(error))
            # A defect must not end the thread unseen; what was read last ends by itself.
            except Exception as error:  # noqa: BLE001
                self._failed(f"internal error `{type(error).__name__}`")
            self._first.set()
            self._stopping.wait(RETRY_S)

    def _failed(self, fault: str) -> None:
        if fault != self._fault:
            self._fault = fault
            self._report(f"revocations are not read: {fault}")

    def _follow(self) -> None:
        """Ask over one connection until told to stop. Raises `LedgerError`."""
        # What is there now may be another ledger, at the same number by chance.
        self._heard = None
        if is_shared(self._url):
            self._follow_shared()
        else:
            self._follow_file()

    def _follow_file(self) -> None:
        path = sqlite_path(self._url)
        store = Store.of_file(path, Access.READ)
        with converted("read the revocations"):
            # Taken first: a file put in its place while it is being opened is another one.
            identity = file_identity(path)
            with store.engine.connect() as connection:
                with connection.begin():
                    check(connection)
                while not self._stopping.is_set() and file_identity(path) == identity:
                    with connection.begin():
                        self._ask(connection)
                    self._stopping.wait(FILE_POLL_S)

    def _follow_shared(self) -> None:
        engine = open_shared_engine(self._url, statement_timeout_ms=_STATEMENT_MS)
        with (
            _driver_converted(),
            converted("read the revocations"),
            engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        ):
            check(connection)
            connection.execute(text(f"LISTEN {CHANNEL}"))
            driver = cast("Driver[object]", connection.connection.driver_connection)
            while not self._stopping.is_set():
                self._ask(connection)
                for _ in driver.notifies(timeout=SHARED_POLL_S, stop_after=1):
                    pass

    def _ask(self, connection: Connection) -> None:
        """Read everything again if something changed, ended, or was read too long ago."""
        now = self._clock()
        # The number first: rows that are newer than it are read again at the next look.
        revision = connection.execute(select(revocation_state.c.revision)).scalar_one_or_none()
        if revision is None:
            raise LedgerError("table `revocation_state` is empty")
        if self._is_due(int(revision), now):
            self._take(_Heard(revision=int(revision), rows=_rows(connection, now), at=now))
        self._first.set()
        self._fault = ""

    def _is_due(self, revision: int, now: datetime) -> bool:
        heard = self._heard
        if heard is None or heard.revision != revision:
            return True
        if self._next_end_us is not None and unix_us(now) >= self._next_end_us:
            return True
        # In time before the end of what is served, and again when the clock was put back.
        return not heard.at <= now < heard.at + self._max_stale / 2

    def _take(self, heard: _Heard) -> None:
        self._heard = heard
        ends = [row.expires_at_us for row in heard.rows if row.expires_at_us is not None]
        self._next_end_us = min(ends, default=None)
        self._serving = Revocations(
            **{kind.value: _values(heard.rows, kind) for kind in RevocationKind},
            revision=heard.revision,
            good_until=heard.at + self._max_stale,
        )
        self._changed()


def _rows(connection: Connection, now: datetime) -> tuple[_Row, ...]:
    columns = (revocations.c.kind, revocations.c.value, revocations.c.expires_at_us)
    expires = revocations.c.expires_at_us
    statement = select(*columns).where(
        revocations.c.removed_at_us.is_(None), expires.is_(None) | (expires > unix_us(now))
    )
    return tuple(_Row._make(row) for row in connection.execute(statement))


def _values(rows: Sequence[_Row], kind: RevocationKind) -> frozenset[str]:
    return frozenset(row.value for row in rows if row.kind == kind.value)


def _digest(serving: Revocations) -> str:
    content = [(kind.value, sorted(getattr(serving, kind.value))) for kind in RevocationKind]
    return hashlib.sha256(repr(content).encode()).hexdigest()


@contextmanager
def _driver_converted() -> "Iterator[None]":
    """Turn what psycopg raises outside of SQLAlchemy into a `LedgerError`."""
    from psycopg import Error

    try:
        yield
    except Error as error:
        raise LedgerError(f"cannot wait for revocations: {error}") from error
