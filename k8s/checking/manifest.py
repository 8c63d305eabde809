"""One object of a manifest, and what is wrong with it.

Readers here are lenient: what has the wrong shape reads as absent. Whether the shape is right is
the business of `checking.schemas`, and both report.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Step = str | int

# Kinds without a namespace, of those that these manifests use.
CLUSTER_SCOPED: Final = frozenset(
    {
        "ClusterSPIFFEID",
        "CSIDriver",
        "CustomResourceDefinition",
        "GatewayClass",
        "Namespace",
        "PriorityClass",
    }
)
# Where the template of a pod stands in each kind that makes pods.
_POD_SPECS: Final[Mapping[str, tuple[Step, ...]]] = {
    "Pod": (),
    "Deployment": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong: which object, which field, and why."""

    object: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.object}: {self.field}: {self.message}"


def at(value: object, *steps: Step) -> object:
    """Return the part of `value` at `steps`, or None where there is none."""
    for step in steps:
        if isinstance(step, str) and isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(step, int) and isinstance(value, Sequence) and not isinstance(value, str):
            value = value[step] if step < len(value) else None
        else:
            return None
    return value


def items(value: object) -> Sequence[object]:
    """Return `value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else ()


def mapping(value: object) -> Mapping[str, object]:
    """Return `value` if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def text(value: object) -> str:
    """Return `value` if it is a text, else an empty one."""
    return value if isinstance(value, str) else ""


def dotted(steps: Sequence[Step]) -> str:
    """Return a path as people write it: `spec.containers[0].image`."""
    shown = ""
    for step in steps:
        shown += f"[{step}]" if isinstance(step, int) else f".{step}" if shown else step
    return shown or "(the object)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One Kubernetes object as it would be applied."""

    value: Mapping[str, object]

    @property
    def kind(self) -> str:
        """Its kind, such as `Deployment`."""
        return text(self.value.get("kind"))

    @property
    def api_version(self) -> str:
        """Its group and version, such as `apps/v1`."""
        return text(self.value.get("apiVersion"))

    @property
    def name(self) -> str:
        """Its name."""
        return text(at(self.value, "metadata", "name"))

    @property
    def namespace(self) -> str:
        """Its namespace; empty where the manifest leaves it to whoever applies it."""
        return text(at(self.value, "metadata", "namespace"))

    @property
    def labels(self) -> Mapping[str, object]:
        """Its own labels, not those of its pods."""
        return mapping(at(self.value, "metadata", "labels"))

    def __str__(self) -> str:
        return "/".join(part for part in (self.kind, self.namespace, self.name) if part)

    def at(self, *steps: Step) -> object:
        """Return the field at `steps`, or None."""
        return at(self.value, *steps)

    def fault(self, steps: Sequence[Step], message: str) -> Fault:
        """Return a fault of the field at `steps`."""
        return Fault(object=str(self), field=dotted(steps), message=message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container of a pod; `path` leads to it from the manifest."""

    value: Mapping[str, object]
    path: tuple[Step, ...]

    @property
    def name(self) -> str:
        """Its name."""
        return text(self.value.get("name"))

    @property
    def is_pdp(self) -> bool:
        """Whether it runs `authz-server serve`."""
        return "serve" in items(self.value.get("args")) and self.name == "authz-server"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTemplate:
    """The pods that one object makes."""

    manifest: Manifest
    path: tuple[Step, ...]  # to the template

    @property
    def labels(self) -> Mapping[str, object]:
        """The labels of each pod."""
        return mapping(self.manifest.at(*self.path, "metadata", "labels"))

    @property
    def spec(self) -> Mapping[str, object]:
        """The specification of each pod."""
        return mapping(self.manifest.at(*self.path, "spec"))

    def containers(self) -> Iterator[Container]:
        """Return every container, those that only start first included."""
        for key in ("initContainers", "containers"):
            for index, value in enumerate(items(self.spec.get(key))):
                yield Container(value=mapping(value), path=(*self.path, "spec", key, index))

    def fault(self, steps: Sequence[Step], message: str) -> Fault:
        """Return a fault of a field of the pod's specification."""
        return self.manifest.fault((*self.path, "spec", *steps), message)


def pod_templates(manifests: Sequence[Manifest]) -> Iterator[PodTemplate]:
    """Return the template of each object that makes pods."""
    for manifest in manifests:
        if manifest.kind in _POD_SPECS:
            yield PodTemplate(manifest=manifest, path=_POD_SPECS[manifest.kind])
