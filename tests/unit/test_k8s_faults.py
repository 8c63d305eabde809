"""Each fault that is planted in the manifests is found, by object and field."""

from collections.abc import Callable

import pytest

from tests.harness.kustomizations import (
    CENTRAL,
    SIDECAR,
    Object,
    built,
    container,
    damaged,
    every_fault,
    schemas,
    without,
)

PDP = ("Deployment", "authz-server")
Damage = Callable[[Object], object]


def _pdp(change: Damage) -> Damage:
    return lambda workload: change(container(workload, "authz-server"))


def _pod(change: Damage) -> Damage:
    return lambda workload: change(workload["spec"]["template"]["spec"])


def _context(key: str, value: object) -> Damage:
    return _pdp(lambda c: c["securityContext"].update({key: value}))


def _volume(name: str, value: Object) -> Damage:
    def change(spec: Object) -> None:
        spec["volumes"] = [v for v in spec["volumes"] if v["name"] != name]
        spec["volumes"].append({"name": name, **value})

    return _pod(change)


def _mount(path: str, change: Damage) -> Damage:
    def found(c: Object) -> None:
        change(next(mount for mount in c["volumeMounts"] if mount["mountPath"] == path))

    return _pdp(found)


# What is damaged, how, and the line that says so.
PODS: dict[str, tuple[Damage, str]] = {
    "may be root": (
        lambda w: w["spec"]["template"]["spec"]["securityContext"].pop("runAsNonRoot"),
        "containers[0].securityContext.runAsNonRoot: must be true",
    ),
    "is root": (_context("runAsUser", 0), "securityContext.runAsUser: must be a number other"),
    "writes its root": (_context("readOnlyRootFilesystem", False), "readOnlyRootFilesystem: must"),
    "gains privileges": (_context("allowPrivilegeEscalation", True), "allowPrivilegeEscalation: "),
    "keeps capabilities": (_context("capabilities", {}), "capabilities: must drop ALL"),
    "adds a capability": (
        _context("capabilities", {"drop": ["ALL"], "add": ["NET_ADMIN"]}),
        "capabilities: must drop ALL and add none",
    ),
    "is privileged": (_context("privileged", True), "privileged: must not be set"),
    "is not confined": (
        _context("seccompProfile", {"type": "Unconfined"}),
        "seccompProfile.type: must be RuntimeDefault",
    ),
    "has a token": (
        _pod(lambda spec: spec.pop("automountServiceAccountToken")),
        "Deployment/authz/authz-server: spec.template.spec.automountServiceAccountToken: must be",
    ),
    "has the namespace's account": (
        _pod(lambda spec: spec.update(serviceAccountName="default")),
        "serviceAccountName: must name an account of its own",
    ),
    "has an account that is not there": (
        _pod(lambda spec: spec.update(serviceAccountName="somebody")),
        "serviceAccountName: no ServiceAccount `somebody` is here",
    ),
    "has links to services": (
        _pod(lambda spec: spec.pop("enableServiceLinks")),
        "enableServiceLinks: must be false",
    ),
    "is on the node's network": (
        _pod(lambda spec: spec.update(hostNetwork=True)),
        "hostNetwork: must not be set",
    ),
    "reads the node's disk": (
        _volume("tmp", {"hostPath": {"path": "/var/run"}}),
        "hostPath: must not be used",
    ),
    "may fill the node's disk": (_volume("tmp", {"emptyDir": {}}), "sizeLimit: must be set"),
    "writes to the agent's directory": (
        _volume("spiffe-workload-api", {"csi": {"driver": "csi.spiffe.io"}}),
        "csi.readOnly: must be true",
    ),
    "has a port of the node": (
        _pdp(lambda c: c["ports"][0].update(hostPort=9191)),
        "ports[0].hostPort: is open to the node's whole network",
    ),
    "has no memory limit": (
        _pdp(lambda c: c["resources"]["limits"].pop("memory")),
        "containers[0].resources.limits.memory: must be set",
    ),
    "asks for no CPU": (
        _pdp(lambda c: c["resources"]["requests"].pop("cpu")),
        "resources.requests.cpu: must be set",
    ),
    "is whatever is newest": (
        _pdp(lambda c: c.update(image="registry.example.org:5000/authz-server:latest")),
        "containers[0].image: `registry.example.org:5000/authz-server:latest` is whatever",
    ),
    "has no tag": (
        _pdp(lambda c: c.update(image="registry.example.org:5000/authz-server")),
        "image: `registry.example.org:5000/authz-server` is whatever",
    ),
    "is asked by gRPC": (
        _pdp(lambda c: c.update(readinessProbe={"grpc": {"port": 9191}})),
        "readinessProbe.httpGet.path: must be one of /readyz",
    ),
    "is restarted for a bad policy": (
        _pdp(lambda c: c["livenessProbe"]["httpGet"].update(path="/readyz")),
        "livenessProbe.httpGet.path: must be one of /healthz",
    ),
    "crashes without policy": (
        _pdp(lambda c: c["args"].remove("--wait-for-policy")),
        "args: must have --wait-for-policy",
    ),
    "is killed while it drains": (
        _pod(lambda spec: spec.update(terminationGracePeriodSeconds=30)),
        "terminationGracePeriodSeconds: must be 40 or more",
    ),
    "has a bundle that never changes": (
        _mount("/etc/authz/bundles/tools", lambda m: m.update(subPath="model.conf")),
        "subPath: is never updated",
    ),
    "misses a bundle": (
        _pdp(lambda c: c["volumeMounts"].pop(3)),
        "volumeMounts: the bundle `policy-agents` is not below /etc/authz/bundles",
    ),
    "has a bundle too deep": (
        _mount("/etc/authz/bundles/tools", lambda m: m.update(mountPath="/etc/authz/bundles/a/b")),
        "must be a direct sub-directory of /etc/authz/bundles",
    ),
    "has a bundle under another name": (
        _mount("/etc/authz/bundles/tools", lambda m: m.update(mountPath="/etc/authz/bundles/crm")),
        "must end in the bundle's name, `tools`",
    ),
    "has something else as a bundle": (
        _volume("bundle-tools", {"configMap": {"name": "authz-identities"}}),
        "is no ConfigMap labelled as a policy bundle",
    ),
    "mounts into a ConfigMap": (
        _mount("/etc/authz/bundles/tools", lambda m: m.update(mountPath="/etc/authz/config/tools")),
        "volumeMounts[7].mountPath: is inside the volume at /etc/authz/config",
    ),
    "has no configuration": (
        _pdp(lambda c: c["args"].remove("--config=/etc/authz/config/authz.yaml")),
        "args: names no configuration that is mounted",
    ),
    "has no inventory": (
        _pdp(lambda c: c["volumeMounts"].pop(1)),
        "`identity.inventory`, /etc/authz/identities/identities.yaml, is not there",
    ),
    "has no agent": (
        _mount("/spiffe-workload-api", lambda m: m.update(mountPath="/run/spire")),
        "the agent's socket, unix:///spiffe-workload-api/spire-agent.sock, is not there",
    ),
    "has no room for its outbox": (
        _volume("state", {"emptyDir": {"sizeLimit": "1Gi"}}),
        "the outbox overflows: 400000 records may take 3520000000 bytes",
    ),
    "is evicted by its outbox": (
        _pdp(lambda c: c["resources"]["limits"].update({"ephemeral-storage": "4Gi"})),
        "resources.limits.ephemeral-storage: must be above the size of the outbox's volume",
    ),
    "keeps its outbox nowhere": (
        _mount("/var/lib/authz", lambda m: m.update(mountPath="/var/lib/other")),
        "no volume holds the outbox, /var/lib/authz/outbox.db",
    ),
    "wants a Secret that nobody brings": (
        _volume("ledger-key", {"secret": {"secretName": "ledger"}}),
        "secret.secretName: no Secret `ledger` is here",
    ),
    "wants a key that nobody brings": (
        _pdp(lambda c: c["env"][0]["valueFrom"]["secretKeyRef"].update(key="dsn")),
        "env[0].valueFrom.secretKeyRef.key: `authz-ledger` has no key `dsn`",
    ),
    "mounts what is not there": (
        _pod(lambda spec: spec["volumes"].pop()),
        "volumeMounts[10].name: no volume `tmp` is here",
    ),
    "selects other pods": (
        lambda w: w["spec"]["selector"]["matchLabels"].update(tier="front"),
        "spec.selector: does not select its own pods",
    ),
    "is spread with other pods": (
        _pod(
            lambda spec: spec["topologySpreadConstraints"][0].update(
                labelSelector={"matchLabels": {"app": "other"}}
            )
        ),
        "topologySpreadConstraints[0].labelSelector: does not select its own pods",
    ),
    "is scaled by two": (
        lambda w: w["spec"].update(replicas=3),
        "spec.replicas: is set back at every apply",
    ),
    "is guarded by nothing": (
        lambda w: w["metadata"].update(namespace="elsewhere"),
        "no NetworkPolicy of direction Ingress selects these pods",
    ),
    "is registered nowhere": (
        _pdp(lambda c: c.update(name="pdp")),
        "containers[0].name: no ClusterSPIFFEID selects it",
    ),
    "has a field nobody knows": (
        _pdp(lambda c: c.update(readOnlyRootFilesystem=True)),
        "spec.template.spec.containers[0]: Additional properties are not allowed",
    ),
    "has a number for a text": (
        _pdp(lambda c: c["env"][0].update(name=5)),
        "spec.template.spec.containers[0].env[0].name: 5 is not of type 'string'",
    ),
}

OBJECTS: dict[str, tuple[str, str, Damage, str]] = {
    "a Service of nothing": (
        "Service",
        "authz-server",
        lambda s: s["spec"]["selector"].update(tier="front"),
        "Service/authz/authz-server: spec.selector: selects no pods here",
    ),
    "a Service of a port that is not there": (
        "Service",
        "authz-server",
        lambda s: s["spec"]["ports"][0].update(targetPort="grcp"),
        "spec.ports[0].targetPort: no container of its pods has the port `grcp`",
    ),
    "a budget of nothing": (
        "PodDisruptionBudget",
        "authz-server",
        lambda b: b["spec"].update(selector={"matchLabels": {"app": "other"}}),
        "spec.selector: selects no pods here",
    ),
    "an autoscaler of nothing": (
        "HorizontalPodAutoscaler",
        "authz-server",
        lambda h: h["spec"]["scaleTargetRef"].update(name="authz"),
        "spec.scaleTargetRef: is not here",
    ),
    "a NetworkPolicy of nothing": (
        "NetworkPolicy",
        "authz-server",
        lambda n: n["spec"].update(podSelector={"matchLabels": {"app": "authz"}}),
        "NetworkPolicy/authz/authz-server: spec.podSelector: selects no pods here",
    ),
    "a NetworkPolicy of a port that is not there": (
        "NetworkPolicy",
        "authz-server",
        lambda n: n["spec"]["ingress"][1].update(ports=[{"port": "metrics"}]),
        "spec.ingress[1].ports[0].port: no container of its pods has the port `metrics`",
    ),
    "a monitor of nothing": (
        "ServiceMonitor",
        "authz-server",
        lambda m: m["spec"].update(selector={"matchLabels": {"app": "authz"}}),
        "ServiceMonitor/authz/authz-server: spec.selector: selects no Service here",
    ),
    "a monitor of a port that is not there": (
        "ServiceMonitor",
        "authz-server",
        lambda m: m["spec"]["endpoints"][0].update(port="metrics"),
        "spec.endpoints[0].port: Service/authz/authz-server has no port `metrics`",
    ),
    "a registration of another namespace": (
        "ClusterSPIFFEID",
        "authz-server",
        lambda c: c["spec"].update(
            namespaceSelector={"matchLabels": {"kubernetes.io/metadata.name": "other"}}
        ),
        "no ClusterSPIFFEID selects it",
    ),
    "a registration with a field nobody knows": (
        "ClusterSPIFFEID",
        "authz-server",
        lambda c: c["spec"].update(spiffeIdTemplate="x"),
        "ClusterSPIFFEID/authz-server: spec: Additional properties are not allowed",
    ),
    "a cluster-scoped object in a namespace": (
        "PriorityClass",
        "authz-server",
        lambda p: p["metadata"].update(namespace="authz"),
        "metadata.namespace: this kind has none",
    ),
    "an object of another namespace": (
        "ServiceAccount",
        "authz-server",
        lambda s: s["metadata"].update(namespace="other"),
        "ServiceAccount/other/authz-server: metadata.namespace: is none of those",
    ),
    "two of one name": (
        "NetworkPolicy",
        "default-deny",
        lambda n: n["metadata"].update(name="authz-server"),
        "NetworkPolicy/authz/authz-server: metadata.name: is there twice",
    ),
    "a budget with a text for a number": (
        "PodDisruptionBudget",
        "authz-server",
        lambda b: b["spec"].update(minAvailable=[1]),
        "spec.minAvailable: [1] is not of type",
    ),
    "a configuration that is not YAML": (
        "ConfigMap",
        "authz-config",
        lambda c: c["data"].update({"authz.yaml": "a: [b"}),
        "args: names a configuration that is not YAML",
    ),
}


@pytest.mark.parametrize("fault", PODS)
def test_a_damaged_pod_is_found(fault: str) -> None:
    damage, line = PODS[fault]
    faults = every_fault(damaged(CENTRAL, *PDP, damage))
    assert [found for found in faults if line in found], faults


@pytest.mark.parametrize("fault", OBJECTS)
def test_a_damaged_object_is_found(fault: str) -> None:
    kind, name, damage, line = OBJECTS[fault]
    faults = every_fault(damaged(CENTRAL, kind, name, damage))
    assert [found for found in faults if line in found], faults


@pytest.mark.parametrize(
    ("kind", "name", "line"),
    [
        ("ConfigMap", "policy-tools", "no ConfigMap `policy-tools` is here"),
        ("ServiceAccount", "authz-server", "no ServiceAccount `authz-server` is here"),
        ("PriorityClass", "authz-server", "no PriorityClass `authz-server` is here"),
    ],
)
def test_a_missing_object_is_found(kind: str, name: str, line: str) -> None:
    faults = every_fault(without(CENTRAL, kind, name))
    assert [found for found in faults if line in found], faults


def test_a_sidecar_is_held_to_the_same() -> None:
    def damage(workload: Object) -> None:
        container(workload, "envoy")["securityContext"].pop("readOnlyRootFilesystem")
        container(workload, "authz-server")["args"].remove("--wait-for-policy")

    faults = every_fault(damaged(SIDECAR, "Deployment", "crm", damage))
    assert [line.partition(": ")[2].partition(": ")[0] for line in faults] == [
        "spec.template.spec.initContainers[0].args",
        "spec.template.spec.initContainers[1].securityContext.readOnlyRootFilesystem",
    ]


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda m: m["spec"]["selector"]["matchLabels"].update(tier="front"),
            "PodMonitor/crm/authz-sidecars: spec.selector: selects no pods here",
        ),
        (
            lambda m: m["spec"]["podMetricsEndpoints"][0].update(port="http"),
            "spec.podMetricsEndpoints[0].port: no container of its pods has the port `http`",
        ),
    ],
    ids=["of nothing", "of a port that is not there"],
)
def test_a_pod_monitor_is_found(damage: Damage, line: str) -> None:
    faults = every_fault(damaged(SIDECAR, "PodMonitor", "authz-sidecars", damage))
    assert [found for found in faults if line in found], faults


@pytest.mark.parametrize(
    ("directory", "kind", "damage", "line"),
    [
        (
            "examples/istio",
            "AuthorizationPolicy",
            lambda v: v["spec"].update(provider="authz-server"),
            "spec.provider: 'authz-server' is not of type 'object'",
        ),
        (
            "examples/istio",
            "DestinationRule",
            lambda v: v["spec"]["trafficPolicy"]["tls"].update(mode="MUTUALLY"),
            "spec.trafficPolicy.tls.mode: 'MUTUALLY' is not one of",
        ),
        (
            "examples/envoy-gateway",
            "BackendTLSPolicy",
            lambda v: v["spec"]["validation"].pop("hostname"),
            "spec.validation: 'hostname' is a required property",
        ),
        (
            "examples/envoy-gateway",
            "ClientTrafficPolicy",
            lambda v: v["spec"]["path"].update(mergeSlashes=True),
            "spec.path: Additional properties are not allowed ('mergeSlashes' was unexpected)",
        ),
        (
            "examples/agentgateway",
            "AgentgatewayPolicy",
            lambda v: v["spec"].update(targets=[]),
            "spec: Additional properties are not allowed ('targets' was unexpected)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalpha() else "",
)
def test_objects_of_extensions_are_held_to_their_definitions(
    directory: str, kind: str, damage: Damage, line: str
) -> None:
    manifest = next(m for m in built(directory) if m.kind == kind)
    if not schemas().knows(manifest):
        pytest.skip(f"no schema of {kind} can be had here")
    faults = every_fault(damaged(directory, kind, manifest.name, damage))
    assert [found for found in faults if line in found], faults
