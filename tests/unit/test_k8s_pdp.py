"""The pods of the manifests hold a PDP that loads, serves, admits Envoys alone and follows changes.

What a pod sees is laid out on this disk as the kubelet lays it, and the server is started with the
arguments and variables of its container. Only what no pod brings here is replaced: SPIRE's agent by
files, PostgreSQL by SQLite, fixed ports by free ones.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.agent.svid import Svid
from authz_server.cli import main
from authz_server.core.spiffe import TrustDomain
from authz_server.demo.authority import (
    LeafProfile,
    TrustDomainAuthority,
    envoy_certificate,
)
from authz_server.settings import Settings, load_settings
from k8s.checking.manifest import Container, PodTemplate, at, items, pod_templates, text
from k8s.checking.pdp_files import lay_out, lay_out_pod, mounts
from tests.harness.kustomizations import Object, built, damaged
from tests.pdp_site import PdpSite
from tests.server_process import METHOD, TIMEOUT_S, ServerProcess

pytestmark = pytest.mark.xdist_group("k8s-pdp")  # one server for all

DOMAIN = TrustDomain.parse("prod.example.org")
ISSUER = "https://sts.prod.example.org"
ENVOY, WORKLOAD = (f"spiffe://{DOMAIN}/{path}" for path in ("envoy/crm/crm", "ns/crm/sa/crm"))
ASSISTANT = f"spiffe://{DOMAIN}/ns/support/sa/assistant"
SECRETS = {
    "AUTHZ_LEDGER__URL": "postgresql://authz@db.internal/authz?sslmode=verify-full",
    "PGPASSWORD": "x",
}
PODS = {
    "overlays/central": "authz-server",
    "overlays/daemonset": "authz-server",
    "overlays/sidecar": "crm",
}


def pdp_of(directory: str) -> tuple[PodTemplate, Container]:
    """Return the pods of an overlay that decide, and their container."""
    (pod,) = [p for p in pod_templates(built(directory)) if p.manifest.name == PODS[directory]]
    return pod, next(container for container in pod.containers() if container.is_pdp)


def variables(container: Container) -> Mapping[str, str]:
    """Return the variables of `container`, secrets included."""
    found = {}
    for variable in items(container.value.get("env")):
        name = text(at(variable, "name"))
        value = at(variable, "value")
        found[name] = SECRETS[name] if value is None else text(value)
    return found


@pytest.fixture(params=sorted(PODS))
def settings(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """The configuration as the PDP of an overlay reads it, every key and variable checked."""
    pod, container = pdp_of(request.param)
    lay_out_pod(pod, container, built(request.param), tmp_path)
    for name, value in variables(container).items():
        monkeypatch.setenv(name, value)
    return load_settings(tmp_path / "etc/authz/config/authz.yaml")


def test_the_configuration_loads(settings: Settings) -> None:
    assert settings.trust_domain == DOMAIN
    assert settings.ledger.url == SECRETS["AUTHZ_LEDGER__URL"]
    assert settings.ledger.mode == "durable"
    assert settings.identity.unregistered == "deny"
    assert settings.delegation.require
    assert sorted(path.name for path in settings.bundles.dir.iterdir()) == [
        "agents",
        "data",
        "default",
        "infrastructure",
        "tools",
    ]


def test_a_listener_beyond_the_pod_speaks_mutual_tls(settings: Settings) -> None:
    local = all(address.is_local for address in settings.listen.grpc)
    assert settings.tls.mode == ("plaintext" if local else "workload_api")
    assert [pattern.text for pattern in settings.tls.allowed_clients] == (
        [] if local else [f"spiffe://{DOMAIN}/envoy/*/*"]
    )


def test_a_sidecar_and_its_envoy_meet_on_a_volume_that_nobody_else_sees() -> None:
    pod, container = pdp_of("overlays/sidecar")
    socket = Path(variables(container)["AUTHZ_LISTEN__GRPC"].removeprefix("unix://"))
    sees = {
        other.name
        for other in pod.containers()
        if any(str(mount.path) == str(socket.parent) for mount in mounts(pod, other))
    }
    assert sees == {"authz-server", "envoy"}
    users = {c.name: at(c.value, "securityContext", "runAsUser") for c in pod.containers()}
    assert users["authz-server"] == users["envoy"] != users["crm"]


def test_the_pdp_begins_before_envoy_and_envoy_before_the_workload() -> None:
    pod, _ = pdp_of("overlays/sidecar")
    first = [
        (text(at(container, "name")), at(container, "restartPolicy"))
        for container in items(pod.spec["initContainers"])
    ]
    assert first == [("authz-server", "Always"), ("envoy", "Always")]


# --- the pod of the central overlay, running ------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningPod:
    """A PDP with the files of its pod, and the keys of those who may meet it."""

    root: Path
    site: PdpSite
    server: ServerProcess
    environment: Mapping[str, str]

    def mounted(self, name: str) -> Path:
        """Return the directory of a bundle."""
        return self.root / "etc/authz/bundles" / name

    def ask(self, svid: Svid, data: bytes) -> Mapping[str, object]:
        """Ask over mutual TLS as `svid`; return what the answer says of the decision."""
        credentials = grpc.ssl_channel_credentials(
            self.site.authority.bundle_pem, svid.key_pem, svid.cert_chain_pem
        )
        options = [("grpc.ssl_target_name_override", "pdp")]
        with grpc.secure_channel(self.server.grpc, credentials, options=options) as channel:
            check: Any = channel.unary_unary(METHOD)
            answer = CheckResponse.FromString(check(data, timeout=TIMEOUT_S))
        return dict(answer.dynamic_metadata.items())


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPod]:
    root = tmp_path_factory.mktemp("pod")
    template, container = pdp_of("overlays/central")
    lay_out_pod(template, container, built("overlays/central"), root)
    authority = TrustDomainAuthority.create(DOMAIN)
    issuer = DevelopmentIssuer.create(issuer=ISSUER, trust_domain=DOMAIN)
    assistant = authority.issue_svid(ASSISTANT)
    site = PdpSite(
        directory=root / "etc/authz/config",
        authority=authority,
        issuer=issuer,
        assistant=assistant,
        research=assistant,
    )
    arguments = [text(argument) for argument in items(container.value["args"])]
    options = [a for a in arguments if a != "serve" and not a.startswith("--config=")]
    environment = _replaced(root, site, variables(container))
    server = ServerProcess(site, *options, environ=environment)
    try:
        yield RunningPod(root=root, site=site, server=server, environment=environment)
    finally:
        server.end()


def _replaced(root: Path, site: PdpSite, own: Mapping[str, str]) -> Mapping[str, str]:
    """Return the pod's variables, and those that replace what is not here."""
    here = root / "here"
    here.mkdir()
    (here / "bundle.pem").write_bytes(site.authority.bundle_pem)
    (here / "sts.jwks.json").write_text(site.issuer.jwks())
    # gRPC clients in Python know no SPIFFE IDs.
    pdp = site.authority.issue_svid(
        "/ns/authz/sa/authz-server", profile=LeafProfile(dns_names=("pdp",))
    )
    (here / "pdp.pem").write_bytes(pdp.cert_chain_pem)
    (here / "pdp.key").write_bytes(pdp.key_pem)
    key = Ed25519PrivateKey.generate()
    (root / "etc/authz/keys").mkdir()
    (root / "etc/authz/keys/ledger.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    issuers = [{"issuer": ISSUER, "jwks_file": str(here / "sts.jwks.json")}]
    return {
        **own,
        "AUTHZ_LEDGER__URL": f"sqlite:///{here}/authz.db",
        "AUTHZ_LISTEN__GRPC": "127.0.0.1:0",
        "AUTHZ_LISTEN__HTTP": "127.0.0.1:0",
        "AUTHZ_TLS__MODE": "files",
        "AUTHZ_TLS__CERTIFICATE": str(here / "pdp.pem"),
        "AUTHZ_TLS__PRIVATE_KEY": str(here / "pdp.key"),
        "AUTHZ_IDENTITY__TRUST_BUNDLES__SOURCE": "files",
        "AUTHZ_IDENTITY__TRUST_BUNDLES__FILES": json.dumps({str(DOMAIN): str(here / "bundle.pem")}),
        "AUTHZ_DELEGATION__ISSUERS": json.dumps(issuers),
    }


def _tool_call(site: PdpSite, method: str) -> bytes:
    """Return the question of an Envoy in front of the CRM tool, asked by the assistant."""
    scope = ("crm.read",)
    root = site.issuer.issue_root(
        subject="alice@example.org", actor=site.assistant.spiffe_id, scope=scope, hops=0
    )
    request = CheckRequest()
    request.attributes.source.certificate = envoy_certificate(site.assistant)
    request.attributes.context_extensions.update({"bundle": "tools", "protocol": "mcp"})
    http = request.attributes.request.http
    http.id, http.protocol, http.scheme = "1", "HTTP/2", "https"
    http.method, http.path, http.host = "POST", "/mcp", "crm.example.org"
    http.raw_body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method}).encode()
    http.size = len(http.raw_body)
    headers = {
        ":method": "POST",
        ":path": "/mcp",
        ":authority": http.host,
        "content-type": "application/json",
        "content-length": str(http.size),
        "mcp-protocol-version": "2025-06-18",
        "txn-token": root,
    }
    for name, value in headers.items():
        http.header_map.headers.add(key=name, raw_value=value.encode())
    return request.SerializeToString()


def test_the_pod_is_ready_with_every_bundle(pod: RunningPod) -> None:
    status, page = pod.server.readyz()
    assert status == 200, page
    assert set(dict(page["bundles"])) == {  # type: ignore[call-overload]
        "agents",
        "data",
        "default",
        "infrastructure",
        "tools",
    }


def test_an_enforcement_point_is_answered(pod: RunningPod) -> None:
    envoy = pod.site.authority.issue_svid(ENVOY)
    allowed = pod.ask(envoy, _tool_call(pod.site, "tools/list"))
    denied = pod.ask(envoy, _tool_call(pod.site, "tools/delete"))
    assert (allowed["verdict"], allowed["bundle"]) == ("allow", "tools")
    assert denied["verdict"] == "deny"


def test_check_decides_offline_by_the_same_files(pod: RunningPod) -> None:
    """As a person does in the pod: `AUTHZ_CONFIG` says where the configuration is."""
    question = _tool_call(pod.site, "tools/list")
    environment = {**pod.environment, "AUTHZ_CONFIG": str(pod.site.configuration)}
    result = CliRunner().invoke(main.group, ["check", "--binary"], input=question, env=environment)
    assert result.exit_code == 0, result.output
    decision = json.loads(result.stdout)
    live = pod.ask(pod.site.authority.issue_svid(ENVOY), question)
    assert [decision[key] for key in ("verdict", "reason", "bundle")] == [
        live[key] for key in ("verdict", "reason", "bundle")
    ]
    assert decision["owner"] == "team-support"


def test_the_workload_itself_may_not_ask(pod: RunningPod) -> None:
    workload = pod.site.authority.issue_svid(WORKLOAD)
    with pytest.raises(grpc.RpcError) as refused:
        pod.ask(workload, _tool_call(pod.site, "tools/list"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_changed_config_map_is_taken_over_and_a_broken_one_is_not(pod: RunningPod) -> None:
    envoy = pod.site.authority.issue_svid(ENVOY)
    question = _tool_call(pod.site, "tools/list")
    before = pod.ask(envoy, question)

    def publish(edit: Callable[[Object], None], written: str) -> None:
        manifests = damaged("overlays/central", "ConfigMap", "policy-tools", edit)
        (changed,) = [manifest for manifest in manifests if manifest.name == "policy-tools"]
        lay_out(changed, pod.mounted("tools"), written=f"..{written}")

    def break_it(config_map: Object) -> None:
        config_map["data"]["policy.csv"] = config_map["data"]["policy.csv"].replace("deny", "Deny")

    publish(break_it, "broken")
    pod.server.signal_reload_until(lambda: pod.server.metric("authz_reload_failed") == 1)
    assert pod.server.readyz()[0] == 200
    assert pod.ask(envoy, question)["revision"] == before["revision"]

    def widen(config_map: Object) -> None:
        config_map["data"]["policy.csv"] += "\n# another day\n"

    publish(widen, "changed")
    pod.server.signal_reload_until(lambda: pod.server.metric("authz_reload_failed") == 0)
    after = pod.ask(envoy, question)
    assert (after["verdict"], after["revision"] != before["revision"]) == ("allow", True)
