"""Lint answers any input: with findings, or with a fault that has a place."""

import copy
import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from authz_server.core.errors import ConfigurationError
from authz_server.envoy_config.lint.definitions import Definitions
from authz_server.envoy_config.lint.judge import judge
from authz_server.envoy_config.lint.names import resource_names
from authz_server.envoy_config.lint.source import read_source
from tests.lint_bases import BASES, base

KEYS = sorted({key for kind in Definitions.load()._messages.values() for key in kind})
TYPES = sorted(Definitions.load()._messages)
URLS = st.sampled_from(TYPES).map(lambda name: f"type.googleapis.com/{name}")
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | URLS
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*KEYS, "@type", "admin", "static_resources", "listeners"])
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=40,
)


def answers(data: bytes) -> None:
    """Judge `data`; every finding can be shown, every refusal has a message."""
    try:
        findings = judge([read_source(data, name="envoy")])
    except ConfigurationError as error:
        assert error.faults  # noqa: PT017 -- either answer will do
        return
    for finding in findings:
        assert finding.message
        assert finding.at.json_path.startswith("$")
        resource_names(finding.at)
        finding.at.source.line(finding.at.place)


@given(TREES)
def test_any_tree(tree: object) -> None:
    answers(json.dumps(tree).encode())


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8")))
def test_any_bytes(data: bytes) -> None:
    answers(data)


@given(
    st.sampled_from(BASES), st.randoms(use_true_random=False), st.lists(LEAVES | TREES, max_size=6)
)
@settings(deadline=None)  # the first renders the bases
def test_any_change_of_a_rendered_configuration(
    name: str, chance: random.Random, values: list[object]
) -> None:
    tree = copy.deepcopy(base(name))
    for value in values:
        change(tree, chance, value)
    answers(json.dumps(tree).encode())


def change(tree: Any, chance: random.Random, value: object) -> None:
    """Put `value` at a random place in `tree`."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = chance.choice(keys)
        inner = tree[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.1:
            tree[key] = value
            return
        tree = inner


@given(st.binary(max_size=50), st.integers(min_value=0, max_value=10_000))
def test_any_damage_to_a_text(damage: bytes, at: int) -> None:
    text = json.dumps(base("http"), indent=1).encode()
    at %= len(text)
    answers(text[:at] + damage + text[at + len(damage) // 2 :])
