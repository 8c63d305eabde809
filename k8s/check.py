"""Build every overlay and example, and say what is wrong with each object. `make k8s-check`.

    python -m k8s.check [DIRECTORY…]

Exit 1: faults, one a line, with object and field. Exit 3: nothing here builds kustomizations, and
nothing was checked.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from os.path import relpath
from pathlib import Path
from typing import Final

from k8s.checking.bundles import bundle_faults
from k8s.checking.crds import extension_schemas
from k8s.checking.kustomize import KustomizeError, KustomizeMissingError, build, kustomize
from k8s.checking.manifest import Fault, Manifest, pod_templates
from k8s.checking.pods import pod_faults
from k8s.checking.references import External, References
from k8s.checking.schemas import KUBERNETES, KubernetesSchemas, Schemas

HERE: Final = Path(__file__).parent
_NOTHING_BUILDS: Final = 3
NOT_RUN: Final = (
    "not run here: a cluster (admission, CEL rules of extensions, scheduling, network policies, "
    "the SPIFFE CSI driver) and a container engine (the image)"
)


def targets() -> tuple[Path, ...]:
    """Return every directory that is applied as it is."""
    found = [HERE / "base"]
    for kind in ("overlays", "jobs", "examples"):
        found += (HERE / kind).iterdir()
    return tuple(sorted(path for path in found if (path / "kustomization.yaml").exists()))


def own_faults(manifests: Sequence[Manifest], external: External) -> Iterator[Fault]:
    """Return what our own rules say against the objects of one build."""
    for pod in pod_templates(manifests):
        yield from pod_faults(pod)
    yield from References(manifests, external).faults()
    yield from bundle_faults(manifests, external)


def schema_faults(manifests: Sequence[Manifest], schemas: Schemas) -> Iterator[Fault]:
    """Return what the schemas say against the objects of one build."""
    for manifest in manifests:
        yield from schemas.faults(manifest)


def prefixed(command: Sequence[str], directory: Path) -> tuple[Manifest, ...]:
    """Return the objects of `directory` under a prefix, as an operator's own overlay makes them."""
    with tempfile.TemporaryDirectory() as name:
        wrapper = Path(name).resolve()
        resource = relpath(directory.resolve(), wrapper)
        (wrapper / "kustomization.yaml").write_text(
            f"namePrefix: blue-\nresources: [{resource!r}]\n", "utf-8"
        )
        return build(command, wrapper)


class Report:
    """What is printed, and whether anything was wrong."""

    def __init__(self) -> None:
        self.faulty = False

    def line(self, text: str) -> None:
        """Print one line."""
        sys.stdout.write(f"{text}\n")

    def build(self, name: str, objects: int, faults: Sequence[Fault]) -> None:
        """Print what came of one build."""
        self.faulty = self.faulty or bool(faults)
        self.line(f"{name}: {objects} objects, {len(faults)} faults")
        for fault in faults:
            self.line(f"  {fault}")


def check(directories: Sequence[Path], report: Report) -> None:
    """Check every directory. Raises `KustomizeMissingError`."""
    command = kustomize()
    extensions, missing = extension_schemas()
    kubernetes = [KubernetesSchemas(version) for version in KUBERNETES]
    schemas = Schemas(kubernetes=kubernetes, extensions=extensions)
    external = External.read(HERE / "external.yaml")
    unknown: set[tuple[str, str]] = set()
    for directory in directories:
        name = relpath(directory, HERE.parent)
        try:
            manifests = build(command, directory)
            moved = prefixed(command, directory)
        except KustomizeError as error:
            fault = Fault(object=name, field="kustomization.yaml", message=str(error))
            report.build(name, 0, [fault])
            continue
        unknown |= {(m.api_version, m.kind) for m in manifests if not schemas.knows(m)}
        faults = [*schema_faults(manifests, schemas), *own_faults(manifests, external)]
        if not faults:
            # A prefix breaks what only looks like a reference.
            faults = list(own_faults(moved, external))
        report.build(name, len(manifests), faults)
    report.line(f"schemas: Kubernetes {' and '.join(KUBERNETES)}, {len(extensions)} extensions")
    for line in missing:
        report.line(f"skipped: {line}")
    for api_version, kind in sorted(unknown):
        report.line(f"skipped: no schema here for {kind} of {api_version}")
    report.line(NOT_RUN)


def main() -> int:
    """Check the directories that are named, or all."""
    report = Report()
    try:
        check([Path(name) for name in sys.argv[1:]] or targets(), report)
    except KustomizeMissingError as error:
        report.line(f"k8s-check: nothing was checked: {error}")
        return _NOTHING_BUILDS
    return 1 if report.faulty else 0


if __name__ == "__main__":
    sys.exit(main())
