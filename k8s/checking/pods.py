"""What every pod of these manifests must hold, beside what Kubernetes itself asks for.

Stricter than the Pod Security Standard `restricted`: a fixed account, a read-only root, no token of
the Kubernetes API, limits, and an image that is the same tomorrow.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from authz_server.app import LAME_DUCK_S
from authz_server.core import limits
from k8s.checking.manifest import Container, Fault, PodTemplate, at, items, mapping, text
from k8s.checking.pdp_files import mounts

# Time that a server needs after lame duck and drain, to sign the end of its chain and to ship.
_CLOSING_S: Final = 20.0
_QUANTITIES: Final = ("cpu", "memory", "ephemeral-storage")
# Without a CPU limit on purpose: a throttled decision is a late one, and a late one a denial.
_LIMITS: Final = ("memory", "ephemeral-storage")
_LAME_DUCK: Final = re.compile(r"--lame-duck=([0-9.]+)")


def pod_faults(pod: PodTemplate) -> Iterator[Fault]:
    """Return what is wrong with the pods of one template."""
    yield from _token_faults(pod)
    yield from _host_faults(pod)
    for container in pod.containers():
        yield from _privilege_faults(pod, container)
        yield from _resource_faults(pod, container)
        yield from _mount_faults(pod, container)
        yield from _image_faults(pod, container)
        if container.is_pdp:
            yield from _pdp_faults(pod, container)


def _token_faults(pod: PodTemplate) -> Iterator[Fault]:
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield pod.fault(("automountServiceAccountToken",), "must be false")
    if text(pod.spec.get("serviceAccountName")) in {"", "default"}:
        yield pod.fault(("serviceAccountName",), "must name an account of its own")
    if pod.spec.get("enableServiceLinks") is not False:
        yield pod.fault(("enableServiceLinks",), "must be false")


def _host_faults(pod: PodTemplate) -> Iterator[Fault]:
    for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if pod.spec.get(key):
            yield pod.fault((key,), "must not be set")
    for index, volume in enumerate(items(pod.spec.get("volumes"))):
        if at(volume, "hostPath") is not None:
            yield pod.fault(("volumes", index, "hostPath"), "must not be used")
        if at(volume, "emptyDir") is not None and at(volume, "emptyDir", "sizeLimit") is None:
            yield pod.fault(("volumes", index, "emptyDir", "sizeLimit"), "must be set")
        if at(volume, "csi") is not None and at(volume, "csi", "readOnly") is not True:
            yield pod.fault(("volumes", index, "csi", "readOnly"), "must be true")
    for container in pod.containers():
        for index, port in enumerate(items(container.value.get("ports"))):
            if at(port, "hostPort") is not None:
                path = (*container.path, "ports", index, "hostPort")
                yield pod.manifest.fault(path, "is open to the node's whole network")


def _mount_faults(pod: PodTemplate, container: Container) -> Iterator[Fault]:
    # In a volume that cannot be written no directory can be made to mount another one at.
    seen = list(mounts(pod, container))
    for mount in seen:
        for outer in seen:
            fixed = {"configMap", "secret", "csi", "projected"} & set(outer.volume)
            if fixed and outer.path in mount.path.parents:
                path = (*container.path, "volumeMounts", mount.index, "mountPath")
                yield pod.manifest.fault(path, f"is inside the volume at {outer.path}")


def _privilege_faults(pod: PodTemplate, container: Container) -> Iterator[Fault]:
    own = mapping(container.value.get("securityContext"))
    shared = mapping(pod.spec.get("securityContext"))
    effective = {**shared, **own}
    required: Mapping[str, object] = {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
    }
    path = (*container.path, "securityContext")
    for key, value in required.items():
        if effective.get(key) is not value:
            yield pod.manifest.fault((*path, key), f"must be {str(value).lower()}")
    for key in ("runAsUser", "runAsGroup"):
        if not isinstance(effective.get(key), int) or effective[key] == 0:
            yield pod.manifest.fault((*path, key), "must be a number other than 0")
    if at(effective, "seccompProfile", "type") not in {"RuntimeDefault", "Localhost"}:
        yield pod.manifest.fault((*path, "seccompProfile", "type"), "must be RuntimeDefault")
    if at(own, "capabilities", "drop") != ["ALL"] or at(own, "capabilities", "add"):
        yield pod.manifest.fault((*path, "capabilities"), "must drop ALL and add none")
    if own.get("privileged"):
        yield pod.manifest.fault((*path, "privileged"), "must not be set")


def _resource_faults(pod: PodTemplate, container: Container) -> Iterator[Fault]:
    for kind, names in (("requests", _QUANTITIES), ("limits", _LIMITS)):
        for name in names:
            if at(container.value, "resources", kind, name) is None:
                path = (*container.path, "resources", kind, name)
                yield pod.manifest.fault(path, "must be set")


def _image_faults(pod: PodTemplate, container: Container) -> Iterator[Fault]:
    image = text(container.value.get("image"))
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    if not digest and tag in {"", "latest"}:
        fault = f"`{image}` is whatever it is on the day; give a tag or a digest"
        yield pod.manifest.fault((*container.path, "image"), fault)


def _pdp_faults(pod: PodTemplate, container: Container) -> Iterator[Fault]:
    """Return what is wrong with a container that decides."""
    probes = {"readinessProbe": {"/readyz"}, "livenessProbe": {"/healthz"}}
    # A sidecar is started when it may decide, any other as soon as it lives.
    probes["startupProbe"] = {"/healthz", "/readyz"}
    for probe, paths in probes.items():
        if at(container.value, probe, "httpGet", "path") not in paths:
            path = (*container.path, probe, "httpGet", "path")
            yield pod.manifest.fault(path, f"must be one of {', '.join(sorted(paths))}")
    arguments = [text(argument) for argument in items(container.value.get("args"))]
    if "--wait-for-policy" not in arguments:
        fault = "must have --wait-for-policy, or a ConfigMap that comes late is a crash loop"
        yield pod.manifest.fault((*container.path, "args"), fault)
    yield from _grace_faults(pod, arguments)
    for index, mount in enumerate(items(container.value.get("volumeMounts"))):
        if at(mount, "subPath") is not None:
            path = (*container.path, "volumeMounts", index, "subPath")
            yield pod.manifest.fault(path, "is never updated: mount the directory")


def _grace_faults(pod: PodTemplate, arguments: list[str]) -> Iterator[Fault]:
    found = [match[1] for argument in arguments if (match := _LAME_DUCK.fullmatch(argument))]
    lame_duck_s = float(found[-1]) if found else LAME_DUCK_S
    least = lame_duck_s + limits.DRAIN_TIMEOUT_S + _CLOSING_S
    grace = pod.spec.get("terminationGracePeriodSeconds")
    if not isinstance(grace, int) or grace < least:
        fault = f"must be {least:g} or more: lame duck, calls in flight, the end of the chain"
        yield pod.fault(("terminationGracePeriodSeconds",), fault)
