"""Start a whole mesh on this machine, and stop it: services, an Envoy before each, and the PDP.

    with Mesh.start(directory, plan) as mesh:
        outcome = await mesh.agent("/agent/research").perform(call, headers)
        assert mesh.visits("crm") == []

Nothing here decides anything; it is the plumbing that an operator's platform would provide.
"""

import http.client
import json
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.agent.svid import Svid
from authz_server.demo.agent_calls import AgentRuntime
from authz_server.demo.identities import IssuedIdentity, MeshIdentity
from authz_server.demo.layout import Layout, make_layout
from authz_server.demo.mesh_client import Endpoint
from authz_server.demo.pdp_files import HTTP_PORT, write_pdp_files
from authz_server.demo.plan import MeshPlan, Service
from authz_server.demo.processes import ChildProcess, ProcessGroup
from authz_server.demo.services.journal import Visit, read_journal
from authz_server.demo.spire_identity import SpireIdentity
from authz_server.demo.spire_programs import SpirePrograms
from authz_server.demo.token_exchange import (
    GRANT_TYPE,
    ID_TOKEN,
    TXN_TOKEN,
    SignIn,
    TokenExchange,
    ask,
    serving,
)
from authz_server.envoy_config.binary import envoy_binary
from authz_server.envoy_config.bootstrap import render_bootstrap
from authz_server.envoy_config.enforcement_point import EnforcementPoint
from authz_server.settings.addresses import TcpAddress, UnixAddress

_FIRST_PORT = 10_443
_STS_PATH = "/service/sts"
# Nine processes on perhaps two cores: a decision may wait for its turn longer than in production.
_PDP_TIMEOUT_S = 2.0
_PROBE_TIMEOUT_S = 2.0


class Mesh:
    """A running mesh. Made by `Mesh.start` only."""

    def __init__(
        self, layout: Layout, plan: MeshPlan, processes: ProcessGroup, identity: MeshIdentity
    ) -> None:
        self.layout = layout
        self.plan = plan
        self._identity = identity
        self.issuer = DevelopmentIssuer.create(
            issuer=f"https://sts.{plan.trust_domain}", trust_domain=plan.trust_domain
        )
        self._sign_in = SignIn(
            issuer=f"https://login.{plan.trust_domain}",
            audience=self.issuer.issuer,
            key=ec.generate_private_key(ec.SECP256R1()),
        )
        self._sts = ""
        self._processes = processes
        self._pdp: ChildProcess | None = None

    @classmethod
    @contextmanager
    def start(
        cls,
        root: Path,
        plan: MeshPlan,
        *,
        spire: SpirePrograms | None = None,
        progress: Callable[[str], None] = lambda _line: None,
    ) -> Iterator["Mesh"]:
        """Start everything `plan` names below directory `root`, and stop it at the end.

        With `spire` every identity comes from a SPIRE that is started too, else from an authority
        in memory. `progress` is told what is being waited for. Raises `ProcessFailedError` with
        the log of the part that failed, and `EnvoyMissingError`.
        """
        envoy = envoy_binary()
        with make_layout(root) as layout, ProcessGroup(layout.logs) as processes:
            identity: MeshIdentity = IssuedIdentity(layout, plan)
            if spire is not None:
                identity = SpireIdentity(layout, plan, spire, processes)
            mesh = cls(layout, plan, processes, identity)
            progress("starting SPIRE" if spire else "issuing X509-SVIDs")
            identity.start()
            progress("writing configuration")
            mesh._write_files()
            progress("starting the PDP, the services and an Envoy before each")
            started = [mesh._start_envoy(envoy, service) for service in plan.services]
            mesh.start_pdp()
            started += [mesh._start_service(service) for service in plan.services]
            for wait in started:
                wait()
            mesh.await_pdp()
            with mesh._serving_sts():
                yield mesh

    def svid(self, workload: str) -> Svid:
        """Return the SVID of the workload at path `workload`, issued and written at first use."""
        return self._identity.svid(workload)

    def exchange(
        self, agent: str, subject: str, *, scope: Collection[str], purpose: str | None, hops: int
    ) -> str:
        """Return the `Txn-Token` that the agent at path `agent` is given for a person's token.

        Raises `ExchangeRefusedError`.
        """
        self.svid(agent)
        details = {"dlg": hops} | ({"purpose": purpose} if purpose else {})
        form = {
            "grant_type": GRANT_TYPE,
            "subject_token": self._sign_in.person_token(subject, now=int(time.time())),
            "subject_token_type": ID_TOKEN,
            "requested_token_type": TXN_TOKEN,
            "scope": " ".join(scope),
            "request_details": json.dumps(details),
        }
        return ask(self._sts, self.layout.svid(agent), form, service=self.plan.spiffe_id(_STS_PATH))

    def agent(self, workload: str) -> AgentRuntime:
        """Return the means of acting as the workload at path `workload`, registered or not."""
        self.svid(workload)
        return AgentRuntime(self.layout.svid(workload), self.layout.services)

    def endpoint(self, name: str) -> Endpoint:
        """Return where the Envoy in front of service `name` listens."""
        return self.layout.services.find(self.service(name).host)

    def service(self, name: str) -> Service:
        """Return the service of that name."""
        return next(service for service in self.plan.services if service.name == name)

    def visits(self, name: str) -> list[Visit]:
        """Return every request that reached service `name`, oldest first."""
        return read_journal(self.layout.journal(name))

    # --- the PDP -------------------------------------------------------------------------------

    def start_pdp(self) -> None:
        """Start the PDP; `await_pdp` waits until it answers."""
        python = self._identity.python("pdp")
        argv: list[str | Path] = [python.path, "-m", "authz_server", "serve", "--lame-duck", "0"]
        argv += ["--config", self.layout.configuration]
        self._pdp = self._processes.start("pdp", argv, environment=python.environment)

    def await_pdp(self) -> None:
        """Return once the PDP says that it is ready."""
        assert self._pdp is not None, "start_pdp comes first"
        self._pdp.wait_until(lambda: self.pdp_page("/readyz")[0] == HTTPStatus.OK, what="readiness")

    def kill_pdp(self) -> None:
        """End the PDP at once, without a chance to answer what it is working on."""
        assert self._pdp is not None, "start_pdp comes first"
        self._pdp.kill()

    def pdp_page(self, path: str) -> tuple[int, str]:
        """Return status and body of a page of the PDP's HTTP port; status 0 if nobody answers."""
        host = self.layout.loopback
        return _page(http.client.HTTPConnection(host, HTTP_PORT, timeout=_PROBE_TIMEOUT_S), path)

    @contextmanager
    def _serving_sts(self) -> Iterator[None]:
        self.svid(_STS_PATH)
        exchange = TokenExchange(issuer=self.issuer, sign_in=self._sign_in)
        svid = self.layout.svid(_STS_PATH)
        with serving(exchange, self.layout.loopback, svid, lambda: int(time.time())) as url:
            self._sts = url
            yield

    # --- parts ---------------------------------------------------------------------------------

    def _write_files(self) -> None:
        write_pdp_files(
            self.layout,
            self.plan,
            identity={"grpc": str(self._identity.pdp), **self._identity.pdp_settings()},
            issuer=self.issuer.issuer,
            jwks=self.issuer.jwks(),
        )
        for service in self.plan.services:
            bootstrap = render_bootstrap(
                [self._point(service)],
                node=f"envoy-{service.name}",
                admin_socket=self.layout.socket(f"admin-{service.name}"),
            )
            self.layout.envoy(service.name).write_text(bootstrap)
        self.layout.services.publish(
            {service.host: self._endpoint(service) for service in self.plan.services}
        )

    def _endpoint(self, service: Service) -> Endpoint:
        return Endpoint(
            host=self.layout.loopback,
            port=_FIRST_PORT + self.plan.services.index(service),
            spiffe_id=str(self.plan.spiffe_id(service.workload)),
        )

    def _point(self, service: Service) -> EnforcementPoint:
        """Return the enforcement point of `service`; it proves itself as the service it guards."""
        endpoint = self._endpoint(service)
        return EnforcementPoint(
            name=service.name,
            listen=TcpAddress(endpoint.host, endpoint.port),
            upstream=UnixAddress(self.layout.socket(service.name)),
            protocol=service.protocol,
            workload_id=self.plan.spiffe_id(service.workload),
            audience=service.audience,
            bundle=service.bundle,
            resource=service.resource,
            labels=service.labels,
            domains=(service.host,),
            strip_delegation=service.strip_delegation,
            pdp=(self._identity.pdp,),
            pdp_timeout_s=_PDP_TIMEOUT_S,
            pdp_tls=self._identity.pdp_tls(service),
            svid=self._identity.envoy_svid(service),
            access_log=self.layout.access_log(service.name),
        )

    def _start_envoy(self, envoy: Path, service: Service) -> Callable[[], None]:
        name = f"envoy-{service.name}"
        program = self._identity.envoy(service, envoy)
        argv: list[str | Path] = [program, "--config-path", self.layout.envoy(service.name)]
        # Hot restart shares memory between Envoys of one machine; these have nothing to share.
        argv += ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
        child = self._processes.start(name, argv)
        admin = self.layout.socket(f"admin-{service.name}")
        return lambda: child.wait_until(lambda: _envoy_ready(admin), what="readiness")

    def _start_service(self, service: Service) -> Callable[[], None]:
        path = self.layout.socket(service.name)
        python = self._identity.python(service.name)
        argv: Sequence[str | Path] = [
            *(python.path, "-m", service.module),
            *("--socket", path),
            *("--journal", self.layout.journal(service.name)),
            *("--svid", self.layout.svid(service.workload)),
            *("--directory", self.layout.services.path),
            *python.arguments,
        ]
        child = self._processes.start(service.name, argv, environment=python.environment)
        return lambda: child.wait_until(lambda: _listens(path), what="listening")


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket (httpcore2 2.16 leaks the socket of a connection refused)."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_PROBE_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_PROBE_TIMEOUT_S)
        self.sock.connect(str(self._path))


def _page(connection: http.client.HTTPConnection, path: str) -> tuple[int, str]:
    """Return status and body of a page; status 0 when nobody answers."""
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def _envoy_ready(admin: Path) -> bool:
    """Tell whether Envoy has bound its listeners."""
    return _page(_UnixConnection(admin), "/ready")[0] == HTTPStatus.OK


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0
