"""What httpx and httpx2 have in common: an auth flow that carries a delegation and reads refusals.

The two libraries are one design under two names, and each accepts only subclasses of its own
`Auth`. `httpx_auth` and `httpx2_auth` join this flow to it; importing this imports neither.
"""

from collections.abc import AsyncGenerator, Collection, Generator
from typing import Any

from authz_server.agent.answers import answer_in_response, may_hold_answer
from authz_server.agent.delegator import Delegator
from authz_server.agent.onward import HandOff, Onward
from authz_server.agent.received import DELEGATION_HEADERS, Delegation
from authz_server.agent.refusals import refusal


class DelegationFlow:
    """The flow for one client, or one request (`auth=`), synchronous and asynchronous.

    `delegator`, `hand_off` and `delegation` are those of `Onward`. `hosts` are the only hosts that
    are shown the delegation; None means every host this client is used for. Raises `Denied` and
    `Escalated` when the decision point says so.

    A redirect that the client follows takes the headers along, as it does with any but
    `Authorization`. They are worth nothing without the workload's key, but they name people.
    """

    def __init__(
        self,
        delegator: Delegator | None = None,
        hand_off: HandOff | None = None,
        *,
        delegation: Delegation | None = None,
        hosts: Collection[str] | None = None,
    ) -> None:
        self._onward = Onward(delegator, hand_off, delegation=delegation)
        self._hosts = None if hosts is None else frozenset(hosts)

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Send `request` once, with the delegation."""
        self._present(request)
        response = yield request
        if self.raises_for(response):
            response.read()
            _raise_refusal(response)

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """Send `request` once, with the delegation."""
        self._present(request)
        response = yield request
        if self.raises_for(response):
            await response.aread()
            _raise_refusal(response)

    def raises_for(self, response: Any) -> bool:
        """Tell whether `response` is to be read for a refusal."""
        return may_hold_answer(response)

    def _present(self, request: Any) -> None:
        if self._hosts is not None and request.url.host not in self._hosts:
            return
        delegation = self._onward.delegation()
        if delegation is None:
            return
        for name in DELEGATION_HEADERS:
            request.headers.pop(name, None)
        request.headers.update(delegation.headers)


def _raise_refusal(response: Any) -> None:
    answer = answer_in_response(response)
    if answer is not None:
        raise refusal(answer)
