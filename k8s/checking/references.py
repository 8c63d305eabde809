"""Whether what objects say of each other is true: selectors, ports, mounts, accounts.

`External` are the objects that an operator brings; `external.yaml` lists them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from k8s.checking.documents import documents
from k8s.checking.manifest import (
    CLUSTER_SCOPED,
    Container,
    Fault,
    Manifest,
    PodTemplate,
    Step,
    at,
    items,
    mapping,
    pod_templates,
    text,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """Objects that the manifests use and do not make: their keys, by kind and name."""

    keys: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Return what `file` lists."""
        found = {}
        for document in documents(file.read_text("utf-8")):
            for entry in items(document):
                key = (text(at(entry, "kind")), text(at(entry, "name")))
                found[key] = frozenset(text(name) for name in items(at(entry, "keys")))
        return cls(keys=found)


class References:
    """The objects of one build, and what they say of each other."""

    def __init__(self, manifests: Sequence[Manifest], external: External) -> None:
        self._manifests = manifests
        self._external = external
        self._pods = tuple(pod_templates(manifests))
        self._by_name = {(m.kind, m.namespace, m.name): m for m in manifests}

    def faults(self) -> Iterator[Fault]:
        """Return every reference that leads nowhere, and every pod that nothing guards."""
        yield from self._identity_faults()
        for pod in self._pods:
            yield from self._volume_faults(pod)
            yield from self._variable_faults(pod)
            yield from self._account_faults(pod)
            yield from self._network_faults(pod)
            yield from self._svid_faults(pod)
            yield from self._label_faults(pod)
        for manifest in self._manifests:
            yield from self._selector_faults(manifest)

    def _identity_faults(self) -> Iterator[Fault]:
        seen: set[tuple[str, str, str]] = set()
        spaces = {m.name for m in self._manifests if m.kind == "Namespace"}
        for manifest in self._manifests:
            key = (manifest.kind, manifest.namespace, manifest.name)
            if key in seen:
                yield manifest.fault(("metadata", "name"), "is there twice")
            seen.add(key)
            if manifest.kind in CLUSTER_SCOPED and manifest.namespace:
                yield manifest.fault(("metadata", "namespace"), "this kind has none")
            elif (
                manifest.kind not in CLUSTER_SCOPED and spaces and manifest.namespace not in spaces
            ):
                wrong = f"is none of those that are made here: {', '.join(sorted(spaces))}"
                yield manifest.fault(("metadata", "namespace"), wrong)

    # --- what pods use ---------------------------------------------------------------------------

    def _volume_faults(self, pod: PodTemplate) -> Iterator[Fault]:
        names = set()
        for index, volume in enumerate(items(pod.spec.get("volumes"))):
            names.add(text(at(volume, "name")))
            for kind, key, member in (
                ("ConfigMap", "configMap", "name"),
                ("Secret", "secret", "secretName"),
                ("CSIDriver", "csi", "driver"),
            ):
                name = at(volume, key, member)
                if isinstance(name, str) and not self._exists(kind, pod.manifest, name):
                    yield pod.fault(("volumes", index, key, member), f"no {kind} `{name}` is here")
        for container in pod.containers():
            for index, mount in enumerate(items(container.value.get("volumeMounts"))):
                if at(mount, "name") not in names:
                    path = (*container.path, "volumeMounts", index, "name")
                    yield pod.manifest.fault(path, f"no volume `{at(mount, 'name')}` is here")

    def _variable_faults(self, pod: PodTemplate) -> Iterator[Fault]:
        for container in pod.containers():
            for index, variable in enumerate(items(container.value.get("env"))):
                for kind, member in (("Secret", "secretKeyRef"), ("ConfigMap", "configMapKeyRef")):
                    reference = at(variable, "valueFrom", member)
                    name, key = at(reference, "name"), at(reference, "key")
                    if not isinstance(name, str) or not isinstance(key, str):
                        continue
                    path = (*container.path, "env", index, "valueFrom", member)
                    if not self._exists(kind, pod.manifest, name):
                        yield pod.manifest.fault((*path, "name"), f"no {kind} `{name}` is here")
                    elif key not in self._keys(kind, pod.manifest, name):
                        yield pod.manifest.fault((*path, "key"), f"`{name}` has no key `{key}`")

    def _account_faults(self, pod: PodTemplate) -> Iterator[Fault]:
        account = text(pod.spec.get("serviceAccountName"))
        key = ("ServiceAccount", pod.manifest.namespace, account)
        if account and key not in self._by_name:
            yield pod.fault(("serviceAccountName",), f"no ServiceAccount `{account}` is here")
        priority = pod.spec.get("priorityClassName")
        if isinstance(priority, str) and ("PriorityClass", "", priority) not in self._by_name:
            yield pod.fault(("priorityClassName",), f"no PriorityClass `{priority}` is here")

    def _exists(self, kind: str, user: Manifest, name: str) -> bool:
        namespace = "" if kind in CLUSTER_SCOPED else user.namespace
        return (kind, namespace, name) in self._by_name or (kind, name) in self._external.keys

    def _keys(self, kind: str, user: Manifest, name: str) -> frozenset[str]:
        own = self._by_name.get((kind, user.namespace, name))
        if own is None:
            return self._external.keys[kind, name]
        return frozenset(mapping(own.at("data"))) | frozenset(mapping(own.at("stringData")))

    # --- what selects pods -----------------------------------------------------------------------

    def _network_faults(self, pod: PodTemplate) -> Iterator[Fault]:
        for direction in ("Ingress", "Egress"):
            guards = [
                policy
                for policy in self._of("NetworkPolicy", pod.manifest.namespace)
                if direction in items(policy.at("spec", "policyTypes"))
                and _matches(policy.at("spec", "podSelector"), pod.labels)
            ]
            if not guards:
                fault = f"no NetworkPolicy of direction {direction} selects these pods"
                yield pod.manifest.fault((*pod.path, "metadata", "labels"), fault)

    def _svid_faults(self, pod: PodTemplate) -> Iterator[Fault]:
        # A container that reaches the agent needs a registration, or the agent is silent.
        volumes = {
            text(at(volume, "name"))
            for volume in items(pod.spec.get("volumes"))
            if at(volume, "csi", "driver") == "csi.spiffe.io"
        }
        for container in pod.containers():
            mounts = items(container.value.get("volumeMounts"))
            if not volumes & {text(at(mount, "name")) for mount in mounts}:
                continue
            if not any(self._registers(m, pod, container) for m in self._all("ClusterSPIFFEID")):
                fault = "no ClusterSPIFFEID selects it, so the agent will not answer it"
                yield pod.manifest.fault((*container.path, "name"), fault)

    def _registers(self, registration: Manifest, pod: PodTemplate, container: Container) -> bool:
        space = {"kubernetes.io/metadata.name": pod.manifest.namespace}
        owner = self._by_name.get(("Namespace", "", pod.manifest.namespace))
        labels = {**space, **(owner.labels if owner else {})}
        if not pod.manifest.namespace:
            # Not yet known: base is built without a namespace.
            labels = dict(mapping(registration.at("spec", "namespaceSelector", "matchLabels")))
        templates = items(registration.at("spec", "workloadSelectorTemplates"))
        named = [t for t in templates if text(t).startswith("k8s:container-name:")]
        return (
            _matches(registration.at("spec", "podSelector"), pod.labels)
            and _matches(registration.at("spec", "namespaceSelector"), labels)
            and (not named or f"k8s:container-name:{container.name}" in named)
        )

    def _label_faults(self, pod: PodTemplate) -> Iterator[Fault]:
        selector = pod.manifest.at("spec", "selector")
        if selector is not None and not _matches(selector, pod.labels):
            yield pod.manifest.fault(("spec", "selector"), "does not select its own pods")
        for index, spread in enumerate(items(pod.spec.get("topologySpreadConstraints"))):
            if not _matches(at(spread, "labelSelector"), pod.labels):
                path = ("topologySpreadConstraints", index, "labelSelector")
                yield pod.fault(path, "does not select its own pods")

    def _selector_faults(self, manifest: Manifest) -> Iterator[Fault]:
        match manifest.kind:
            case "Service":
                yield from self._service_faults(manifest)
            case "PodDisruptionBudget":
                if not self._selected(manifest, manifest.at("spec", "selector")):
                    yield manifest.fault(("spec", "selector"), "selects no pods here")
            case "NetworkPolicy":
                yield from self._policy_faults(manifest)
            case "HorizontalPodAutoscaler":
                target = manifest.at("spec", "scaleTargetRef")
                key = (text(at(target, "kind")), manifest.namespace, text(at(target, "name")))
                if key not in self._by_name:
                    yield manifest.fault(("spec", "scaleTargetRef"), "is not here")
                elif self._by_name[key].at("spec", "replicas") is not None:
                    fault = "is set back at every apply, against the autoscaler"
                    yield self._by_name[key].fault(("spec", "replicas"), fault)
            case "ServiceMonitor":
                yield from self._monitor_faults(manifest)
            case "PodMonitor":
                yield from self._pod_monitor_faults(manifest)
            case _:
                pass

    def _service_faults(self, service: Manifest) -> Iterator[Fault]:
        selector = service.at("spec", "selector")
        if selector is None:
            return
        pods = self._selected(service, {"matchLabels": selector})
        if not pods:
            yield service.fault(("spec", "selector"), "selects no pods here")
        for index, port in enumerate(items(service.at("spec", "ports"))):
            target = at(port, "targetPort") or at(port, "port")
            if any(target not in _ports(pod) for pod in pods):
                path = ("spec", "ports", index, "targetPort")
                yield service.fault(path, f"no container of its pods has the port `{target}`")

    def _policy_faults(self, policy: Manifest) -> Iterator[Fault]:
        selector = policy.at("spec", "podSelector")
        is_alone = all(pod.manifest.namespace != policy.namespace for pod in self._pods)
        if not selector or is_alone:
            return  # everything, or pods that somebody else makes
        pods = self._selected(policy, selector)
        if not pods:
            yield policy.fault(("spec", "podSelector"), "selects no pods here")
        for rule, ingress in enumerate(items(policy.at("spec", "ingress"))):
            for index, port in enumerate(items(at(ingress, "ports"))):
                if any(at(port, "port") not in _ports(pod) for pod in pods):
                    path: tuple[Step, ...] = ("spec", "ingress", rule, "ports", index, "port")
                    wrong = f"no container of its pods has the port `{at(port, 'port')}`"
                    yield policy.fault(path, wrong)

    def _monitor_faults(self, monitor: Manifest) -> Iterator[Fault]:
        selector = monitor.at("spec", "selector")
        services = [
            service
            for service in self._of("Service", monitor.namespace)
            if _matches(selector, service.labels)
        ]
        if not services:
            yield monitor.fault(("spec", "selector"), "selects no Service here")
        for index, endpoint in enumerate(items(monitor.at("spec", "endpoints"))):
            for service in services:
                names = {at(port, "name") for port in items(service.at("spec", "ports"))}
                if at(endpoint, "port") not in names:
                    path = ("spec", "endpoints", index, "port")
                    yield monitor.fault(path, f"{service} has no port `{at(endpoint, 'port')}`")

    def _pod_monitor_faults(self, monitor: Manifest) -> Iterator[Fault]:
        pods = self._selected(monitor, monitor.at("spec", "selector"))
        if not pods:
            yield monitor.fault(("spec", "selector"), "selects no pods here")
        for index, endpoint in enumerate(items(monitor.at("spec", "podMetricsEndpoints"))):
            if any(at(endpoint, "port") not in _ports(pod) for pod in pods):
                path = ("spec", "podMetricsEndpoints", index, "port")
                wrong = f"no container of its pods has the port `{at(endpoint, 'port')}`"
                yield monitor.fault(path, wrong)

    def _selected(self, by: Manifest, selector: object) -> list[PodTemplate]:
        return [
            pod
            for pod in self._pods
            if pod.manifest.namespace == by.namespace and _matches(selector, pod.labels)
        ]

    def _all(self, kind: str) -> Iterator[Manifest]:
        return (manifest for manifest in self._manifests if manifest.kind == kind)

    def _of(self, kind: str, namespace: str) -> Iterator[Manifest]:
        return (manifest for manifest in self._all(kind) if manifest.namespace == namespace)


def _matches(selector: object, labels: Mapping[str, object]) -> bool:
    """Tell whether a label selector matches; one by expressions is not used here and does not."""
    if at(selector, "matchExpressions") is not None:
        return False
    return mapping(at(selector, "matchLabels")).items() <= labels.items()


def _ports(pod: PodTemplate) -> set[object]:
    found: set[object] = set()
    for container in pod.containers():
        for port in items(container.value.get("ports")):
            found |= {at(port, "name"), at(port, "containerPort")}
    return found
