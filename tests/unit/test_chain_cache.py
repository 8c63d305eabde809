"""The cache answers as the verifier does, forgets in bounds, and never keeps a denial."""

import threading
import tracemalloc
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from authz_server.core.chain import DelegationPolicy, PresentedChain, VerifiedChain
from authz_server.core.chain_cache import ChainCache
from authz_server.core.errors import Reason
from authz_server.core.spiffe import TrustDomain
from authz_server.core.trust import Issuer, TrustMaterial
from tests.harness import chains
from tests.harness.chains import DOMAIN, NOW, POLICY, STS, TRUST, reason_of, root_claims, root_token

ROOT, FIRST, SECOND_LINK = chains.three_hops()
CHAIN = PresentedChain(root=ROOT, links=(FIRST, SECOND_LINK))
NO_KEYS = replace(TRUST, issuers={STS: replace(TRUST.issuers[STS], keys={})})


def ask(
    cache: ChainCache,
    presented: PresentedChain = CHAIN,
    *,
    seconds: int = 0,
    trust: TrustMaterial = TRUST,
    policy: DelegationPolicy = POLICY,
    domain: TrustDomain = DOMAIN,
) -> VerifiedChain:
    now = NOW + timedelta(seconds=seconds)
    return cache.verify(presented, trust=trust, policy=policy, trust_domain=domain, now=now)


def test_a_chain_is_verified_once() -> None:
    cache = ChainCache()
    first = ask(cache)
    # Keys that would refuse it, under the same revision: the answer can only come from memory.
    assert ask(cache, trust=NO_KEYS) is first
    assert len(cache) == 1


def test_time_is_checked_again() -> None:
    cache = ChainCache()
    ask(cache)
    assert reason_of(lambda: ask(cache, seconds=270)) is Reason.EXPIRED
    assert reason_of(lambda: ask(cache, seconds=-31)) is Reason.NOT_YET_VALID
    assert ask(cache, seconds=269) is ask(cache)


def test_a_new_trust_revision_asks_the_keys_again() -> None:
    cache = ChainCache()
    ask(cache)
    revoked = replace(NO_KEYS, revision="r2")
    assert reason_of(lambda: ask(cache, trust=revoked)) is Reason.UNKNOWN_KEY


def test_another_policy_judges_again() -> None:
    cache = ChainCache()
    ask(cache)
    for policy, expected in (
        (replace(POLICY, links_max=1), Reason.CHAIN_TOO_DEEP),
        (replace(POLICY, actors_max=2), Reason.CHAIN_TOO_DEEP),
        (replace(POLICY, link_lifetime_s_max=10), Reason.LIFETIME_TOO_LONG),
        (replace(POLICY, delegator_trust_domains=frozenset()), Reason.UNKNOWN_TRUST_DOMAIN),
    ):
        assert reason_of(lambda policy=policy: ask(cache, policy=policy)) is expected  # type: ignore[misc]
    assert reason_of(lambda: ask(cache, domain=chains.PARTNER)) is Reason.WRONG_AUDIENCE


def test_a_denial_is_not_kept() -> None:
    cache = ChainCache()
    assert reason_of(lambda: ask(cache, trust=NO_KEYS)) is Reason.UNKNOWN_KEY
    assert len(cache) == 0
    ask(cache)  # a key that arrived meanwhile, even under the same revision


def test_other_bytes_are_another_chain() -> None:
    cache = ChainCache()
    ask(cache)
    # The same text cut differently, and tokens moved: no two of them may share an entry.
    for presented in (
        PresentedChain(root=f"{ROOT},{FIRST}", links=(SECOND_LINK,)),
        PresentedChain(root=ROOT, links=(f"{FIRST},{SECOND_LINK}",)),
        PresentedChain(root=ROOT + FIRST, links=(SECOND_LINK,)),
        PresentedChain(root=ROOT, links=(SECOND_LINK, FIRST)),
        PresentedChain(root=ROOT, links=(FIRST, SECOND_LINK, "")),
        PresentedChain(root=ROOT + "\udc80", links=(FIRST, SECOND_LINK)),
    ):
        assert reason_of(lambda presented=presented: ask(cache, presented)) is not None  # type: ignore[misc]
    shorter = PresentedChain(root=ROOT, links=(FIRST,))
    assert len(ask(cache, shorter).grants) == 2


def roots(count: int) -> list[PresentedChain]:
    tokens = (root_token(root_claims(jti=f"r{number}")) for number in range(count))
    return [PresentedChain(root=token, links=()) for token in tokens]


def remembered(cache: ChainCache, presented: PresentedChain) -> bool:
    return reason_of(lambda: ask(cache, presented, trust=NO_KEYS)) is None


def test_the_least_recently_used_entry_goes_first() -> None:
    cache = ChainCache(entries_max=3)
    a, b, c, d = roots(4)
    for presented in (a, b, c, a, d):
        ask(cache, presented)
    assert len(cache) == 3
    assert [remembered(cache, presented) for presented in (a, b, c, d)] == [True, False, True, True]


def test_bytes_are_bounded() -> None:
    presented = roots(20)
    cache = ChainCache(bytes_max=20_000)
    for chain in presented:
        ask(cache, chain)
    assert 2 <= len(cache) <= 8
    assert remembered(cache, presented[-1])
    assert not remembered(cache, presented[0])


@pytest.mark.parametrize(
    "details",
    [[], [{"type": "x"}], [{"type": "x", "o": [{}] * 700}], [{"type": "x", "o": [{"": 0}] * 300}]],
    ids=["none", "one", "empty objects", "small objects"],
)
def test_no_chain_holds_more_than_is_counted(details: list[object]) -> None:
    claims = root_claims(
        authorization_details=details or None, scope=" ".join(map(str, range(128)))
    )
    chain = PresentedChain(root=root_token(claims), links=())
    ask(ChainCache(), chain)  # whatever is made once
    cache = ChainCache(bytes_max=10**9)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        ask(cache, chain)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0 < held <= cache.size_bytes


def test_a_chain_larger_than_the_cache_is_still_answered() -> None:
    cache = ChainCache(bytes_max=10)
    assert len(ask(cache).grants) == 3
    assert len(cache) == 0


class _Meeting(dict[str, Issuer]):
    """Issuers that answer once two threads have asked: both are then inside one verification."""

    def __init__(self) -> None:
        super().__init__(TRUST.issuers)
        self._barrier = threading.Barrier(2, timeout=30)

    def get(self, key: str, default: Any = None) -> Any:
        self._barrier.wait()
        return super().get(key, default)


def test_two_threads_that_prove_one_chain_keep_it_once() -> None:
    cache, alone = ChainCache(), ChainCache()
    ask(alone)
    trust = replace(TRUST, issuers=_Meeting())
    threads = [threading.Thread(target=ask, args=(cache,), kwargs={"trust": trust}) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == 1
    assert cache.size_bytes == alone.size_bytes


def test_threads_share_it() -> None:
    cache = ChainCache(entries_max=4)
    presented = roots(8)
    wrong: list[object] = []
    start = threading.Barrier(4)

    def work(offset: int) -> None:
        start.wait()
        for step in range(100):
            asked = presented[(step * (offset + 1)) % len(presented)]
            chain = ask(cache, asked)
            token = chains.verify(asked.root).root.token_sha256 if step % 25 == 0 else None
            if token not in {None, chain.root.token_sha256} or len(cache) > 4:
                wrong.append((offset, step))

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cache) <= 4
