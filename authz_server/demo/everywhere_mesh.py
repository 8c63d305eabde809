"""Start the mesh with an enforcement point of every kind that can be started here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from authz_server.core.errors import AuthzError
from authz_server.demo.everywhere_cast import everywhere_plan
from authz_server.demo.mesh import Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class EverywhereMesh:
    """A running mesh. `notes` say what is left out here, and why."""

    mesh: Mesh
    notes: tuple[str, ...]


@contextmanager
def everywhere_mesh(
    root: Path,
    bundles: Path,
    *,
    replicas: int = 1,
    progress: Callable[[str], None] = lambda _line: None,
) -> Iterator[EverywhereMesh]:
    """Start the mesh below `root`, with the policy bundles in directory `bundles`.

    Raises what `Mesh.start` raises, and `AuthzError`.
    """
    if not bundles.is_dir():
        raise AuthzError(f"policy bundles not found at `{bundles}`; name them with --bundles")
    plan = everywhere_plan(bundles, replicas=replicas)
    with Mesh.start(root, plan, progress=progress) as mesh:
        yield EverywhereMesh(mesh=mesh, notes=())
