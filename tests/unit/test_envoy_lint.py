"""Lint of Envoy configuration: each rule finds its unsafe setting, and nothing else."""

import json
from pathlib import Path

import pytest

from authz_server.envoy_config.lint.judge import RULES, judge
from authz_server.envoy_config.lint.rule import Finding
from authz_server.envoy_config.lint.source import read_source
from tests.lint_bases import base
from tests.lint_samples import Sample, samples

EXAMPLES = Path(__file__).parents[2] / "envoy"
SAMPLES = list(samples())


def lint(tree: object) -> list[Finding]:
    """Judge one configuration, as JSON."""
    return judge([read_source(json.dumps(tree).encode(), name="envoy.json")])


def ids(tree: object) -> set[str]:
    return {finding.rule.id for finding in lint(tree)}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.id)
def test_an_unsafe_setting_is_found_and_nothing_else(sample: Sample) -> None:
    assert ids(sample.unsafe(base(sample.base))) == sample.expected


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.id)
def test_the_setting_put_right_is_clean(sample: Sample) -> None:
    assert ids(sample.safe(base(sample.base))) == set()


def test_every_rule_has_a_sample_and_an_id_of_its_own() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert {rule.id for rule in RULES} == {sample.rule for sample in SAMPLES}


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_what_we_ship_is_clean(example: Path) -> None:
    assert judge([read_source(example.read_bytes(), name=str(example))]) == []
