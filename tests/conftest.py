"""What every suite shares: how hypothesis searches, and which marks a directory implies."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The quick profile is what `make test` runs. `deep` searches long enough to find rare inputs; it is
# chosen by `HYPOTHESIS_PROFILE=deep`. Neither asserts on a time: a loaded machine is no defect.
settings.register_profile(
    "quick", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("deep", settings.get_profile("quick"), max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

_E2E = Path(__file__).parent / "e2e"
_PARAMETER_ID_CHARS_MAX = 100
_MESHES = frozenset({"mesh", "fragile_mesh", "everywhere", "postgres_site"})  # fixtures


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Mark what lies in `e2e/`: it needs the real Envoy. What shares a mesh shares a worker.

    Before all others, because pytest-xdist reads the marks in this hook too. After the shuffle,
    what takes minutes by itself goes first, so that no worker starts it when all else is done.
    """
    for item in items:
        if item.path.is_relative_to(_E2E):
            item.add_marker(pytest.mark.e2e)
        for mesh in _MESHES & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.xdist_group(mesh))
    yield
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a long text after its argument: minted keys differ between workers, ids must not."""
    is_long = isinstance(val, str | bytes) and len(val) > _PARAMETER_ID_CHARS_MAX
    return argname if is_long else None
