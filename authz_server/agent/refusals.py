"""Denials and escalations as exceptions, and the wait for a person's answer.

The httpx flows raise `Denied` and `Escalated` by themselves; around calls of MCP and gRPC clients,
which have exceptions of their own, `typed_refusals` translates.

SECURITY: these are messages, not proofs. A service behind the decision point can write the same
document; whoever acts on one must not grant anything by it.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from authz_server.agent.answers import AccessRequest, Answer, answer_in_error
from authz_server.core.errors import AuthzError, InvalidValueError

_Result = TypeVar("_Result")


class Refused(AuthzError):
    """A call that the decision point did not allow: `Denied` or `Escalated`.

    `reason` is a reason code (docs/reason-codes.md), `decision_id` finds the record.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.reason}: {answer.detail} (decision {answer.decision_id})")
        self.reason = answer.reason
        self.detail = answer.detail
        self.decision_id = answer.decision_id
        self.status = answer.status


class Denied(Refused):
    """The answer is no. Repeating the call brings the same answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for a person, and how often to ask: from `first_s` up to every `longest_s`.

    People take minutes; each question is a recorded decision.
    """

    timeout_s: float = 900.0
    first_s: float = 2.0
    longest_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.longest_s or self.timeout_s <= 0:
            raise InvalidValueError("patience needs 0 < first_s <= longest_s and a timeout")


_PATIENCE: Final = Patience()
_GROWTH: Final = 1.5


class Escalated(Refused):
    """A person has to agree first. `access_request` is None where the server gave no ticket."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.access_request: AccessRequest | None = answer.access_request

    def wait_for_approval(
        self, repeat: Callable[[], _Result], patience: Patience = _PATIENCE
    ) -> _Result:
        """Return what `repeat`, the very same call again, returns once it is approved.

        Raises the last `Escalated` when nobody agreed: after `patience.timeout_s`, at the deadline
        of the ticket, at a rejection, or when the server asks a new question instead. Raises
        whatever else `repeat` raises, `Denied` among it, at once.
        """
        last = self
        for delay_s in last._delays(patience):
            time.sleep(delay_s)
            try:
                with typed_refusals():
                    return repeat()
            except Escalated as again:
                last = last._followed_by(again)
        raise last

    async def wait_for_approval_async(
        self, repeat: Callable[[], Awaitable[_Result]], patience: Patience = _PATIENCE
    ) -> _Result:
        """Do as `wait_for_approval`, in an asyncio task."""
        last = self
        for delay_s in last._delays(patience):
            await asyncio.sleep(delay_s)
            try:
                with typed_refusals():
                    return await repeat()
            except Escalated as again:
                last = last._followed_by(again)
        raise last

    def _delays(self, patience: Patience) -> Iterator[float]:
        """Yield how long to sleep before each repetition; none that would end too late."""
        ticket = self.access_request
        if ticket is None or ticket.status == "rejected":
            return
        left_s = patience.timeout_s
        if ticket.expires_at is not None:
            # Asking after the deadline would put the question to people once more.
            left_s = min(left_s, (ticket.expires_at - datetime.now(UTC)).total_seconds())
        end, delay_s = time.monotonic() + left_s, patience.first_s
        while time.monotonic() + delay_s < end:
            # Spread out: agents that were escalated together must not come back together.
            yield delay_s * random.uniform(0.8, 1.0)  # noqa: S311
            delay_s = min(delay_s * _GROWTH, patience.longest_s)

    def _followed_by(self, again: "Escalated") -> "Escalated":
        """Return `again` while it is the same open question; raise it otherwise."""
        ticket, renewed = self.access_request, again.access_request
        if ticket is None or renewed is None or renewed.id != ticket.id:
            raise again
        if renewed.status == "rejected":
            raise again
        return again


def refusal(answer: Answer) -> Refused:
    """Return the exception for `answer`."""
    return Escalated(answer) if answer.verdict == "escalate" else Denied(answer)


@contextmanager
def typed_refusals() -> Iterator[None]:
    """Raise `Denied` or `Escalated` in place of the client library's own exception for it.

    Anything else passes unchanged. Works around `await` as well.
    """
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        answer = answer_in_error(error)
        if answer is None:
            raise
        raise refusal(answer) from error
