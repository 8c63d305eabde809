"""Hand a part of one's authority to the next agent: mint one link of a delegation chain.

The link is signed offline with the delegator's own X509-SVID key. What the server would refuse is
refused here first, with a message for the developer instead of a reason code for a log.
"""

import base64
import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from cryptography.hazmat.primitives.serialization import Encoding

from authz_server.agent.signing import algorithm_for, sign
from authz_server.agent.svid import Svid, SvidSource
from authz_server.core import limits, strict_json
from authz_server.core.authorization_details import all_covered
from authz_server.core.claims import Claims
from authz_server.core.delegation_link import LINK_TYPE
from authz_server.core.errors import InvalidValueError, RequestFault
from authz_server.core.jose import CompactJws, encode_base64url
from authz_server.core.spiffe import SpiffeId

LIFETIME_S: Final = 300  # long enough for one piece of work, short enough to need no revocation


class Delegator:
    """Mints links in the name of the workload whose SVID `source` hands out.

    `clock` returns Unix seconds.
    """

    def __init__(self, source: SvidSource, *, clock: Callable[[], float] = time.time) -> None:
        self._source = source
        self._clock = clock

    def link(  # noqa: PLR0913 - one keyword for each thing that can be narrowed
        self,
        root: str,
        chain: Sequence[str] = (),
        *,
        to: SpiffeId,
        audience: Collection[str],
        scope: Collection[str],
        lifetime_s: int = LIFETIME_S,
        details: Sequence[Mapping[str, object]] | None = None,
        hops: int = 0,
    ) -> str:
        """Return the link that hands `scope` at `audience` on to `to`, to be appended to `chain`.

        `root` and `chain` are the received `Txn-Token` and `Delegation-Chain`, oldest first, byte
        for byte. `hops` is how many further hops `to` may add. `details` are RFC 9396
        `authorization_details`; None hands on what was received. The link ends after `lifetime_s`,
        or with the token before it, or with the signing SVID, whichever is first.

        Not checked: the received signatures; the server does that.

        Raises `InvalidValueError` when the received tokens cannot be read, were not made out to
        this workload, or do not hold what is to be handed on.
        """
        svid = self._source.svid()
        try:
            held = _Held.read(root, chain)
            held.check(svid.spiffe_id, to, audience=audience, scope=scope, hops=hops)
            payload = held.payload(svid, int(self._clock()), lifetime_s)
            if details is not None:
                payload["authorization_details"] = held.narrowed(details)
        except RequestFault as fault:
            raise InvalidValueError(f"received delegation: {fault.detail}") from fault
        payload |= {
            "may_act": {"sub": str(to)},
            "aud": sorted(set(audience)),
            "scope": " ".join(sorted(set(scope))),
            "dlg": hops,
        }
        token = sign(_header(svid), payload, svid.key)
        if len(token) > limits.TOKEN_BYTES_MAX:
            raise InvalidValueError("link is over 4096 bytes: hand on fewer scopes or details")
        return token


def _header(svid: Svid) -> Mapping[str, object]:
    # RFC 7515 §4.1.6: standard base64, leaf first.
    x5c = [base64.b64encode(c.public_bytes(Encoding.DER)).decode() for c in svid.certificates]
    return {"alg": algorithm_for(svid.key), "typ": LINK_TYPE, "x5c": x5c}


@dataclass(frozen=True, slots=True)
class _Held:
    """What the received tokens say this workload holds; read, not verified."""

    tokens: tuple[Claims, ...]  # root first
    last_digest: bytes

    @classmethod
    def read(cls, root: str, chain: Sequence[str]) -> Self:
        """Read the claims of every token. Raises `RequestFault`."""
        parsed = [CompactJws.parse(text) for text in (root, *chain)]
        return cls(tuple(Claims(jws.payload) for jws in parsed), parsed[-1].digest)

    def check(
        self,
        own_id: SpiffeId,
        to: SpiffeId,
        *,
        audience: Collection[str],
        scope: Collection[str],
        hops: int,
    ) -> None:
        """Check that `own_id` holds what it hands on."""
        actors = [token.child("may_act").spiffe_id("sub") for token in self.tokens[1:]]
        actors.insert(0, self.tokens[0].child("act").spiffe_id("sub"))
        last = self.tokens[-1]
        if actors[-1] != own_id:
            raise InvalidValueError(f"the last delegate is `{actors[-1]}`, this is `{own_id}`")
        if to in actors:
            raise InvalidValueError(f"`{to}` is an earlier actor of this chain")
        if not 0 <= hops <= last.hops() - 1:
            raise InvalidValueError(f"`hops` is {hops}, but only {last.hops()} are left")
        if not scope or not last.scope().issuperset(scope):
            raise InvalidValueError("scope is empty or exceeds the scope received")
        if not audience or (len(actors) > 1 and not last.audiences().issuperset(audience)):
            raise InvalidValueError("audience is empty or exceeds the audience received")

    def payload(self, svid: Svid, now: int, lifetime_s: int) -> dict[str, object]:
        """Return the claims that continue the chain, and its earliest end as `exp`."""
        bounds = (
            now + lifetime_s,
            self.tokens[-1].time("exp"),
            int(svid.leaf.not_valid_after_utc.timestamp()),
        )
        if min(bounds) <= now:
            raise InvalidValueError("lifetime, received delegation or SVID is at its end")
        return {
            "iss": str(svid.spiffe_id),
            "sub": self.tokens[0].text("sub"),
            "txn": self.tokens[0].text("txn"),
            "iat": now,
            "exp": min(bounds),
            "jti": secrets.token_urlsafe(16),
            "prh": encode_base64url(self.last_digest),
        }

    def narrowed(self, details: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
        """Return `details` for signing, once the received ones cover them."""
        wanted = [dict(entry) for entry in details]
        document = json.dumps({"authorization_details": wanted}).encode()
        value = strict_json.loads(
            document, depth_max=limits.TOKEN_JSON_DEPTH_MAX, members_max=limits.JSON_MEMBERS_MAX
        )
        entries = Claims({"": value}).child("").details()
        received = [found for token in self.tokens if (found := token.details()) is not None]
        if not entries or not received or not all_covered(entries, received[-1]):
            raise InvalidValueError("`details` exceed the authorization details received")
        return wanted
