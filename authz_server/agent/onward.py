"""What goes out with a call: the delegation being served, and one more link where it hands off."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from authz_server.agent.delegator import LIFETIME_S, Delegator
from authz_server.agent.received import Delegation, current
from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import SpiffeId


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOff:
    """What a call to another agent hands on; the arguments of `Delegator.link`.

    `to` is the SPIFFE ID of the agent that is called, `audience` and `scope` what it may then use.
    """

    to: str
    audience: Collection[str]
    scope: Collection[str]
    lifetime_s: int = LIFETIME_S
    details: Sequence[Mapping[str, object]] | None = None
    hops: int = 0


class Onward:
    """Supplies the delegation of each outgoing call.

    Without `hand_off` the received headers go on unchanged, which is right for calling a tool or a
    service; with one, `delegator` signs a link to the agent that is called. `delegation` is what to
    present instead of the request's own: the agent that starts a chain was given a root and serves
    no request.
    """

    def __init__(
        self,
        delegator: Delegator | None = None,
        hand_off: HandOff | None = None,
        *,
        delegation: Delegation | None = None,
    ) -> None:
        if (delegator is None) != (hand_off is None):
            raise InvalidValueError("a delegator and a hand-off come together")
        self._delegator = delegator
        self._hand_off = hand_off
        self._delegation = delegation

    def delegation(self) -> Delegation | None:
        """Return what to present now; None when there is no delegation to carry.

        Raises `InvalidValueError` where there is nothing to hand on, and as `Delegator.link` does.
        """
        held = self._delegation or current()
        if self._delegator is None or self._hand_off is None:
            return held
        if held is None:
            raise InvalidValueError("call hands off, but no delegation was received")
        what = self._hand_off
        link = self._delegator.link(
            held.root,
            held.links,
            to=SpiffeId.parse(what.to),
            audience=what.audience,
            scope=what.scope,
            lifetime_s=what.lifetime_s,
            details=what.details,
            hops=what.hops,
        )
        return held.with_link(link)
