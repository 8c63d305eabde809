"""Group commit: the decisions of concurrent calls share one ledger transaction.

A transaction has a price of its own, several times that of a row, so concurrent checks wait for one
another instead of for the disk. It runs inline on the event loop: handing it to a thread costs more
CPU than it takes (measured: 128 µs a call inline, 168-227 µs with threads).

How long to wait is the question. grpc.aio brings calls in one by one, a few turns of the loop each,
so that a batch of one turn holds one record even with sixty-four calls in flight. Waiting a fixed
time would tax the lone call, which nobody joins. So whether to wait is learnt: a transaction that
more than one record came together for is followed by one that waits until the loop brings no new
record for `_PATIENCE_TURNS`, at most `_WAIT_S_MAX`; one that stayed alone, by one that does not.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from authz_server.core.decision import Decision
from authz_server.core.errors import LedgerError
from authz_server.ledger.record import Record

# One transaction stays short enough that a reload, a health check or a drain gets its turn.
BATCH_RECORDS_MAX: Final = 256

_PATIENCE_TURNS: Final = 6  # a call needs 4-5 turns from its arrival to its record
_WAIT_S_MAX: Final = 0.003  # a hundredth of what Envoy gives a check

# (records, seconds, error or None): called after every transaction, from the event loop.
CommitObserver = Callable[[int, float, LedgerError | None], None]

_Waiting = tuple[Record, asyncio.Future[Decision]]


class Committer(Protocol):
    """Where records become durable. `ledger.store.Ledger` is the implementation."""

    def commit(self, batch: Sequence[Record]) -> list[Decision]:
        """Write `batch` in one transaction; return the final decisions in its order.

        A final decision differs from the recorded one only for an escalation, which an approval
        may turn into an allow and which otherwise gets a ticket. Raises `LedgerError` and writes
        nothing on failure.
        """


class Recorder(Protocol):
    """What makes a decision durable before it is answered."""

    def record(self, record: Record) -> Awaitable[Decision]:
        """Return the final decision once it is durable; raises `LedgerError`."""


class Unrecorded:
    """The recorder of ledger mode `off`: nothing is kept, so nothing can be approved either."""

    async def record(self, record: Record) -> Decision:
        """Return the decision as it was made; an escalation stays one, without a ticket."""
        return record.decision


class GroupCommit:
    """Collect the records of one tick of the running loop and commit them together.

    Used from one event loop only. INVARIANT: a record that was accepted by `record` is committed
    or reported as failed even when the awaiting call is cancelled, because the batch, not the
    call, owns it. An enforcement point that gives up waiting cannot make a decision go unrecorded.
    """

    def __init__(self, committer: Committer, *, observe: CommitObserver) -> None:
        self._committer = committer
        self._observe = observe
        self._waiting: list[_Waiting] = []
        self._closed = False
        self._sociable = False  # whether the last batch had company
        self._turns_idle = 0
        self._seen = 0  # records waiting when the loop last came by
        self._deadline = 0.0

    def record(self, record: Record) -> Awaitable[Decision]:
        """Return the final decision once its batch is durable.

        Raises `LedgerError` and nothing else; its cause is set when this record alone is at fault.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Decision] = loop.create_future()
        if self._closed:
            future.set_exception(LedgerError("ledger is closed"))
            return future
        self._waiting.append((record, future))
        if len(self._waiting) == 1:
            self._turns_idle = self._seen = 0
            self._deadline = loop.time() + _WAIT_S_MAX
            loop.call_soon(self._turn)
        return future

    def close(self) -> None:
        """Commit what still waits and refuse every later record."""
        self._closed = True
        while self._waiting:
            self._commit_next()

    def _turn(self) -> None:
        """Commit, or wait for another turn of the loop."""
        loop, count = asyncio.get_running_loop(), len(self._waiting)
        if not count:  # `close` was faster
            return
        self._turns_idle = self._turns_idle + 1 if count == self._seen else 0
        self._seen = count
        patient = self._sociable and self._turns_idle < _PATIENCE_TURNS
        if patient and count < BATCH_RECORDS_MAX and loop.time() < self._deadline:
            loop.call_soon(self._turn)
            return
        self._sociable = count > 1
        self._commit_next()
        if self._waiting:
            loop.call_soon(self._turn)

    def _commit_next(self) -> None:
        batch = self._waiting[:BATCH_RECORDS_MAX]
        del self._waiting[:BATCH_RECORDS_MAX]
        try:
            decisions = self._commit([record for record, _ in batch])
        except LedgerError as error:
            _fail(batch, error)
        except Exception as error:  # noqa: BLE001
            self._isolate(batch, error)
        else:
            _resolve(batch, decisions)

    def _commit(self, records: list[Record]) -> list[Decision]:
        started = time.perf_counter()
        try:
            decisions = self._committer.commit(records)
        except LedgerError as error:
            self._observe(len(records), time.perf_counter() - started, error)
            raise
        self._observe(len(records), time.perf_counter() - started, None)
        return decisions

    def _isolate(self, batch: list[_Waiting], error: Exception) -> None:
        """Answer a batch that failed through no outage: one record of it cannot be written.

        SECURITY: that record must not deny the calls which happened to share its tick, or one
        caller could deny service to all others. An outage (`LedgerError`) fails for everyone:
        trying it record by record would only block longer.
        """
        if len(batch) == 1:
            _fail(batch, LedgerError("record cannot be written"), cause=error)
            return
        for waiting in batch:
            try:
                decisions = self._commit([waiting[0]])
            except LedgerError as outage:
                _fail([waiting], outage)
            except Exception as fault:  # noqa: BLE001
                self._isolate([waiting], fault)
            else:
                _resolve([waiting], decisions)


def _resolve(batch: list[_Waiting], decisions: list[Decision]) -> None:
    for (_, future), decision in zip(batch, decisions, strict=True):
        if not future.done():  # the call was cancelled; its record is written all the same
            future.set_result(decision)


def _fail(batch: list[_Waiting], error: LedgerError, cause: Exception | None = None) -> None:
    for _, future in batch:
        if not future.done():
            # Each waiter raises its own instance: a shared one would collect every traceback.
            fault = LedgerError(str(error))
            fault.__cause__ = cause
            future.set_exception(fault)
