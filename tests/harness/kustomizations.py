"""The kustomizations of `k8s/`, each built once in a worker."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from k8s import check
from k8s.checking.crds import extension_schemas
from k8s.checking.kustomize import KustomizeMissingError, build, kustomize
from k8s.checking.manifest import Manifest
from k8s.checking.references import External
from k8s.checking.schemas import KUBERNETES, KubernetesSchemas, Schemas

K8S = Path(__file__).parents[2] / "k8s"
CENTRAL, DAEMONSET, SIDECAR = "overlays/central", "overlays/daemonset", "overlays/sidecar"
# An object as plain values, for a test to damage.
Object = dict[str, Any]


@functools.cache
def command() -> tuple[str, ...]:
    """Return what builds kustomizations here; skip the test where nothing does."""
    try:
        return kustomize()
    except KustomizeMissingError as error:
        pytest.skip(str(error))


@functools.cache
def built(directory: str) -> tuple[Manifest, ...]:
    """Return the objects of a directory below `k8s/`."""
    return build(command(), K8S / directory)


@functools.cache
def external() -> External:
    """Return what operators bring."""
    return External.read(K8S / "external.yaml")


@functools.cache
def schemas() -> Schemas:
    """Return every schema that can be had here."""
    extensions, _ = extension_schemas()
    kubernetes = [KubernetesSchemas(version) for version in KUBERNETES]
    return Schemas(kubernetes=kubernetes, extensions=extensions)


def every_fault(manifests: Sequence[Manifest]) -> list[str]:
    """Return every fault of one build, as it is printed."""
    found = [
        *check.schema_faults(manifests, schemas()),
        *check.own_faults(manifests, external()),
    ]
    return [str(fault) for fault in found]


def damaged(
    directory: str, kind: str, name: str, damage: Callable[[Object], object]
) -> tuple[Manifest, ...]:
    """Return the objects of `directory` after `damage` was done to one of them."""
    values = [copy.deepcopy(dict(manifest.value)) for manifest in built(directory)]
    damage(one(values, kind, name))
    return tuple(Manifest(value=value) for value in values)


def without(directory: str, kind: str, name: str) -> tuple[Manifest, ...]:
    """Return the objects of `directory` but one."""
    kept = tuple(m for m in built(directory) if not _is(dict(m.value), kind, name))
    assert len(kept) == len(built(directory)) - 1
    return kept


def one(values: list[Object], kind: str, name: str) -> Object:
    """Return the one object of that kind whose name is `name`, or begins so and ends in a hash."""
    found = [value for value in values if _is(value, kind, name)]
    assert len(found) == 1, [(v["kind"], v["metadata"]["name"]) for v in values]
    return found[0]


def containers(workload: Object) -> Iterator[Object]:
    """Return every container of a Deployment or DaemonSet."""
    spec = workload["spec"]["template"]["spec"]
    yield from spec.get("initContainers", ())
    yield from spec["containers"]


def container(workload: Object, name: str) -> Object:
    """Return the container called `name`."""
    return next(c for c in containers(workload) if c["name"] == name)


def _is(value: Object, kind: str, name: str) -> bool:
    own = value["metadata"]["name"]
    hashed = kind == "ConfigMap" and own[: -len("-0123456789")] == name
    return bool(value["kind"] == kind and (own == name or hashed))
