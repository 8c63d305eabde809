"""The manifests' PDP and Envoy on a real SPIRE: their own configuration, two ids for the Envoy.

Ids are registered as the ClusterSPIFFEIDs render for these pods. Replaced are the agent's socket,
PostgreSQL, addresses and the issuer; nothing about identity.
"""

import http.client
import json
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.demo.processes import ChildProcess, ProcessGroup
from authz_server.demo.spire import Entry, Spire, SpirePlan
from authz_server.demo.workload_program import (
    PYTHON_ENVIRONMENT,
    envoy_for,
    own_program,
    python_for,
)
from authz_server.envoy_config.binary import envoy_binary
from authz_server.envoy_config.bootstrap import render_bootstrap
from authz_server.envoy_config.spec_file import parse_spec
from k8s.checking.manifest import items, pod_templates, text
from k8s.checking.pdp_files import lay_out_pod
from tests.e2e.check_requests import METHOD, check_request
from tests.e2e.recorder import Recorder, recording_workload
from tests.harness.kustomizations import K8S, built
from tests.spire.programs import spire_or_skip
from tests.spire.site import Site, SitePlan, own_loopback

pytestmark = [pytest.mark.e2e, pytest.mark.deep, pytest.mark.xdist_group("k8s-spire")]

DOMAIN = TrustDomain.parse("prod.example.org")
PDP, WORKLOAD, ENVOY, ASSISTANT = (
    SpiffeId.parse(DOMAIN.uri + path)
    for path in (
        "/ns/authz/sa/authz-server",
        "/ns/crm/sa/crm",
        "/envoy/crm/crm",
        "/ns/support/sa/assistant",
    )
)
HOST = "crm.example.org"
PDP_PORT, ADMIN_PORT, ENVOY_PORT = 9191, 9192, 8443


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a cluster would run: SPIRE, the central PDP, and what starts an Envoy."""

    directory: Path
    spire: Spire
    group: ProcessGroup
    workload: Recorder
    issuer: DevelopmentIssuer

    @contextmanager
    def envoy(self, name: str, **pdp: object) -> Iterator[None]:
        """Run the Envoy of `examples/central-client`; `pdp` are keys that replace its own."""
        spec: dict[str, Any] = yaml.safe_load(
            (K8S / "examples/central-client/envoy.yaml").read_text()
        )
        agent = f"unix://{self.spire.plan.agent_socket}"
        host = self.spire.plan.host
        spec |= {"listen": f"{host}:{ENVOY_PORT}", "upstream": f"127.0.0.1:{self.workload.port}"}
        spec["svid"] = {"agent": agent}
        spec["pdp"] |= {"addresses": f"{host}:{PDP_PORT}", "timeout_s": 5.0}
        spec["pdp"]["svid"] |= {"agent": agent}
        spec["pdp"] = {key: value for key, value in (spec["pdp"] | pdp).items() if value}
        del spec["admin"]
        parsed = parse_spec(yaml.safe_dump(spec).encode(), file="envoy.yaml")
        file = self.directory / f"{name}.json"
        file.write_text(render_bootstrap(parsed.points, node=parsed.node, admin_socket=None))
        program = envoy_for("envoy", envoy_binary(), self.directory / "programs")
        argv: list[str | Path] = [program, "--config-path", file, "--disable-hot-restart"]
        argv += ["--concurrency", "1", "--log-level", "warning"]
        process = self.group.start(name, argv)
        process.wait_until(lambda: _listens(host, ENVOY_PORT), what="listening")
        try:
            yield
        finally:
            process.terminate()
            process.join()

    def site(self) -> Site:
        """Return what fetches SVIDs of this process."""
        return Site(self.directory, self.spire, SitePlan(), self.group, self.workload)

    def call(self, method: str) -> int:
        """Call the tool as the assistant, for a person; return the HTTP status."""
        site = self.site()
        root = self.issuer.issue_root(
            subject="alice@example.org", actor=ASSISTANT, scope=("crm.read",), hops=0
        )
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method})
        headers = {
            "host": HOST,
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": "2025-06-18",
            "txn-token": root,
        }
        connection = http.client.HTTPSConnection(
            self.spire.plan.host,
            ENVOY_PORT,
            context=site.context(site.svid(ASSISTANT)),
            timeout=15,
        )
        try:
            connection.request("POST", "/mcp", body=body, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def log(self) -> str:
        """Return what the PDP logged."""
        return (self.directory / "pdp.log").read_text()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    programs = spire_or_skip()
    with (
        tempfile.TemporaryDirectory(prefix="k8s-", ignore_cleanup_errors=True) as name,
        recording_workload() as workload,
        ProcessGroup(Path(name)) as group,
    ):
        directory = Path(name)
        plan = SpirePlan(
            trust_domain=DOMAIN,
            directory=directory / "spire",
            sockets=directory,
            host=own_loopback(),
            server_port=8081,
            bundle_port=8444,
        )
        spire = Spire(plan, programs, group)
        spire.start_server()
        _register(spire, directory / "programs")
        spire.start_agent()
        issuer = DevelopmentIssuer.create(
            issuer="https://sts.prod.example.org", trust_domain=DOMAIN
        )
        running = Cluster(
            directory=directory, spire=spire, group=group, workload=workload, issuer=issuer
        )
        pdp = _start_pdp(running)
        pdp.wait_until(lambda: '"event": "ready"' in running.log(), what="readiness")
        yield running


def _register(spire: Spire, programs: Path) -> None:
    envoy, python = (
        envoy_for("envoy", envoy_binary(), programs),
        python_for("pdp", programs),
    )
    spire.register(
        [
            # For gRPC clients in Python, which know no SPIFFE IDs.
            Entry(spiffe_id=PDP, program=python, dns_names=("pdp.example",)),
            Entry(spiffe_id=WORKLOAD, program=envoy),
            Entry(spiffe_id=ENVOY, program=envoy),
            # The test is the agent that calls, and the application in the Envoy's pod.
            Entry(spiffe_id=ASSISTANT, program=own_program()),
            Entry(spiffe_id=WORKLOAD, program=own_program()),
        ]
    )


def _start_pdp(cluster: Cluster) -> ChildProcess:
    root, host = cluster.directory / "pod", cluster.spire.plan.host
    (pod,) = [p for p in pod_templates(built("overlays/central")) if p.manifest.name]
    (container,) = pod.containers()
    lay_out_pod(pod, container, built("overlays/central"), root)
    (root / "etc/authz/keys").mkdir()
    (root / "etc/authz/keys/ledger.pem").write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
    )
    (cluster.directory / "sts.jwks.json").write_text(cluster.issuer.jwks())
    issuers = [
        {"issuer": cluster.issuer.issuer, "jwks_file": str(cluster.directory / "sts.jwks.json")}
    ]
    options = [
        text(argument)
        for argument in items(container.value["args"])
        if argument != "serve" and not text(argument).startswith("--config=")
    ]
    python = python_for("pdp", cluster.directory / "programs")
    argv: list[str | Path] = [python, "-m", "authz_server", "serve"]
    argv += ["--config", root / "etc/authz/config/authz.yaml", *options, "--lame-duck=0"]
    environment = {
        "AUTHZ_IDENTITY__TRUST_BUNDLES__SOCKET": f"unix://{cluster.spire.plan.agent_socket}",
        "AUTHZ_LISTEN__GRPC": f"{host}:{PDP_PORT}",
        "AUTHZ_LISTEN__HTTP": f"{host}:{ADMIN_PORT}",
        "AUTHZ_LEDGER__URL": f"sqlite:///{cluster.directory}/ledger.db",
        "AUTHZ_DELEGATION__ISSUERS": json.dumps(issuers),
    }
    return cluster.group.start("pdp", argv, environment={**PYTHON_ENVIRONMENT, **environment})


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def test_the_envoy_of_the_manifests_asks_under_its_own_id(cluster: Cluster) -> None:
    with cluster.envoy("asks"):
        assert cluster.call("tools/list") == 200
        assert cluster.call("tools/unknown") == 403


def test_an_envoy_that_asks_under_the_workloads_id_is_not_answered(cluster: Cluster) -> None:
    """The naive way: one id for both sides. Then the application could ask as well."""
    with cluster.envoy("naive", svid=None):
        assert cluster.call("tools/list") == 503
    assert f"`{WORKLOAD}` is not among `tls.allowed_clients`" in cluster.log()


def test_the_application_in_the_pod_may_not_ask(cluster: Cluster) -> None:
    site = cluster.site()
    svid = site.svid(WORKLOAD)
    credentials = grpc.ssl_channel_credentials(_bundle(site), svid.key_pem, svid.chain_pem)
    target = f"{cluster.spire.plan.host}:{PDP_PORT}"
    options = (("grpc.ssl_target_name_override", "pdp.example"),)
    with grpc.secure_channel(target, credentials, options=options) as channel:
        check: Any = channel.unary_unary(METHOD)
        with pytest.raises(grpc.RpcError) as refused:
            check(check_request(None).SerializeToString(), timeout=10)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def _bundle(site: Site) -> bytes:
    from spiffe import WorkloadApiClient

    with WorkloadApiClient(f"unix://{site.spire.plan.agent_socket}") as client:
        (bundle,) = client.fetch_x509_bundles(timeout=5).bundles
    return b"".join(a.public_bytes(Encoding.PEM) for a in bundle.x509_authorities)
