"""Decisions on their way to a telemetry system: taken off the path of calls, dropped when it lags.

A decision is handed over after it was recorded and before it is answered, through a bounded queue
that never waits. The ledger is the record; what is lost here is lost to dashboards.
"""

import queue
import threading
from dataclasses import replace
from typing import Final, Protocol

from authz_server.core.decision import Decision
from authz_server.core.errors import LedgerError
from authz_server.ledger.record import Record
from authz_server.servers.check_service import unrecorded
from authz_server.servers.group_commit import Recorder

QUEUE_RECORDS_MAX: Final = 4096  # some seconds of load at 5 kB each
_JOIN_S: Final = 10.0


class Exporter(Protocol):
    """What knows the protocol. `servers.otlp.OtlpExporter` is the implementation."""

    def export(self, record: Record) -> None:
        """Take one decision. Called from one thread; may block; never raises."""

    def close(self) -> None:
        """Send what waits, within seconds."""


class Telemetry:
    """Hands decisions to an exporter in a thread of its own. `dropped` found the queue full."""

    def __init__(self, exporter: Exporter, *, records_max: int = QUEUE_RECORDS_MAX) -> None:
        self.dropped = 0
        self._exporter = exporter
        self._queue: queue.Queue[Record | None] = queue.Queue(records_max)
        self._thread = threading.Thread(target=self._work, name="telemetry", daemon=True)
        self._thread.start()

    def offer(self, record: Record) -> None:
        """Take `record`, or drop it. Called from the event loop."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Send what waits, within seconds, and end."""
        try:
            self._queue.put(None, timeout=_JOIN_S)
        except queue.Full:
            return
        self._thread.join(_JOIN_S)

    def _work(self) -> None:
        while (record := self._queue.get()) is not None:
            self._exporter.export(record)
        self._exporter.close()


class ReportingRecorder:
    """Records as another recorder does, and tells of the outcome (a `group_commit.Recorder`)."""

    def __init__(self, recorder: Recorder, telemetry: Telemetry) -> None:
        self._recorder = recorder
        self._telemetry = telemetry

    async def record(self, record: Record) -> Decision:
        """Return the final decision once it is durable; raises `LedgerError`."""
        try:
            final = await self._recorder.record(record)
        except LedgerError:
            self._telemetry.offer(replace(record, decision=unrecorded(record.decision)))
            raise
        self._telemetry.offer(replace(record, decision=final))
        return final
