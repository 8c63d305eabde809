"""Escalations of a server whose approvals are in a shared ledger: settled there, then recorded.

The shared ledger is asked from a thread, and for a bounded time: no other call waits for it. If it
does not answer, the escalation stays one, without a ticket, and nothing can let it pass.
"""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

from authz_server.core.decision import Decision
from authz_server.core.errors import LedgerError
from authz_server.ledger.record import Record
from authz_server.servers.daemon_pool import DaemonPool
from authz_server.servers.group_commit import Recorder

_THREADS: Final = 4  # as many as `SharedApprovals` keeps connections
UNREACHABLE: Final = "approvals cannot be reached now; repeat the request later"


class Settler(Protocol):
    """What settles an escalation. `ledger.shared_approvals.SharedApprovals` is one."""

    @property
    def timeout_s(self) -> float:
        """How long `settle` may take to be worth waiting for."""

    def settle(self, record: Record, *, deadline: float) -> Decision:
        """Return the settled decision by `deadline` (`time.monotonic`), or raise `LedgerError`."""


class SharedEscalations:
    """A recorder before another: settles what is escalated, and records everything there.

    INVARIANT: what a call began is finished and recorded even if the call is cancelled: an approval
    may have been spent on it.
    """

    def __init__(self, settler: Settler, *, recorder: Recorder) -> None:
        self._settler = settler
        self._recorder = recorder
        self._threads: DaemonPool[Decision] = DaemonPool(_THREADS, name="approvals")
        self._tasks: set[asyncio.Task[Decision]] = set()
        self.unreachable = 0  # escalations that could not be settled

    def record(self, record: Record) -> Awaitable[Decision]:
        """Return the final decision once it is recorded; raises `LedgerError`."""
        if not record.decision.awaits_approval:
            return self._recorder.record(record)
        task = asyncio.get_running_loop().create_task(self._settle_and_record(record))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return asyncio.shield(task)

    async def _settle_and_record(self, record: Record) -> Decision:
        return await self._recorder.record(replace(record, decision=await self._settled(record)))

    async def _settled(self, record: Record) -> Decision:
        timeout_s = self._settler.timeout_s
        settle = partial(self._settler.settle, record, deadline=time.monotonic() + timeout_s)
        asked = self._threads.run(settle)
        try:
            # What no thread has begun by then is cancelled; what hangs in a dead database goes on
            # there, and finds that its deadline has passed.
            return await asyncio.wait_for(asked, timeout_s)
        except (LedgerError, TimeoutError):
            self.unreachable += 1
            return replace(record.decision, detail=UNREACHABLE)
