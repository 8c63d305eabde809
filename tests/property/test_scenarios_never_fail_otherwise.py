"""Whatever a scenario file holds: every fault at a place, or scenarios that can be played."""

import json

from hypothesis import given
from hypothesis import strategies as st

from authz_server.core.attributes import SCHEMA
from authz_server.core.decision import Verdict
from authz_server.policy import scenarios
from authz_server.policy.consistency import CompiledBundles, play
from authz_server.policy.scenarios import Surroundings, load_scenarios
from authz_server.policy.source import FaultLog
from tests.harness.world import shipped_policies

KEYS = sorted(
    {*scenarios._KEYS, *scenarios._STEP_KEYS}
    | {name for record in SCHEMA.values() for name in record}
)
BUNDLES = sorted(shipped_policies())
WORDS = st.sampled_from(
    [
        *BUNDLES, *Verdict, "same", "spiffe://d.example/agent/one", "alice@example.org",
        "mcp", "GET", "/a/b", "handoff", "", "x" * 50,
    ]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-5, 2**60) | st.floats(0, 1) | WORDS
ANYTHING = st.recursive(
    LEAVES,
    lambda part: (
        st.lists(part, max_size=4)
        | st.dictionaries(st.sampled_from([*KEYS, *BUNDLES]), part, max_size=5)
    ),
    max_leaves=30,
)
AROUND = Surroundings(domains={name: p.domain for name, p in shipped_policies().items()})


@st.composite
def nearly_right(draw: st.DrawFn) -> object:
    """Return a sound scenario in which some members are anything."""
    bundle = st.sampled_from(BUNDLES)
    step = st.fixed_dictionaries(
        {"bundle": bundle, "act": st.just({}), "obj": st.just({})},
        optional=dict.fromkeys(("sub", "chain", "env"), ANYTHING),
    )
    scenario = {
        "name": "one",
        "task": "t",
        "agent": "spiffe://d.example/agent/one",
        "subject": draw(st.none() | WORDS),
        "steps": draw(st.lists(step, min_size=1, max_size=4)),
        "expect": draw(st.just("same") | st.dictionaries(bundle, WORDS)),
    }
    for key in draw(st.lists(st.sampled_from(sorted(scenario)), max_size=2)):
        scenario[key] = draw(ANYTHING)
    return draw(st.sampled_from([scenario, [scenario], [scenario, scenario]]))


def check(document: object) -> None:
    log = FaultLog()
    text = json.dumps(document)
    found = load_scenarios(text.encode(), file="s.yaml", surroundings=AROUND, log=log)
    for fault in log.errors():
        assert fault.file == "s.yaml"
        assert (fault.line, fault.column) >= (1, 1)
    if not log.faults:
        assert found
        for scenario in found:
            outcome = play(scenario, CompiledBundles(shipped_policies()))
            assert {answer.bundle for answer in outcome.answers} == {
                step.bundle for step in scenario.steps
            }


@given(ANYTHING)
def test_anything(document: object) -> None:
    check(document)


@given(nearly_right())
def test_what_is_nearly_right(document: object) -> None:
    check(document)


@given(st.binary(max_size=100))
def test_bytes(data: bytes) -> None:
    log = FaultLog()
    load_scenarios(data, file="s.yaml", surroundings=AROUND, log=log)
    assert log.faults
