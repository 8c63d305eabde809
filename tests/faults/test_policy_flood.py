"""A flood of subjects that nobody has heard of leaves the memory as it was.

pycasbin keeps every unseen name of a role test until the next reload, some 60 MiB for 100,000.
"""

import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest

from authz_server.core.attributes import Attributes
from tests.conformance.casbin_oracle import Policy, pycasbin_allows, rows
from tests.policy_samples import attributes, model

CONF = model(
    "g(r.sub.id, p.role, r.obj.host) && keyMatch2(r.obj.path, p.path)",
    columns="role, path, eft",
    roles="g = _, _, _",
)
POLICY = Policy(CONF, rows("p, admin, /v1/:x/:y, allow\ng, alice, admin, east"))
TOKENS = ("sub", "chain", "act", "obj", "env")


def subjects(first: int, count: int) -> Iterable[Attributes]:
    """Yield requests, each by another subject in another domain."""
    for number in range(first, first + count):
        yield attributes(
            sub={"id": f"spiffe://example.org/agent/{number}"}, obj={"host": f"host-{number}"}
        )


def resident_bytes() -> int:
    """Return what of this process is in memory."""
    fields = Path("/proc/self/statm").read_text("ascii").split()
    return int(fields[1]) * 4096


def test_unseen_subjects_leave_nothing_behind() -> None:
    compiled, oracle = POLICY.compiled(), POLICY.pycasbin()
    grown = {}
    for name, ask in (
        ("ours", compiled.evaluate),
        ("pycasbin", lambda request: pycasbin_allows(oracle, request, tokens=TOKENS)),
    ):
        for request in subjects(0, 50):
            ask(request)
        tracemalloc.start()
        for request in subjects(1_000, 300):
            ask(request)
        grown[name] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert grown["pycasbin"] > 100_000  # the naive engine shows that this test can fail
    assert grown["ours"] < 10_000


@pytest.mark.deep
def test_a_million_requests_by_a_hundred_thousand_subjects() -> None:
    compiled = POLICY.compiled()
    for request in subjects(0, 100_000):
        compiled.evaluate(request)
    before = resident_bytes()
    for turn in range(10):
        for request in subjects(turn * 100_000, 100_000):
            compiled.evaluate(request)
    assert resident_bytes() - before < 10 * 2**20  # less than 1 MiB for each 100,000 subjects
