"""A site where nothing about identity is in files: SPIRE, a PDP, an Envoy, and a workload.

PDP and Envoy are attested by SPIRE, take their SVIDs and bundles from its agent, and speak mutual
TLS with one another. The test's own process is registered too, under the ids a test asks for.
"""

import http.client
import json
import random
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import yaml
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import WorkloadApiClient, X509Svid
from spiffe.errors import PySpiffeError

from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.agent.svid import Svid
from authz_server.core.attributes import Protocol
from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.demo.processes import ChildProcess, ProcessGroup
from authz_server.demo.spire import Entry, Federation, Spire, SpirePlan
from authz_server.demo.workload_program import (
    PYTHON_ENVIRONMENT,
    envoy_for,
    own_program,
    python_for,
)
from authz_server.envoy_config.binary import envoy_binary
from authz_server.envoy_config.bootstrap import render_bootstrap
from authz_server.envoy_config.enforcement_point import EnforcementPoint, PdpTls, SvidFromAgent
from authz_server.identity.own_svid import OwnSvid
from authz_server.settings.addresses import TcpAddress
from tests.e2e.attack_mesh import Ledger
from tests.e2e.recorder import Recorder, recording_workload
from tests.e2e.waiting import until
from tests.spire.programs import spire_or_skip

DOMAIN = TrustDomain.parse("mesh.example")
PARTNER = TrustDomain.parse("partner.example")
HOST = "tool.example"
PDP_NAME = "pdp.example"
AUDIENCE = f"https://{HOST}"
PDP_PORT, ADMIN_PORT, ENVOY_PORT = 9191, 9192, 10443

_MODEL = """\
[request_definition]
r = sub, obj

[policy_definition]
p = id, kind, eft

[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))

[matchers]
m = r.sub.kind == p.kind
"""


def workload(path: str, domain: TrustDomain = DOMAIN) -> SpiffeId:
    """Return the id of the workload at `path`."""
    return SpiffeId.parse(domain.uri + path)


PDP, TOOL, ENVOY = workload("/pdp"), workload("/tool/recorder"), workload("/envoy/recorder")
CALLER, OTHER = workload("/agent/caller"), workload("/agent/other")


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan:
    """What a test wants of a site; times in seconds."""

    own_ids: Sequence[SpiffeId] = (CALLER,)  # of the test's own process
    svid_s: int = 3600
    connection_age_s: int = 600
    bundle_age_s: int = 3600
    federates_with: tuple[TrustDomain, ...] = ()
    endpoints: Sequence[dict[str, object]] = ()
    envoy_id: SpiffeId = ENVOY
    envoy_expects: SpiffeId = PDP


class Site:
    """A running site."""

    def __init__(
        self, directory: Path, spire: Spire, plan: SitePlan, group: ProcessGroup, tool: Recorder
    ) -> None:
        self.directory = directory
        self.spire = spire
        self.plan = plan
        self.group = group
        self.tool = tool
        self.host = spire.plan.host
        self.ledger = Ledger(directory / "ledger.db")
        self.issuer = DevelopmentIssuer.create(
            issuer="https://sts.mesh.example", trust_domain=DOMAIN
        )
        self.entries: dict[str, str] = {}
        self._programs = directory / "programs"

    # --- parts ---------------------------------------------------------------------------------

    def register(self) -> None:
        """Register the PDP, the Envoy and the test."""
        plan = self.plan
        envoy = envoy_for("envoy", envoy_binary(), self._programs)
        python = python_for("pdp", self._programs)
        ids = [(PDP, python), (TOOL, envoy), (plan.envoy_id, envoy)]
        ids += [(own, own_program()) for own in plan.own_ids]
        entries = [
            Entry(
                spiffe_id=spiffe_id,
                program=program,
                svid_s=plan.svid_s,
                federates_with=plan.federates_with,
                # For gRPC clients in Python, which know no SPIFFE IDs.
                dns_names=(PDP_NAME,) if spiffe_id == PDP else (),
            )
            for spiffe_id, program in ids
        ]
        created = self.spire.register(entries)
        self.entries = {str(e.spiffe_id): id_ for e, id_ in zip(entries, created, strict=True)}

    def start_pdp(self) -> ChildProcess:
        """Start the PDP and wait until it is ready."""
        self._write_pdp_files()
        python = python_for("pdp", self._programs)
        argv: list[str | Path] = [python, "-m", "authz_server", "serve"]
        argv += ["--config", self.directory / "authz.yaml", "--lame-duck", "0"]
        pdp = self.group.start("pdp", argv, environment=PYTHON_ENVIRONMENT)
        pdp.wait_until(lambda: self.ready() is True, what="readiness")
        return pdp

    def start_envoy(self) -> ChildProcess:
        """Start the Envoy and wait until it listens."""
        (self.directory / "envoy.json").write_text(
            render_bootstrap([self._point()], node="envoy", admin_socket=None)
        )
        program = envoy_for("envoy", envoy_binary(), self._programs)
        argv: list[str | Path] = [program, "--config-path", self.directory / "envoy.json"]
        argv += ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
        envoy = self.group.start("envoy", argv)
        envoy.wait_until(lambda: _listens(self.host, ENVOY_PORT), what="listening")
        return envoy

    def _point(self) -> EnforcementPoint:
        agent = self.spire.plan.agent_socket
        return EnforcementPoint(
            name="recorder",
            listen=TcpAddress(self.host, ENVOY_PORT),
            upstream=TcpAddress("127.0.0.1", self.tool.port),
            protocol=Protocol.HTTP,
            workload_id=TOOL,
            audience=AUDIENCE,
            bundle="default",
            domains=(HOST,),
            require_delegation=False,
            pdp=(TcpAddress(self.host, PDP_PORT),),
            pdp_timeout_s=5.0,  # a busy test machine must not turn a verdict into a timeout
            pdp_tls=PdpTls(
                spiffe_id=self.plan.envoy_expects,
                svid=SvidFromAgent(agent=agent, spiffe_id=self.plan.envoy_id),
            ),
            svid=SvidFromAgent(agent=agent, spiffe_id=TOOL),
        )

    def _write_pdp_files(self) -> None:
        bundle = self.directory / "bundles" / "default"
        bundle.mkdir(parents=True, exist_ok=True)
        (bundle / "model.conf").write_text(_MODEL)
        (bundle / "policy.csv").write_text("p, agents, agent, allow\n")
        about = {"name": "default", "domain": "application", "parties": ["caller"]}
        (bundle / "bundle.yaml").write_text(
            yaml.safe_dump(about | {"description": "agents may", "owner": "tests"})
        )
        entries = [
            {"id": f"{domain.uri}/agent/*", "kind": "agent", "owner": "team-tests"}
            for domain in (DOMAIN, PARTNER)
        ]
        identities = self.directory / "identities.yaml"
        identities.write_text(yaml.safe_dump({"identities": entries}))
        (self.directory / "sts.jwks.json").write_text(self.issuer.jwks())
        (self.directory / "authz.yaml").write_text(yaml.safe_dump(self._configuration()))

    def _configuration(self) -> dict[str, object]:
        issuer = {"issuer": self.issuer.issuer, "jwks_file": "sts.jwks.json"}
        return {
            "trust_domain": str(DOMAIN),
            "listen": {
                "grpc": f"{self.host}:{PDP_PORT}",
                "http": f"{self.host}:{ADMIN_PORT}",
            },
            "tls": {
                "mode": "workload_api",
                "allowed_clients": [f"{DOMAIN.uri}/envoy/*"],
                "max_connection_age_s": self.plan.connection_age_s,
            },
            "identity": {
                "trust_bundles": {
                    "source": "workload_api",
                    "socket": f"unix://{self.spire.plan.agent_socket}",
                    "max_age_s": self.plan.bundle_age_s,
                    "endpoints": list(self.plan.endpoints),
                },
                "inventory": "identities.yaml",
            },
            "delegation": {"issuers": [issuer], "require": False},
            "bundles": {"dir": "bundles"},
            "ledger": {"url": "sqlite:///ledger.db"},
        }

    # --- what a test asks and sees -------------------------------------------------------------

    def ready(self) -> bool | list[str]:
        """Return True, or what `/readyz` says against it; an empty list when nobody answers."""
        connection = http.client.HTTPConnection(self.host, ADMIN_PORT, timeout=5)
        try:
            connection.request("GET", "/readyz")
            page = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException):
            return []
        finally:
            connection.close()
        return True if page["ready"] else [str(reason) for reason in page["why_not"]]

    def events(self, name: str) -> list[dict[str, object]]:
        """Return what the PDP has logged under `name`."""
        lines = (self.directory / "pdp.log").read_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in events if event["event"] == name]

    def replace_authority(self) -> str:
        """Let SPIRE sign with a new key, have every SVID renewed, and return the old key's id."""
        local, as_json = ("localauthority", "x509"), ("-output", "json")
        old = json.loads(self.spire.command(*local, "show", *as_json))["active"]["authority_id"]
        made = json.loads(self.spire.command(*local, "prepare", *as_json))
        new = made["prepared_authority"]["authority_id"]
        self.spire.command(*local, "activate", "-authorityID", new)
        # A tainted authority is still in the bundle; agents renew what it has signed.
        self.spire.command(*local, "taint", "-authorityID", old)
        return str(old)

    def revoke_authority(self, authority: str) -> None:
        """Take a replaced key out of the bundle."""
        self.spire.command("localauthority", "x509", "revoke", "-authorityID", authority)

    def svid(self, spiffe_id: SpiffeId = CALLER, agent: Path | None = None) -> OwnSvid:
        """Return the present SVID of one of the test's own ids, waiting for the agent."""
        found: list[OwnSvid] = []

        def fetched() -> bool:
            found[:] = [svid for svid in self.svids(agent) if svid.spiffe_id == spiffe_id]
            return bool(found)

        until(fetched, f"an SVID for {spiffe_id}")
        return found[0]

    def svids(self, agent: Path | None = None) -> list[OwnSvid]:
        """Return every SVID the agent has for this process now."""
        try:
            with WorkloadApiClient(f"unix://{agent or self.spire.plan.agent_socket}") as client:
                svids = client.fetch_x509_svids(timeout=5)
        except PySpiffeError:
            return []
        return [_own(svid) for svid in svids]

    def bundle_pem(self) -> bytes:
        """Return the authorities of the site's own trust domain, as the agent has them now."""
        with WorkloadApiClient(f"unix://{self.spire.plan.agent_socket}") as client:
            bundles = client.fetch_x509_bundles(timeout=5).bundles
        own = next(bundle for bundle in bundles if bundle.trust_domain.name == DOMAIN.name)
        return b"".join(a.public_bytes(Encoding.PEM) for a in own.x509_authorities)

    @contextmanager
    def pdp_channel(self, svid: OwnSvid | None) -> Iterator[grpc.Channel]:
        """Open a channel to the PDP past the Envoy; without `svid` in plaintext."""
        target = f"{self.host}:{PDP_PORT}"
        if svid is None:
            channel = grpc.insecure_channel(target)
        else:
            credentials = grpc.ssl_channel_credentials(
                self.bundle_pem(), svid.key_pem, svid.chain_pem
            )
            name = (("grpc.ssl_target_name_override", PDP_NAME),)
            channel = grpc.secure_channel(target, credentials, options=name)
        with channel:
            yield channel

    def context(self, svid: OwnSvid) -> ssl.SSLContext:
        """Return a client context with `svid`. The server is not checked."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with tempfile.NamedTemporaryFile(dir=self.directory) as file:
            file.write(svid.chain_pem + svid.key_pem)
            file.flush()
            context.load_cert_chain(file.name)
        return context

    def ask(self, svid: OwnSvid | None = None, headers: dict[str, str] | None = None) -> str:
        """Send a request through the Envoy; return `allow`, `deny REASON` or `reject STATUS`."""
        context = self.context(svid or self.svid())
        connection = http.client.HTTPSConnection(self.host, ENVOY_PORT, context=context, timeout=15)
        try:
            connection.request("GET", "/x", headers={"Host": HOST, **(headers or {})})
            response = connection.getresponse()
            return outcome(response.status, response.read())
        except (OSError, http.client.HTTPException):
            return "refuse"
        finally:
            connection.close()


def outcome(status: int, body: bytes) -> str:
    """Name an answer: `allow`, `deny REASON`, or `reject STATUS` when the PDP did not say it."""
    if status == http.HTTPStatus.OK:
        return "allow"
    try:
        problem = json.loads(body)
        return f"{problem['verdict']} {problem['reason']}"
    except (ValueError, KeyError):
        return f"reject {status}"


def agent_svid(svid: OwnSvid) -> Svid:
    """Return `svid` as the agent library takes it."""
    return Svid.parse(svid.chain_pem, svid.key_pem)


@contextmanager
def running_site(
    plan: SitePlan,
    *,
    federation: tuple[Federation, ...] = (),
    introduce: Callable[[Site], None] = lambda _site: None,
) -> Iterator[Site]:
    """Run a whole site. Skips where there is no SPIRE.

    `introduce` is called once the SPIRE server runs, before anyone is registered.
    """
    programs = spire_or_skip()
    # Not `tmp_path`: the path of a Unix socket holds 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="spire-", ignore_cleanup_errors=True) as name,
        recording_workload() as tool,
        ProcessGroup(Path(name)) as group,
    ):
        directory = Path(name)
        spire = Spire(
            SpirePlan(
                trust_domain=DOMAIN,
                directory=directory / "spire",
                sockets=directory,
                host=own_loopback(),
                server_port=8081,
                bundle_port=8443,
                federation=federation,
            ),
            programs,
            group,
        )
        spire.start_server()
        site = Site(directory, spire, plan, group, tool)
        introduce(site)
        site.register()
        spire.start_agent()
        site.start_pdp()
        site.start_envoy()
        yield site


def own_loopback() -> str:
    """Return a loopback address that nobody else uses, so that ports can be fixed."""
    chosen = random.SystemRandom()
    return f"127.{chosen.randint(1, 254)}.{chosen.randint(0, 255)}.{chosen.randint(1, 254)}"


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def _own(svid: X509Svid) -> OwnSvid:
    chain = b"".join(c.public_bytes(Encoding.PEM) for c in svid.cert_chain)
    key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return OwnSvid.from_pem(chain, key)
