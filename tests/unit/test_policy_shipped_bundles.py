"""The bundles in casbin_models/ load without a warning, pass their cases, and test every rule."""

import re
from pathlib import Path

import pytest

from authz_server.policy.bundle import (
    PolicyBundle,
    load_bundle,
    load_bundle_files,
    load_bundles,
)

MODELS = Path(__file__).parents[2] / "casbin_models"
NAMES = ("agents", "data", "default", "infrastructure", "tools")


@pytest.fixture(scope="module", params=NAMES)
def bundle(request: pytest.FixtureRequest) -> PolicyBundle:
    return load_bundle(MODELS / request.param)


def test_loads_without_a_warning(bundle: PolicyBundle) -> None:
    assert bundle.warnings == ()


def test_passes_its_cases(bundle: PolicyBundle) -> None:
    assert "\n".join(map(str, bundle.failed_cases())) == ""


def test_every_rule_decides_a_case(bundle: PolicyBundle) -> None:
    assert bundle.untested_rules() == ()


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_explains_every_rule_and_no_other(name: str) -> None:
    lines = (MODELS / name / "README.md").read_text("utf-8").splitlines()
    table = [line.split("|")[1] for line in lines if line.startswith("| `")]
    explained = [rule for cell in table for rule in re.findall(r"`([^`]+)`", cell)]
    assert sorted(explained) == sorted(rule.id for rule in load_bundle(MODELS / name).rules)


def test_the_first_bundle_of_the_documentation_works() -> None:
    page = (MODELS.parent / "docs/policy.md").read_text("utf-8")
    files = dict(re.findall(r"```\w+\n# ([a-z.]+)\n(.*?)```", page, re.DOTALL))
    first = load_bundle_files({name: text.encode() for name, text in files.items()})
    assert first.warnings == ()
    assert [rule.id for rule in first.rules] == ["read-orders", "no-drafts"]


def test_all_load_together_and_cover_every_domain() -> None:
    bundles = load_bundles(MODELS)
    assert sorted(bundles) == sorted(NAMES)
    assert sorted({bundle.domain for bundle in bundles.values()}) == [
        "ai_workload",
        "application",
        "data",
        "infrastructure",
    ]
