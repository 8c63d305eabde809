"""One Check call without its transport: CheckRequest bytes in, CheckResponse bytes out.

Every way through `CheckService.handle` ends in a well-formed answer. Nothing passes that was not
decided and recorded, in whatever mode its policy bundle is; all else is a denial with its reason.
Envoy would take a gRPC error for a denial too, but would not know why, and an empty answer for an
allow.
"""

import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from authz_server.core import pdp
from authz_server.core.decision import Decision, Verdict
from authz_server.core.enforcement import Mode
from authz_server.core.errors import LedgerError, Reason, RequestFault
from authz_server.core.snapshot import Snapshot
from authz_server.core.trace_context import trace_record
from authz_server.ledger.record import Record
from authz_server.servers import wire
from authz_server.servers.group_commit import Recorder

NO_REVISION = "none"  # revision of a denial that was made without a snapshot

Clock = Callable[[], datetime]  # aware, UTC

# (final decision, seconds from bytes to bytes): called when the answer is built.
CheckObserver = Callable[[Decision, float], None]

# (`Type at file:line < file:line`): called for an error of ours; carries no message, no values.
FaultObserver = Callable[[str], None]


# (issuer): called when a token names a key that this configured issuer is not known to have. Must
# not wait: it is on the way of the call.
KeyObserver = Callable[[str], None]


class SnapshotSource(Protocol):
    """Where the serving snapshot is found. `reload.holder.SnapshotHolder` is the implementation."""

    @property
    def current(self) -> Snapshot | None:
        """The snapshot to decide by, or None while there is none to trust."""


class CheckService:
    """Decides, records and answers one call at a time, on one event loop."""

    def __init__(  # noqa: PLR0913 -- what it decides by, and whom it tells
        self,
        *,
        snapshots: SnapshotSource,
        recorder: Recorder,
        clock: Clock,
        checked: CheckObserver,
        broke: FaultObserver,
        key_missing: KeyObserver = lambda _issuer: None,
    ) -> None:
        self._snapshots = snapshots
        self._recorder = recorder
        self._clock = clock
        self._checked = checked
        self._broke = broke
        self._key_missing = key_missing
        self.in_flight = 0

    async def handle(self, data: bytes) -> bytes:
        """Return the CheckResponse to the CheckRequest `data`; never raises an `Exception`.

        Whatever the bytes are, the decision is recorded before it is returned. Cancelling the call
        does not undo the record (see `GroupCommit`).
        """
        started = time.perf_counter()
        now = self._clock()
        decision_id = new_decision_id(now)
        self.in_flight += 1
        try:
            decision = decide(data, self._snapshots.current, now)
            if decision.missing_key_of is not None:
                self._key_missing(decision.missing_key_of)
            final = await self._settle(decision, decision_id, started)
            answer = wire.check_response(final, decision_id=decision_id)
        # The one place where an unforeseen error ends: as a denial with its own id, because the
        # failed decision may have been recorded under the first.
        except Exception as error:  # noqa: BLE001
            self._broke(describe(error))
            decision_id = new_decision_id(now)
            decision = denial(Reason.INTERNAL_ERROR, "the decision failed", now, NO_REVISION)
            final = await self._settle_failure(decision, decision_id, started)
            answer = wire.check_response(final, decision_id=decision_id)
        finally:
            self.in_flight -= 1
        self._checked(final, time.perf_counter() - started)
        return answer

    async def _settle_failure(
        self, decision: Decision, decision_id: str, started: float
    ) -> Decision:
        """Settle the denial of a failed decision; a recorder that is broken itself denies too."""
        try:
            return await self._settle(decision, decision_id, started)
        except Exception as error:  # noqa: BLE001
            self._broke(describe(error))
            return unrecorded(decision)

    async def _settle(self, decision: Decision, decision_id: str, started: float) -> Decision:
        """Return the final decision: the recorded one, or a denial because nothing is recorded."""
        duration_us = int((time.perf_counter() - started) * 1e6)
        record = Record(decision_id=decision_id, decision=decision, duration_us=duration_us)
        try:
            final = await self._recorder.record(record)
        except LedgerError as error:
            if error.__cause__ is not None:
                self._broke(describe(error.__cause__))
            # Also for what was denied anyway: operators must see that records are missing.
            return unrecorded(decision)
        # INVARIANT: recording lets nothing pass but an escalation that a person approved.
        lifted = final.passes and not decision.passes
        if lifted and not (decision.awaits_approval and final.verdict is Verdict.ALLOW):
            raise AssertionError("the ledger let pass what was refused")
        return final


def decide(data: bytes, snapshot: Snapshot | None, now: datetime) -> Decision:
    """Return the decision on the CheckRequest `data`, the same for a server and for `check`.

    A request that does not parse is a denial like any other.
    """
    if snapshot is None:
        return denial(Reason.NOT_READY, "no valid policy is loaded", now, NO_REVISION)
    try:
        request = wire.access_request(data)
    except RequestFault as fault:
        return denial(fault.reason, fault.detail, now, snapshot.revision)
    decision = pdp.decide(request, snapshot, now)
    trace = trace_record(request)
    return decision if trace is None else replace(decision, trace=trace)


def denial(reason: Reason, detail: str, now: datetime, revision: str) -> Decision:
    """Return the denial of a request of which nothing is established."""
    return Decision(verdict=Verdict.DENY, reason=reason, detail=detail, time=now, revision=revision)


def unrecorded(decision: Decision) -> Decision:
    """Return the denial that replaces `decision` when it cannot be recorded."""
    return replace(
        decision,
        verdict=Verdict.DENY,
        reason=Reason.LEDGER_UNAVAILABLE,
        detail="the decision could not be recorded",
        mode=Mode.ENFORCE,
        rules=(),
        obligation=None,
        approval=None,
        ticket=None,
    )


def new_decision_id(now: datetime) -> str:
    """Return a new UUIDv7 (RFC 9562 §5.7): sortable by `now` to the millisecond, 74 random bits."""
    unix_ms = int(now.timestamp() * 1000)
    bits = int.from_bytes(os.urandom(10))
    value = unix_ms << 80 | 0x7 << 76 | (bits >> 68) << 64 | 0b10 << 62 | bits & (1 << 62) - 1
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def describe(error: BaseException) -> str:
    """Return the type of `error` and where it was raised, innermost frame first.

    SECURITY: never its message. A `ValueError` quotes the value it dislikes, which may be a token.
    """
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(frames)]  # noqa: PTH119
    return f"{type(error).__qualname__} at {' < '.join(places[:8])}"
