"""Be told by PostgreSQL that a table of policy rows changed: LISTEN, in a thread of its own.

A notification only says *when* to look; the regular look at the digest finds whatever was not told.
"""

import threading
from collections.abc import Callable
from typing import Final, cast

import sqlalchemy
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

_WAIT_S: Final = 0.25  # how soon a listener that is told to stop does
_QUIET_S: Final = 0.05  # a burst is over when nothing more is told for this long
_BURST_MAX: Final = 1_000  # a burst that does not end is acted on nevertheless
_RETRY_S: Final = 5.0  # as often as the table itself is asked
_STOP_TIMEOUT_S: Final = 2.0  # a connection attempt in progress may take longer


def can_listen(engine: Engine) -> bool:
    """Tell whether the database of `engine` notifies."""
    return engine.dialect.name == "postgresql"


class TableListener:
    """Calls `changed` after every notification on one channel, and after each reconnection."""

    def __init__(self, engine: Engine, channel: str, changed: Callable[[], None]) -> None:
        self._engine = engine
        self._channel = channel
        self._changed = changed
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="table-listen", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Have the thread end. Does not wait: it may be the one that calls."""
        self._stopping.set()

    def join(self) -> None:
        """Wait for the end of the thread, not for ever."""
        self._thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        from psycopg import Error

        while not self._stopping.is_set():
            try:
                self._listen()
            except (SQLAlchemyError, Error, OSError):
                # Whoever asks the table notices too, and says so; here it only delays the news.
                self._stopping.wait(_RETRY_S)

    def _listen(self) -> None:
        from psycopg import Connection

        quote = self._engine.dialect.identifier_preparer.quote_identifier
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sqlalchemy.text(f"LISTEN {quote(self._channel)}"))
            driver = cast("Connection[object]", connection.connection.driver_connection)
            while not self._stopping.is_set():
                # First of all what was committed before this connection listened.
                self._changed()
                while not self._stopping.is_set():
                    if any(True for _ in driver.notifies(timeout=_WAIT_S, stop_after=1)):
                        break
                for _ in driver.notifies(timeout=_QUIET_S, stop_after=_BURST_MAX):
                    pass
