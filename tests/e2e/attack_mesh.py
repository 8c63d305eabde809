"""The mesh under attack: a real PDP, two real Envoys, a recording workload, and all the keys."""

import json
import sqlite3
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import yaml
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from authz_server.demo.processes import ChildProcess, ProcessGroup
from authz_server.envoy_config.enforcement_point import SvidFiles, SvidFromAgent
from authz_server.settings.addresses import UnixAddress
from tests.e2e import envoy_profiles
from tests.e2e.envoy_profiles import RunningEnvoy, Surroundings, start_envoy
from tests.e2e.forge import ISSUER, TRUST_DOMAIN, Forge, Svid, spiffe
from tests.e2e.recorder import Recorder, recording_workload

CALLERS = ("narrow", "wide")
PROFILES = ("hardened", "default")
PDP_TIMEOUT_S = 5.0  # a busy test machine must not turn a verdict into a timeout

MODEL = """\
[request_definition]
r = sub, chain, act, obj, env

[policy_definition]
p = id, sub, host, path, eft

[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))

[matchers]
m = (p.sub == "*" || r.sub.id == p.sub) && (p.host == "*" || r.obj.host == p.host) && \\
    (p.path == "*" || keyMatch(r.obj.path, p.path))
"""

# `narrow` lives on an allow-list, `wide` on a deny-list: a trick has to get past both kinds.
POLICY = f"""\
p, narrow-public, {spiffe("agent/narrow")}, *, /public/*, allow
p, wide-all, {spiffe("agent/wide")}, *, *, allow
p, nobody-admin, *, *, /admin*, deny
p, nobody-admin-host, *, admin.example, /*, deny
"""

# Tools behind `mcp` and orders behind `rest`: deny-lists for `wide`, allow-lists for `narrow`.
BODY_MODEL = """\
[request_definition]
r = sub, act, obj

[policy_definition]
p = id, sub, act, tool, rule, eft

[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))

[matchers]
m = (p.sub == "*" || r.sub.id == p.sub) && (p.act == "*" || r.act.name == p.act) && \\
    (p.tool == "*" || r.obj.tool == p.tool) && eval(p.rule)
"""
TOOLS = f"""\
p, narrow-read, {spiffe("agent/narrow")}, tools/call, read_file, true, allow
p, narrow-list, {spiffe("agent/narrow")}, tools/list, *, true, allow
p, wide-all, {spiffe("agent/wide")}, *, *, true, allow
p, nobody-deletes, *, *, delete_all, true, deny
p, nobody-secret, *, *, *, "r.obj.args.path == '/secret'", deny
"""
ORDERS = f"""\
p, narrow-small, {spiffe("agent/narrow")}, POST, *, r.obj.args.amount <= 100, allow
p, wide-all, {spiffe("agent/wide")}, *, *, true, allow
p, nobody-large, *, *, *, r.obj.args.amount > 1000, deny
p, nobody-mallory, *, *, *, "r.obj.args.payee == 'mallory'", deny
"""
ORDERS_ARGUMENTS = {"amount": "/order/amount", "payee": "/order/payee"}

BUNDLE = {
    "name": "default",
    "domain": "application",
    "description": "what the attack suite tries to get past",
    "parties": ["caller"],
    "owner": "tests",
}

IDENTITIES = {
    "identities": [
        {"id": spiffe(f"agent/{name}"), "kind": "agent", "owner": "team-tests"}
        for name in (*CALLERS, "other")
    ]
    + [{"id": spiffe("proxy/*"), "kind": "proxy", "owner": "team-tests"}]
}


@dataclass(frozen=True, slots=True)
class Record:
    """What the ledger holds of one decision."""

    decision_id: str
    document: dict[str, object]

    @property
    def outcome(self) -> str:
        """`allow`, or `deny REASON`."""
        verdict = str(self.document["verdict"])
        return verdict if verdict == "allow" else f"{verdict} {self.document['reason']}"


class Ledger:
    """The PDP's database, read from outside while it runs."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def last(self) -> int:
        """Return the sequence number of the newest record."""
        with closing(self._connect()) as database:
            (seq,) = database.execute("SELECT coalesce(max(seq), 0) FROM decisions").fetchone()
            return int(seq)

    def since(self, seq: int) -> list[Record]:
        """Return the records after `seq`, oldest first."""
        with closing(self._connect()) as database:
            rows = database.execute(
                "SELECT decision_id, record FROM decisions WHERE seq > ? ORDER BY seq", (seq,)
            ).fetchall()
        return [Record(decision_id, json.loads(text)) for decision_id, text in rows]

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTrust:
    """A source of trust: how it starts, and how the PDP and the hardened Envoy take part in it."""

    start: Callable[[Forge, ProcessGroup], None]
    python: Path
    environment: Mapping[str, str]
    svid: SvidFromAgent


@dataclass(slots=True)
class Mesh:
    """Everything that runs, and the keys to it."""

    directory: Path
    group: ProcessGroup
    forge: Forge
    workload: Recorder
    pdp_address: UnixAddress
    ledger: Ledger
    pdp: ChildProcess
    live: LiveTrust | None = None
    envoys: dict[str, RunningEnvoy] = field(default_factory=dict)
    _svids: dict[str, Svid] = field(default_factory=dict)
    _contexts: dict[str, ssl.SSLContext] = field(default_factory=dict)

    def svid(self, caller: str) -> Svid:
        """Return the SVID of `agent/<caller>`."""
        if caller not in self._svids:
            self._svids[caller] = self.forge.authority.issue(spiffe(f"agent/{caller}"))
        return self._svids[caller]

    def tls(self, caller: str) -> ssl.SSLContext:
        """Return a client context with that SVID."""
        if caller not in self._contexts:
            self._contexts[caller] = self.tls_with(self.svid(caller), caller)
        return self._contexts[caller]

    def tls_with(self, svid: Svid | None, name: str) -> ssl.SSLContext:
        """Return a client context with any certificate, or none. The server is not checked."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if svid is not None:
            context.load_cert_chain(*write_svid(svid, self.directory, f"client-{name}"))
        return context

    def start_pdp(self) -> None:
        """Start the PDP, again if it was killed, and return once it serves."""
        self.pdp = _start_pdp(self.directory, self.group, self.live)


def write_svid(svid: Svid, directory: Path, name: str) -> tuple[Path, Path]:
    """Write certificate and key as PEM files and return their paths."""
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    certificate.write_bytes(svid.certificate_pem)
    key.write_bytes(svid.key_pem)
    key.chmod(0o600)
    return certificate, key


@contextmanager
def running_mesh(
    directory: Path,
    *,
    pdp_timeout_s: float = PDP_TIMEOUT_S,
    profiles: Sequence[str] = PROFILES,
    identity: Mapping[str, object] | None = None,
    files: Mapping[str, bytes] | None = None,
    live: LiveTrust | None = None,
    modes: Mapping[str, str] | None = None,
) -> Iterator[Mesh]:
    """Run a mesh below `directory`, which must have a short path: it holds Unix sockets.

    `identity` are further keys of that section of the PDP's configuration, `files` what they name.
    `live` is where trust comes from that is in no file, `modes` how bundles are applied.
    """
    forge = Forge()
    for name, content in (files or {}).items():
        (directory / name).write_bytes(content)
    _write_pdp_files(directory, forge, identity or {})
    set_modes(directory, modes or {})
    with recording_workload() as workload, ProcessGroup(directory) as group:
        if live is not None:
            live.start(forge, group)
        mesh = Mesh(
            directory=directory,
            group=group,
            forge=forge,
            workload=workload,
            pdp_address=UnixAddress(directory / "pdp.sock"),
            ledger=Ledger(directory / "ledger.db"),
            pdp=_start_pdp(directory, group, live),
            live=live,
        )
        for profile in profiles:
            tree = getattr(envoy_profiles, profile)(surroundings(mesh, profile, pdp_timeout_s))
            mesh.envoys[profile] = start_envoy(tree, profile, directory, group)
        yield mesh


def surroundings(mesh: Mesh, profile: str, pdp_timeout_s: float) -> Surroundings:
    """Return what an Envoy named `profile` needs, its SVID written to disk."""
    # A name for gRPC clients, which know no SPIFFE IDs.
    svid = mesh.forge.authority.issue(spiffe("tool/recorder"), x509.DNSName("tool.example"))
    certificate, key = write_svid(svid, mesh.directory, f"envoy-{profile}")
    return Surroundings(
        pdp=mesh.pdp_address,
        workload_port=mesh.workload.port,
        svid=SvidFiles(
            certificate=certificate, private_key=key, trust_bundle=mesh.directory / "trust.pem"
        ),
        svid_from_agent=mesh.live.svid if mesh.live is not None else None,
        admin=mesh.directory / f"{profile}.sock",
        pdp_timeout_s=pdp_timeout_s,
    )


def set_modes(directory: Path, modes: Mapping[str, str]) -> None:
    """Write how bundles are applied into the configuration, for the next start of the PDP."""
    path = directory / "authz.yaml"
    configuration = yaml.safe_load(path.read_text())
    configuration["bundles"]["mode"] = dict(modes)
    path.write_text(yaml.safe_dump(configuration))


def _write_pdp_files(directory: Path, forge: Forge, identity: Mapping[str, object]) -> None:
    _write_bundle(directory, "default", MODEL, POLICY)
    _write_bundle(directory, "tools", BODY_MODEL, TOOLS)
    _write_bundle(directory, "orders", BODY_MODEL, ORDERS, arguments=ORDERS_ARGUMENTS)
    (directory / "identities.yaml").write_text(yaml.safe_dump(IDENTITIES))
    (directory / "trust.pem").write_bytes(forge.authority.pem)
    (directory / "sts.jwks.json").write_bytes(forge.jwks)
    configuration = _configuration(directory, identity)
    (directory / "authz.yaml").write_text(yaml.safe_dump(configuration))


def _write_bundle(directory: Path, name: str, model: str, policy: str, **more: object) -> None:
    bundle = directory / "bundles" / name
    bundle.mkdir(parents=True)
    (bundle / "model.conf").write_text(model)
    (bundle / "policy.csv").write_text(policy)
    (bundle / "bundle.yaml").write_text(yaml.safe_dump(BUNDLE | {"name": name} | more))


def _configuration(directory: Path, identity: Mapping[str, object]) -> dict[str, object]:
    issuer = {"issuer": ISSUER, "jwks_file": "sts.jwks.json", "algorithms": ["ES256"]}
    return {
        "trust_domain": TRUST_DOMAIN,
        "listen": {"grpc": f"unix://{directory}/pdp.sock", "http": "127.0.0.1:0"},
        "identity": {
            "trust_bundles": {"source": "files", "files": {TRUST_DOMAIN: "trust.pem"}},
            "inventory": "identities.yaml",
            **identity,
        },
        "delegation": {"issuers": [issuer], "require": False},
        "bundles": {"dir": "bundles"},
        "ledger": {"url": "sqlite:///ledger.db"},
    }


def _start_pdp(directory: Path, group: ProcessGroup, live: LiveTrust | None = None) -> ChildProcess:
    python = live.python if live is not None else sys.executable
    command: list[str | Path] = [python, "-m", "authz_server", "serve"]
    command += ["--config", directory / "authz.yaml", "--lame-duck", "0"]
    process = group.start("pdp", command, environment=live.environment if live else None)
    process.wait_until(lambda: _serving(directory / "pdp.sock"), what="SERVING")
    return process


def _serving(pdp_socket: Path) -> bool:
    with grpc.insecure_channel(f"unix:{pdp_socket}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        try:
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
