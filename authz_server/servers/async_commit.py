"""Ledger mode `async`: the answer leaves first and the record follows, from a bounded queue.

A server that is killed loses what waits. A ledger that fails loses nothing: the queue waits for it,
and when it is full every further call is denied. Escalations do not wait in the queue: whether an
approval lets one pass is known only once it is recorded.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable
from typing import Final

from authz_server.core.decision import Decision
from authz_server.core.errors import LedgerError
from authz_server.ledger.record import Record, RecordFault
from authz_server.servers.group_commit import (
    BATCH_RECORDS_MAX,
    CommitObserver,
    Committer,
    Recorder,
)

_RETRY_S: Final = 0.25  # after a failure; as long as one call of a durable server would wait
_DRAIN_S: Final = 10.0  # how long a stopping server tries to write what waits


class AsyncCommit:
    """Answer allows and denials at once, and commit them from a thread.

    `record` is used from one event loop. INVARIANT: a record that was accepted is committed, in the
    order of acceptance, unless the process dies or the ledger fails for the whole of `close`.
    """

    def __init__(
        self,
        committer: Committer,
        *,
        escalations: Recorder,
        records_max: int,
        observe: CommitObserver,
    ) -> None:
        self._committer = committer
        self._escalations = escalations
        self._records_max = records_max
        self._observe = observe
        self._queue: deque[Record] = deque()
        self._wake = threading.Event()
        self._closing = False
        self.overflowed = 0  # calls that were refused because the queue was full
        self.lost = 0  # answered decisions that were never recorded
        self._thread = threading.Thread(target=self._work, name="ledger-async", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many answered decisions are not recorded yet."""
        return len(self._queue)

    def record(self, record: Record) -> Awaitable[Decision]:
        """Return the decision at once, or `LedgerError` when the queue is full."""
        if record.decision.awaits_approval:
            return self._escalations.record(record)
        future: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        if self._closing:
            future.set_exception(LedgerError("ledger is closed"))
        elif len(self._queue) >= self._records_max:
            self.overflowed += 1
            future.set_exception(LedgerError("queue of records is full"))
        else:
            self._queue.append(record)
            self._wake.set()
            future.set_result(record.decision)
        return future

    def close(self) -> None:
        """Write what waits, for as long as that takes but not for ever, and end."""
        self._closing = True
        self._wake.set()
        self._thread.join(_DRAIN_S)
        self.lost += len(self._queue)

    def _work(self) -> None:
        while not (self._closing and not self._queue):
            self._wake.wait()
            self._wake.clear()
            while self._queue:
                if not self._commit_next():
                    time.sleep(_RETRY_S)

    def _commit_next(self) -> bool:
        """Commit the oldest records; False to try again later."""
        batch = [self._queue[number] for number in range(min(len(self._queue), BATCH_RECORDS_MAX))]
        try:
            self._commit(batch)
        except LedgerError:
            return False
        except RecordFault:
            return self._commit_singly(batch)
        self._forget(len(batch))
        return True

    def _commit_singly(self, batch: list[Record]) -> bool:
        """Commit without the record that cannot be stored; its decision is lost, and counted."""
        for record in batch:
            try:
                self._commit([record])
            except LedgerError:
                return False
            except RecordFault:
                self.lost += 1
            self._forget(1)
        return True

    def _commit(self, batch: list[Record]) -> None:
        started = time.perf_counter()
        try:
            self._committer.commit(batch)
        except LedgerError as error:
            self._observe(len(batch), time.perf_counter() - started, error)
            raise
        self._observe(len(batch), time.perf_counter() - started, None)

    def _forget(self, records: int) -> None:
        for _ in range(records):
            self._queue.popleft()
