"""The Envoys of the manifests: rendered from their files, free of findings, taken by the binary.

What the examples write into the Envoys of other control planes is held to the binary too. These
drop a patch whose value they cannot read, and say so in a status that nobody looks at.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from authz_server.cli import main
from authz_server.core.spiffe import SpiffeId, SpiffeIdPattern
from authz_server.envoy_config.enforcement_point import EnforcementPoint, SvidFromAgent
from authz_server.envoy_config.spec_file import parse_spec
from authz_server.envoy_config.validation import complaints
from authz_server.settings.addresses import TcpAddress
from k8s.checking.manifest import Manifest, at, items, pod_templates, text
from tests.harness.kustomizations import K8S, built

pytestmark = pytest.mark.e2e

ENVOYS = ("overlays/sidecar", "examples/central-client")
CENTRAL = "overlays/central"


def point_of(directory: str) -> EnforcementPoint:
    file = K8S / directory / "envoy.yaml"
    (point,) = parse_spec(file.read_bytes(), file=str(file)).points
    return point


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main.group, arguments)
    return result.exit_code, result.stdout


def named(directory: str, kind: str, name: str) -> Manifest:
    return next(m for m in built(directory) if (m.kind, m.name) == (kind, name))


@pytest.mark.parametrize("directory", ENVOYS)
def test_the_bootstrap_is_what_its_file_renders_to(directory: str) -> None:
    spec = K8S / directory / "envoy.yaml"
    code, rendered = run("envoy", "render", str(spec), "--output", "json")
    assert (code, rendered) == (0, spec.with_suffix(".json").read_text()), "run `make docs`"
    mounted = [m for m in built(directory) if m.name.startswith("envoy-bootstrap-")]
    assert [m.at("data", "envoy.json") for m in mounted] == [rendered]


@pytest.mark.parametrize("directory", ENVOYS)
def test_the_binary_takes_it_and_lint_finds_nothing(directory: str) -> None:
    bootstrap = K8S / directory / "envoy.json"
    assert complaints(bootstrap.read_text()) == ""
    assert run("envoy", "lint", str(bootstrap), "--output", "json") == (0, "")


@pytest.mark.parametrize("directory", ENVOYS)
def test_it_listens_and_leads_where_the_pod_says(directory: str) -> None:
    point = point_of(directory)
    (pod,) = pod_templates(built(directory))
    containers = {container.name: container.value for container in pod.containers()}
    ports = [at(port, "containerPort") for port in items(containers["envoy"]["ports"])]
    assert ports == [point.listen.port] if isinstance(point.listen, TcpAddress) else None
    # The workload answers on loopback, or there is a way past Envoy.
    assert isinstance(point.upstream, TcpAddress)
    assert point.upstream.is_local
    command = [text(word) for word in items(containers["crm"]["command"])]
    assert command[command.index("--bind") + 1] == point.upstream.host
    assert str(point.upstream.port) in command


@pytest.mark.parametrize("directory", ENVOYS)
def test_it_asks_the_agent_for_ids_that_are_registered(directory: str) -> None:
    point = point_of(directory)
    (pod,) = pod_templates(built(directory))
    registered = {
        str(spiffe_id)
        for m in (*built(directory), named(CENTRAL, "ClusterSPIFFEID", "authz-enforcement-point"))
        if m.kind == "ClusterSPIFFEID"
        and "k8s:container-name:envoy" in items(m.at("spec", "workloadSelectorTemplates"))
        for spiffe_id in [_id(m, pod.manifest.namespace, text(pod.spec["serviceAccountName"]))]
    }
    asked = {point.svid, point.pdp_tls.svid} if point.pdp_tls else {point.svid}
    assert {str(svid.spiffe_id) for svid in asked if isinstance(svid, SvidFromAgent)} <= registered
    assert str(point.workload_id) in registered


def _id(registration: Manifest, namespace: str, account: str) -> str:
    template = text(registration.at("spec", "spiffeIDTemplate"))
    values = {
        ".TrustDomain": "prod.example.org",
        ".PodMeta.Namespace": namespace,
        ".PodSpec.ServiceAccountName": account,
    }
    return re.sub(r"\{\{ (\S+) \}\}", lambda match: values[match[1]], template)


def test_a_central_pdp_is_met_under_its_own_name_and_id() -> None:
    point = point_of("examples/central-client")
    (address,) = point.pdp
    assert isinstance(address, TcpAddress)
    name, namespace, *rest = address.host.split(".")
    service = named(CENTRAL, "Service", name)
    assert (service.namespace, rest) == (namespace, ["svc", "cluster", "local"])
    assert [at(port, "port") for port in items(service.at("spec", "ports"))] == [address.port]
    assert point.pdp_tls is not None
    registration = named(CENTRAL, "ClusterSPIFFEID", "authz-server")
    assert str(point.pdp_tls.spiffe_id) == _id(registration, namespace, "authz-server")


def test_a_central_pdp_admits_the_envoy_and_not_the_workload() -> None:
    point = point_of("examples/central-client")
    configuration = next(m for m in built(CENTRAL) if m.name.startswith("authz-config-"))
    (line,) = re.findall(
        r"allowed_clients: \[\"(\S+)\"\]", text(configuration.at("data", "authz.yaml"))
    )
    admitted = SpiffeIdPattern.parse(line)
    assert point.pdp_tls is not None
    assert isinstance(point.pdp_tls.svid, SvidFromAgent)
    assert admitted.matches(point.pdp_tls.svid.spiffe_id)
    assert not admitted.matches(point.workload_id)
    assert not admitted.matches(
        SpiffeId.parse("spiffe://prod.example.org/ns/authz/sa/authz-server")
    )


def test_a_sidecar_meets_its_pdp_on_their_volume() -> None:
    point = point_of("overlays/sidecar")
    (pod,) = pod_templates(built("overlays/sidecar"))
    pdp = next(container for container in pod.containers() if container.is_pdp)
    values = {text(at(v, "name")): at(v, "value") for v in items(pdp.value["env"])}
    assert [str(address) for address in point.pdp] == [values["AUTHZ_LISTEN__GRPC"]]
    assert point.pdp_tls is None


# --- what is written into the Envoys of others ---------------------------------------------------

_EXT_AUTHZ = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"
_HCM = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
    ".HttpConnectionManager"
)


def _bootstrap(filter_settings: Mapping[str, Any], manager: Mapping[str, Any]) -> str:
    """Return an Envoy with one listener: another control plane's filter, with what we add to it."""
    asks = {"grpc_service": {"envoy_grpc": {"cluster_name": "pdp"}}, "transport_api_version": "V3"}
    filters = [
        {
            "name": "envoy.filters.http.ext_authz",
            "typed_config": {"@type": _EXT_AUTHZ, **asks, **filter_settings},
        },
        {
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
            },
        },
    ]
    settings = {
        "@type": _HCM,
        "stat_prefix": "x",
        "route_config": {"virtual_hosts": []},
        "http_filters": filters,
        **manager,
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    listener = {
        "name": "x",
        "address": address,
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": settings}]}],
    }
    cluster = {"name": "pdp", "type": "STATIC", "load_assignment": {"cluster_name": "pdp"}}
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}})


def _patched(name: str, *, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the values that an EnvoyPatchPolicy adds to a listener, nested as its paths are."""
    found: dict[str, Any] = dict(base or {})
    for patch in items(
        named("examples/envoy-gateway", "EnvoyPatchPolicy", name).at("spec", "jsonPatches")
    ):
        if not text(at(patch, "type")).endswith("Listener"):
            continue
        place = found
        *outer, last = text(at(patch, "operation", "path")).strip("/").split("/")
        for step in outer:
            place = place.setdefault(step, {})
        place[last] = at(patch, "operation", "value")
    return found


def _merged(filter_name: str) -> dict[str, Any]:
    """Return what the EnvoyFilter for Istio merges into the filter called so."""
    patches = items(named("examples/istio", "EnvoyFilter", "crm-authz").at("spec", "configPatches"))
    (config,) = [
        at(patch, "patch", "value", "typed_config")
        for patch in patches
        if text(at(patch, "patch", "value", "typed_config", "@type")).endswith(filter_name)
    ]
    assert isinstance(config, dict)
    return {key: value for key, value in config.items() if key != "@type"}


def test_the_binary_takes_what_envoy_gateway_is_told_to_patch() -> None:
    body = {"with_request_body": {"max_request_bytes": 262144}}
    manager = _patched("one-reading")
    assert complaints(_bootstrap(_patched("crm", base=body), manager)) == ""
    assert _patched("crm") == _patched("every-route")


def test_wrapped_values_are_written_bare() -> None:
    """Envoy reads `{value: true}` for `true`; the Go of a control plane drops the whole patch."""

    def wrapped(value: object) -> bool:
        if isinstance(value, dict):
            return value.keys() == {"value"} or any(wrapped(inner) for inner in value.values())
        return isinstance(value, list) and any(wrapped(inner) for inner in value)

    assert wrapped({"deny_at_disable": {"default_value": {"value": True}}})
    for written in (_patched("crm"), _patched("one-reading"), _merged("ExtAuthz")):
        assert not wrapped(written)


def test_the_binary_takes_what_istio_is_told_to_merge() -> None:
    assert complaints(_bootstrap(_merged("ExtAuthz"), _merged("HttpConnectionManager"))) == ""


def test_the_examples_say_of_the_filter_what_our_own_envoys_do() -> None:
    """What the API of another control plane cannot say is patched in, all of it."""
    bootstrap = json.loads((K8S / "examples/central-client/envoy.json").read_text())
    chain = bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]
    manager = chain["filters"][0]["typed_config"]
    ours = next(f for f in manager["http_filters"] if f["name"] == "envoy.filters.http.ext_authz")
    # What the other control plane sets by itself, or cannot have.
    own = {
        "@type",
        "grpc_service",
        "transport_api_version",
        "failure_mode_allow",
        "stat_prefix",
        "status_on_error",
        "with_request_body",
        "bootstrap_metadata_labels_key",
        "emit_filter_state_stats",
        "charge_cluster_response_stats",
        "metadata_context_namespaces",
    }
    wanted = set(ours["typed_config"]) - own
    assert wanted - set(_patched("crm")) == set()
    # Istio enables its filter by metadata of its own: `deny_at_disable` would deny all else.
    assert wanted - set(_merged("ExtAuthz")) == {"deny_at_disable"}
    for key in wanted:
        assert _patched("crm")[key] == ours["typed_config"][key], key


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    """The naive way, a bootstrap written by hand, goes stale; this one does not compare equal."""
    spec = tmp_path / "envoy.yaml"
    spec.write_text((K8S / "overlays/sidecar/envoy.yaml").read_text().replace("tools", "data"))
    _, rendered = run("envoy", "render", str(spec), "--output", "json")
    assert rendered != (K8S / "overlays/sidecar/envoy.json").read_text()
