"""Run the demonstration: a mesh, the story in it, and a report of what came of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from authz_server.core.errors import AuthzError
from authz_server.demo.cast import plan
from authz_server.demo.mesh import Mesh
from authz_server.demo.play import Performance, Result
from authz_server.demo.spire_programs import SpirePrograms
from authz_server.demo.story import STORY

# Beside the package in a checkout; an installed package has none, and needs to be told.
SHIPPED_BUNDLES = Path(__file__).resolve().parents[2] / "casbin_models"


class Audience(Protocol):
    """Whoever is told how the demonstration goes."""

    def waiting(self, what: str) -> None:
        """Be told what is being waited for."""

    def act(self, name: str) -> None:
        """Be told that a part of the story begins."""

    def result(self, result: Result) -> None:
        """Be told what came of one step."""


@contextmanager
def running_mesh(
    root: Path, bundles: Path, audience: Audience, *, spire: SpirePrograms | None = None
) -> Iterator[Mesh]:
    """Start the story's mesh below `root`, with identities from `spire` if given.

    Raises what `Mesh.start` raises, and `AuthzError`.
    """
    if not bundles.is_dir():
        raise AuthzError(f"policy bundles not found at `{bundles}`; name them with --bundles")
    with Mesh.start(root, plan(bundles), spire=spire, progress=audience.waiting) as mesh:
        yield mesh


async def play_story(mesh: Mesh, audience: Audience) -> list[Result]:
    """Play every act to `audience`; return what came of each step, in order."""
    performance = Performance(mesh)
    results = []
    for name, steps in STORY.items():
        audience.act(name)
        for step in steps:
            audience.waiting(step.title)
            async for result in performance.play(step):
                audience.result(result)
                results.append(result)
    return results
