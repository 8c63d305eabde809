"""A hundred thousand chains through the bounded cache: the memory of the process stays flat."""

import gc
from pathlib import Path

import pytest

from authz_server.core.chain import PresentedChain
from authz_server.core.chain_cache import ChainCache
from tests.harness.chains import DOMAIN, NOW, POLICY, TRUST, root_claims, root_token

_PAGE_BYTES = 4096


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def fill(cache: ChainCache, first: int, count: int) -> None:
    for number in range(first, first + count):
        token = root_token(root_claims(txn=f"txn-{number}", jti=f"jti-{number}"))
        presented = PresentedChain(root=token, links=())
        cache.verify(presented, trust=TRUST, policy=POLICY, trust_domain=DOMAIN, now=NOW)


@pytest.mark.parametrize(
    ("entries", "chains"),
    [
        (500, 5_000),
        pytest.param(10_000, 100_000, marks=[pytest.mark.deep, pytest.mark.timeout(900)]),
    ],
)
def test_distinct_chains_do_not_grow_the_process(entries: int, chains: int) -> None:
    cache = ChainCache(entries_max=entries)
    fill(cache, 0, 2 * entries)  # full, and turned over once
    full = resident_bytes()
    fill(cache, 2 * entries, chains)
    grown = resident_bytes() - full
    print(f"{chains} chains: {grown / 2**20:+.2f} MiB beside a full cache of {entries}")
    assert len(cache) == entries
    # Without a bound it would be 2.3 KiB a chain: 11 MiB for the small number, 225 for the large.
    assert grown < chains * 2304 / 4
