"""The casebook through a running server and through a real Envoy.

One PDP process serves both. Direct: the bytes of the case's CheckRequest over gRPC. Through Envoy:
the case's request over mTLS, on a listener whose route carries the case's context extensions; the
workload behind counts what reaches it. Envoy is left as permissive as it can be, because the PDP
is what is tested here (the attack suite tests both profiles).
"""

import copy
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding

from authz_server._pb.envoy.service.auth.v3 import external_auth_pb2 as auth
from authz_server.demo.authority import LeafProfile, write_svid
from authz_server.demo.processes import ProcessGroup
from authz_server.envoy_config.enforcement_point import SvidFiles
from authz_server.settings.addresses import UnixAddress
from tests.e2e import envoy_profiles
from tests.e2e.attack_mesh import Ledger, Record, _start_pdp
from tests.e2e.envoy_profiles import RunningEnvoy, Surroundings, start_envoy
from tests.e2e.raw_http import Answer, NoAnswerError, RawConnection, exchange
from tests.e2e.recorder import Recorder, recording_workload
from tests.harness import casebook
from tests.harness.casebook import Case
from tests.harness.world import CASES, DOMAIN, ISSUER, World

pytestmark = pytest.mark.xdist_group("casebook")

_SENT = [case for case in casebook.cases() if case.spec.get("envoy") is not False]
SENT_BY_ENVOY = [case for case in _SENT if not case.is_raw]
CONNECTIONS = [case for case in _SENT if case.is_raw]
# What a live server cannot have: nothing is revoked in its ledger.
LIVE = [case for case in casebook.cases() if "revoked" not in case.spec]


# No usable principal: 401 instead of 403.
WITHOUT_PRINCIPAL = {"NO_PRINCIPAL", "MALFORMED_PRINCIPAL", "UNKNOWN_TRUST_DOMAIN"}


@dataclass(kw_only=True)
class Site:
    """One PDP, one Envoy, one workload, and the keys of everybody."""

    directory: Path
    world: World
    ledger: Ledger
    envoy: RunningEnvoy
    workload: Recorder
    channel: grpc.Channel

    def check(self, request: bytes) -> auth.CheckResponse:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(
            "/envoy.service.auth.v3.Authorization/Check"
        )
        return auth.CheckResponse.FromString(call(request, timeout=10))

    def tls(self, caller: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if isinstance(caller, str):
            svid = self.world.svid(caller)
        else:
            authority = self.world.other if "other" in str(caller) else self.world.authority
            profile = LeafProfile(dns_names=caller.get("dns", ()))
            svid = authority.issue_leaf(caller["uris"], profile=profile)
        context.load_cert_chain(*write_svid(svid, self.directory, "client"))
        return context


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="authz-") as name, running_site(Path(name)) as site:
        yield site


@contextmanager
def running_site(directory: Path, modes: Mapping[str, str] | None = None) -> Iterator[Site]:
    world = World()
    write_files(directory, world, modes or {})
    with recording_workload() as workload, ProcessGroup(directory) as group:
        _start_pdp(directory, group)
        envoy = start_envoy(envoy_tree(directory, world, workload), "envoy", directory, group)
        with grpc.insecure_channel(f"unix:{directory}/pdp.sock") as channel:
            yield Site(
                directory=directory,
                world=world,
                ledger=Ledger(directory / "ledger.db"),
                envoy=envoy,
                workload=workload,
                channel=channel,
            )


def write_files(directory: Path, world: World, modes: Mapping[str, str]) -> None:
    shutil.copytree(CASES / "bundles", directory / "bundles")
    shutil.copy(CASES / "identities.yaml", directory)
    (directory / "trust.pem").write_bytes(world.authority.bundle_pem)
    (directory / "both.pem").write_bytes(world.authority.bundle_pem + world.other.bundle_pem)
    (directory / "jwks.json").write_bytes(world.jwks())
    configuration = {
        "trust_domain": str(DOMAIN),
        "listen": {"grpc": f"unix://{directory}/pdp.sock", "http": "127.0.0.1:0"},
        "identity": {
            "trust_bundles": {"source": "files", "files": {str(DOMAIN): "trust.pem"}},
            "inventory": "identities.yaml",
        },
        "delegation": {
            "issuers": [{"issuer": ISSUER, "jwks_file": "jwks.json", "algorithms": ["ES256"]}],
            "require": True,
        },
        "bundles": {"dir": "bundles", "mode": dict(modes)},
        "ledger": {"url": "sqlite:///ledger.db"},
    }
    (directory / "authz.yaml").write_text(yaml.safe_dump(configuration))


def envoy_tree(directory: Path, world: World, workload: Recorder) -> dict[str, Any]:
    """Return an Envoy with a listener for each route of the casebook, and one without TLS."""
    svid = world.svid("service/data-api")
    certificate, key = write_svid(svid, directory, "envoy")
    tree = envoy_profiles.default(
        Surroundings(
            pdp=UnixAddress(directory / "pdp.sock"),
            workload_port=workload.port,
            svid=SvidFiles(
                certificate=certificate, private_key=key, trust_bundle=directory / "both.pem"
            ),
            admin=directory / "envoy.sock",
            pdp_timeout_s=5.0,
        )
    )
    listeners = tree["static_resources"]["listeners"]
    strict = next(listener for listener in listeners if listener["name"] == "strict")
    tree["static_resources"]["listeners"] = [
        _listener(strict, name, extensions) for name, extensions in casebook.routes().items()
    ]
    raw = {case.spec["route"] for case in CONNECTIONS}
    tree["static_resources"]["listeners"] += [_raw_listener(strict, name) for name in raw]
    tree["node"]["metadata"] = {
        name: {"node": "casebook", **casebook.routes()[name]} for name in raw
    }
    plain = _listener(strict, "plaintext", casebook.routes()["data"])
    del plain["filter_chains"][0]["transport_socket"]
    tree["static_resources"]["listeners"].append(plain)
    return tree


def _listener(
    template: dict[str, Any], name: str, extensions: dict[str, str] | Any
) -> dict[str, Any]:
    listener = copy.deepcopy(template) | {"name": name}
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    host = manager["route_config"]["virtual_hosts"][0]
    (per_route,) = host["typed_per_filter_config"].values()
    per_route["check_settings"]["context_extensions"] = dict(extensions)
    manager["http_filters"][0]["typed_config"] |= {
        "encode_raw_headers": True,
        "include_tls_session": True,
        "with_request_body": {"max_request_bytes": 262144, "pack_as_bytes": True},
    }
    if extensions.get("protocol") == "tcp":
        _admit_tunnels(manager)
    return listener


def _raw_listener(template: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a listener for connections, described by the node's metadata under its name."""
    listener = copy.deepcopy(template) | {"name": f"raw_{name}"}
    chain = listener["filter_chains"][0]
    asking = chain["filters"][0]["typed_config"]["http_filters"][0]["typed_config"]
    extensions = "type.googleapis.com/envoy.extensions.filters.network"
    question = {
        "@type": f"{extensions}.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "stat_prefix": name,
        "grpc_service": asking["grpc_service"],
        "include_peer_certificate": True,
        "include_tls_session": True,
        "bootstrap_metadata_labels_key": name,
    }
    proxy = {
        "@type": f"{extensions}.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name,
        "cluster": "workload",
    }
    chain["filters"] = [
        {"name": "envoy.filters.network.ext_authz", "typed_config": question},
        {"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy},
    ]
    return listener


def _admit_tunnels(manager: dict[str, Any]) -> None:
    """Make of any CONNECT a connection to the workload; its body is the tunnel."""
    host = manager["route_config"]["virtual_hosts"][0]
    del manager["http_filters"][0]["typed_config"]["with_request_body"]
    manager["upgrade_configs"] = [{"upgrade_type": "CONNECT"}]
    ended_here = {"upgrade_type": "CONNECT", "connect_config": {}}
    action = {"cluster": "workload", "upgrade_configs": [ended_here]}
    host["routes"] = [{"match": {"connect_matcher": {}}, "route": action}]


def through_envoy(site: Site, case: Case) -> Answer:
    call = casebook.http_call(case, site.world)
    host = case.spec["request"].get("connect", "data.example")
    lines = [f"{call.method} {call.path or host} HTTP/1.1".encode(), f"host: {host}".encode()]
    lines += [name.encode() + b": " + value for name, value in call.headers]
    lines += [f"content-length: {len(call.body)}".encode()] if call.body else []
    request = b"\r\n".join(lines) + b"\r\n\r\n" + call.body
    if case.spec.get("envoy") == "plaintext":
        return exchange(site.envoy.ports["plaintext"], request, tls=None)
    port, tls = site.envoy.ports[case.spec["route"]], site.tls(case.spec["caller"])
    if call.method != "CONNECT":
        return exchange(port, request, tls=tls)
    with RawConnection(port, tls=tls) as connection:
        connection.send(request)
        answer = connection.answer(to_method="CONNECT")
        if answer.status == 200:
            connection.send(b"GET /through HTTP/1.1\r\nhost: data.example\r\n\r\n")
            connection.answer()
    return answer


def recorded(site: Site, before: int) -> Record:
    (record,) = site.ledger.since(before)
    return record


@pytest.mark.parametrize("case", LIVE, ids=str)
def test_case_over_grpc(case: Case, site: Site) -> None:
    before = site.ledger.last()
    response = site.check(casebook.check_request(case, site.world))
    document = recorded(site, before).document
    assert (document["verdict"], document["reason"]) == (
        case.expect["verdict"],
        case.expect["reason"],
    ), document["detail"]
    assert (response.status.code == 0) == (case.expect["verdict"] == "allow")
    answer = "ok_response" if case.expect["verdict"] == "allow" else "denied_response"
    assert response.WhichOneof("http_response") == (None if case.is_raw else answer)
    metadata = dict(response.dynamic_metadata)
    assert metadata["decision_id"] == document["decision_id"]
    assert metadata["verdict"] == case.expect["verdict"]
    if "rules" in case.expect:
        assert document["rules"] == case.expect["rules"]


@pytest.mark.parametrize("case", CONNECTIONS, ids=str)
def test_connection_through_envoy(case: Case, site: Site) -> None:
    """None of them is let in: the server of the casebook requires delegation."""
    before, hits = site.ledger.last(), len(site.workload.hits)
    port = site.envoy.ports[f"raw_{case.spec['route']}"]
    name = case.spec["request"]["tcp"].get("sni")
    with RawConnection(port, tls=site.tls(case.spec["caller"]), server_name=name) as connection:
        connection.send(b"GET /through HTTP/1.1\r\nhost: data.example\r\n\r\n")
        with pytest.raises(NoAnswerError):
            connection.answer()
    document = recorded(site, before).document
    assert (document["verdict"], document["reason"]) == ("deny", case.expect["reason"])
    assert case.expect["verdict"] == "deny"
    assert len(site.workload.hits) == hits


@pytest.mark.parametrize("case", SENT_BY_ENVOY, ids=str)
def test_case_through_envoy(case: Case, site: Site) -> None:
    before, hits = site.ledger.last(), len(site.workload.hits)
    answer = through_envoy(site, case)
    document = recorded(site, before).document
    assert (document["verdict"], document["reason"]) == (
        case.expect["verdict"],
        case.expect["reason"],
    ), document["detail"]
    allowed = case.expect["verdict"] == "allow"
    assert len(site.workload.hits) - hits == allowed
    assert answer.headers["x-authz-decision-id"] == document["decision_id"]
    if allowed:
        assert answer.status == 200
    elif case.spec["route"] == "rpc":
        assert answer.status == 200
        assert answer.headers["grpc-status"] in {"7", "16"}
    else:
        no_principal = case.expect["reason"] in WITHOUT_PRINCIPAL
        assert answer.status == (401 if no_principal else 403)
        assert case.expect["reason"] in answer.body.decode()
        assert answer.headers.get("x-authz-verdict") == (
            "escalate" if case.expect["verdict"] == "escalate" else None
        )


@pytest.mark.parametrize("case", LIVE[::8], ids=str)  # each starts an interpreter
def test_offline_check_decides_as_the_server_does(case: Case, site: Site) -> None:
    """`authz-server check` and the server give one decision for the same bytes."""
    request = casebook.check_request(case, site.world)
    before = site.ledger.last()
    site.check(request)
    live = recorded(site, before).document
    command = [sys.executable, "-m", "authz_server", "check", "--binary"]
    command += ["--config", str(site.directory / "authz.yaml")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AUTHZ_")}
    done = subprocess.run(  # noqa: PLW1510
        command, input=request, capture_output=True, env=environment, timeout=60
    )
    assert done.returncode == (0 if live["verdict"] == "allow" else 1), done.stderr
    offline = json.loads(done.stdout)
    # The live decision has an identity, a time, a cost, and where it escalates a ticket.
    for document in (offline, live):
        for member in ("decision_id", "time", "duration_us", "access_request"):
            document.pop(member)
    assert offline == live


def test_certificate_encoding_is_the_one_envoy_uses(site: Site) -> None:
    """The harness's spelling of a certificate is the real one, or half of this proves nothing."""
    case = casebook.cases()[0]
    request = auth.CheckRequest.FromString(casebook.check_request(case, site.world))
    pem = site.world.svid("agent/assistant").leaf.public_bytes(Encoding.PEM).decode()
    assert "%0A" in request.attributes.source.certificate
    assert len(request.attributes.source.certificate) > len(pem)
    before = site.ledger.last()
    through_envoy(site, case)
    principal = recorded(site, before).document["principal"]
    before = site.ledger.last()
    site.check(casebook.check_request(case, site.world))
    assert recorded(site, before).document["principal"] == principal
