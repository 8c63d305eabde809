"""Whether the ledger takes records: counted, shown in `/readyz`, logged when it changes."""

import time
from typing import Final, Protocol

from authz_server.core.errors import LedgerError
from authz_server.servers.event_log import EventLog
from authz_server.servers.metrics import Metrics
from authz_server.servers.readiness import Readiness

# Without calls nothing would prove that a failed ledger has recovered, and a server that is not
# ready gets none. So it is called ready again this long after the last failure, if the file is in
# order; the next call is the proof.
_RETRY_S: Final = 5.0


class Pingable(Protocol):
    """What can be asked whether it could be written."""

    def ping(self) -> None:
        """Raise `LedgerError` if not."""


class LedgerWatch:
    """Follows one ledger. `committed` is called from the event loop, `retry` from any thread."""

    def __init__(
        self, ledger: Pingable, *, metrics: Metrics, readiness: Readiness, log: EventLog
    ) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._readiness = readiness
        self._log = log
        self._failed_at: float | None = None

    def committed(self, records: int, seconds: float, error: LedgerError | None) -> None:
        """Take note of one transaction (a `group_commit.CommitObserver`)."""
        self._metrics.committed(records, seconds, error)
        if error is None:
            if self._failed_at is not None:
                self._failed_at = None
                self._readiness.ledger(None)
                self._log.info("ledger_recovered")
            return
        if self._failed_at is None:
            self._log.error("ledger_unavailable", why=str(error))
        self._failed_at = time.monotonic()
        self._readiness.ledger(error)

    def retry(self) -> None:
        """Ask a failed ledger whether it is worth another call."""
        failed_at = self._failed_at
        if failed_at is None or time.monotonic() - failed_at < _RETRY_S:
            return
        try:
            self._ledger.ping()
        except LedgerError as error:
            self._readiness.ledger(error)
        else:
            self._readiness.ledger(None)
