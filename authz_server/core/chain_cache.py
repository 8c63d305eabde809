"""Remember verified chains: a chain seen before costs a look-up instead of signatures.

An agent presents the same bytes with each call it makes, so most chains are warm. Only proofs are
kept, never denials: a key that arrives later must be able to heal a chain.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from authz_server.core import delegation, limits
from authz_server.core.chain import DelegationPolicy, PresentedChain, VerifiedChain
from authz_server.core.spiffe import TrustDomain
from authz_server.core.trust import TrustMaterial

# SECURITY: all that a verdict of `delegation.verify` depends on besides the time. A new trust
# revision, or a stricter policy, never meets a proof made under the old one.
_Key = tuple[bytes, str, DelegationPolicy, TrustDomain]
# Measured: 2.1 KiB a grant, without its scope, audience and details; at most 232 bytes for each of
# their values. Token length alone would undercount a token full of `{}` by a factor of 28.
_GRANT_BYTES: Final = 2304
_VALUE_BYTES: Final = 256


class ChainCache:
    """A bounded, thread-safe, least-recently-used map from exact token bytes to verified chains."""

    def __init__(
        self,
        entries_max: int = limits.CHAIN_CACHE_ENTRIES_MAX,
        bytes_max: int = limits.CHAIN_CACHE_BYTES_MAX,
    ) -> None:
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._chains: OrderedDict[_Key, tuple[VerifiedChain, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._chains)

    @property
    def size_bytes(self) -> int:
        """What the entries occupy, estimated from above."""
        return self._bytes

    def verify(
        self,
        presented: PresentedChain,
        *,
        trust: TrustMaterial,
        policy: DelegationPolicy,
        trust_domain: TrustDomain,
        now: datetime,
    ) -> VerifiedChain:
        """Do what `delegation.verify` does, from memory where these bytes were proved before.

        Raises `RequestFault` as `delegation.verify` does.
        """
        key = (_digest(presented), trust.revision, policy, trust_domain)
        with self._lock:
            found = self._chains.get(key)
            if found is not None:
                self._chains.move_to_end(key)
        if found is not None:
            delegation.check_times(found[0], policy, now)
            return found[0]
        chain = delegation.verify(
            presented, trust=trust, policy=policy, trust_domain=trust_domain, now=now
        )
        self._keep(key, chain, _cost(chain))
        return chain

    def _keep(self, key: _Key, chain: VerifiedChain, cost: int) -> None:
        with self._lock:
            if key in self._chains:  # another thread proved the same chain meanwhile
                return
            self._chains[key] = (chain, cost)
            self._bytes += cost
            while len(self._chains) > self._entries_max or self._bytes > self._bytes_max:
                _, (_, freed) = self._chains.popitem(last=False)
                self._bytes -= freed


def _digest(presented: PresentedChain) -> bytes:
    # SECURITY: each token is hashed by itself, so no two ways to cut one text into tokens collide.
    digest = hashlib.sha256()
    for token in (presented.kind.value, presented.root, *presented.links):
        digest.update(len(token).to_bytes(4, "big"))
        digest.update(token.encode("utf-8", "surrogatepass"))
    return digest.digest()


def _cost(chain: VerifiedChain) -> int:
    """Estimate from above the bytes that `chain` occupies."""
    values = sum(
        len(grant.scope) + len(grant.audience) + _values(grant.details) for grant in chain.grants
    )
    return _GRANT_BYTES * len(chain.grants) + _VALUE_BYTES * values


def _values(value: object) -> int:
    """Count the JSON values in frozen `authorization_details`."""
    if isinstance(value, Mapping):
        return 1 + sum(_values(member) for member in value.values())
    if isinstance(value, tuple):
        return 1 + sum(_values(member) for member in value)
    return 1
