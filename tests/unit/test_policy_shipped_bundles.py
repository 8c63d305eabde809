"""The bundles in casbin_models/ load without a warning, pass their cases, and test every rule."""

from pathlib import Path

import pytest

from authz_server.policy.bundle import PolicyBundle, load_bundle, load_bundles

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


def test_all_load_together_and_cover_every_domain() -> None:
    bundles = load_bundles(MODELS)
    assert sorted(bundles) == sorted(NAMES)
    assert sorted({bundle.domain for bundle in bundles.values()}) == [
        "ai_workload",
        "application",
        "data",
        "infrastructure",
    ]
