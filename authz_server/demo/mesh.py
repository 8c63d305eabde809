"""Start a whole mesh on this machine, and stop it: services, an Envoy before each, and the PDP.

    with Mesh.start(directory, plan) as mesh:
        outcome = await mesh.agent("/agent/research").perform(call, headers)
        assert mesh.visits("crm") == []

Nothing here decides anything; it is the plumbing that an operator's platform would provide.
"""

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.agent.received import Delegation
from authz_server.agent.svid import Svid
from authz_server.agent.tunnel_files import leave_delegation
from authz_server.demo.agent_calls import AgentRuntime
from authz_server.demo.envoy_files import write_envoy_files
from authz_server.demo.identities import IssuedIdentity, MeshIdentity
from authz_server.demo.layout import Layout, make_layout
from authz_server.demo.mesh_client import Endpoint
from authz_server.demo.pdp_files import http_address, write_pdp_files
from authz_server.demo.plan import MeshPlan, Service
from authz_server.demo.probes import envoy_ready, listens, page
from authz_server.demo.processes import (
    READY_TIMEOUT_S,
    ChildProcess,
    ProcessFailedError,
    ProcessGroup,
)
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
from authz_server.demo.ways_out import LocalPort, delegation_directory, local_ports
from authz_server.envoy_config.binary import envoy_binary

_STS_PATH = "/service/sts"
_POLL_S = 0.05


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
        self._pdps: dict[int, ChildProcess] = {}

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
            replicas = range(plan.replicas)
            for replica in replicas:
                mesh.start_pdp(replica)
            started = [mesh._start_service(s, s.module) for s in plan.services if s.module]
            # Before Envoys that probe: one that finds nobody looks again only after a while.
            for replica in replicas:
                mesh.await_pdp(replica)
            started += [
                mesh._start_envoy(service.name, mesh._identity.envoy(service, envoy))
                for service in plan.services
            ]
            started += [mesh._start_envoy(way.name, envoy) for way in plan.ways_out]
            for wait in started:
                wait()
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

    def local_ports(self) -> list[LocalPort]:
        """Return the ports of the outbound Envoys."""
        return local_ports(self.layout, self.plan)

    def leave_delegation(self, port: LocalPort, delegation: Delegation | None) -> None:
        """Make `delegation` that of the connections by `port`, a TCP one, from shortly after on."""
        (service,) = port.services
        leave_delegation(delegation_directory(self.layout, port.way, service), delegation)

    def service(self, name: str) -> Service:
        """Return the service of that name."""
        return next(service for service in self.plan.services if service.name == name)

    def visits(self, name: str) -> list[Visit]:
        """Return every request that reached service `name`, oldest first."""
        return read_journal(self.layout.journal(name))

    def connections(self, name: str) -> int:
        """Return how often Envoy has connected to what stands behind service `name`."""
        _, lines = page(
            self.layout.admin(name), "/stats?usedonly&filter=_upstream.upstream_cx_total"
        )
        return sum(_last_numbers(lines))

    # --- the PDP -------------------------------------------------------------------------------

    def start_pdp(self, replica: int = 0) -> None:
        """Start a replica of the PDP, counted from 0; `await_pdp` waits until it answers."""
        python = self._identity.python("pdp")
        argv: list[str | Path] = [python.path, "-m", "authz_server", "serve", "--lame-duck", "0"]
        argv += ["--config", self.layout.replica_configuration(replica)]
        name = self.layout.replica_configuration(replica).stem.replace("authz", "pdp")
        self._pdps[replica] = self._processes.start(name, argv, environment=python.environment)

    def await_pdp(self, replica: int = 0) -> None:
        """Return once that replica of the PDP says that it is ready."""
        self._pdps[replica].wait_until(
            lambda: self.pdp_page("/readyz", replica)[0] == HTTPStatus.OK, what="readiness"
        )

    def await_all_pdps(self) -> None:
        """Return once every Envoy has every replica among those it asks."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not all(self._asks_all(service.name) for service in self.plan.services):
            if time.monotonic() > deadline:
                raise ProcessFailedError("an Envoy does not ask every replica of the PDP")
            time.sleep(_POLL_S)

    def _asks_all(self, name: str) -> bool:
        stats = "/stats?filter=_pdp.membership_healthy"
        return _last_numbers(page(self.layout.admin(name), stats)[1]) == [self.plan.replicas]

    def missed_probes(self, name: str) -> int:
        """Return how often a PDP did not answer a probe of the Envoy in front of service `name`."""
        stats = "/stats?filter=_pdp.health_check.failure"
        return sum(_last_numbers(page(self.layout.admin(name), stats)[1]))

    def kill_pdp(self, replica: int = 0) -> None:
        """End a PDP at once, without a chance to answer what it is working on."""
        self._pdps[replica].kill()

    def pdp_page(self, path: str, replica: int = 0) -> tuple[int, str]:
        """Return status and body of a page of a PDP's HTTP port; status 0 if nobody answers."""
        return page(http_address(self.layout, replica), path)

    def decisions_by_replica(self) -> list[int]:
        """Return how many decisions each replica has made since it started, from its metrics."""
        return [_decisions(self.pdp_page("/metrics", n)[1]) for n in range(self.plan.replicas)]

    @property
    def ledger(self) -> str:
        """The address of the ledger, as `LedgerReader.open` takes it."""
        return self.plan.ledger or f"sqlite:///{self.layout.ledger}"

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
            listen=self._identity.pdp,
            identity=self._identity.pdp_settings(),
            issuer=self.issuer,
        )
        write_envoy_files(self.layout, self.plan, self._identity)

    def _start_envoy(self, name: str, program: Path) -> Callable[[], None]:
        argv: list[str | Path] = [program, "--config-path", self.layout.envoy(name)]
        # Hot restart shares memory between Envoys of one machine; these have nothing to share.
        argv += ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
        child = self._processes.start(f"envoy-{name}", argv)
        admin = self.layout.admin(name)
        return lambda: child.wait_until(lambda: envoy_ready(admin), what="readiness")

    def _start_service(self, service: Service, module: str) -> Callable[[], None]:
        path = self.layout.socket(service.name)
        python = self._identity.python(service.name)
        argv: Sequence[str | Path] = [
            *(python.path, "-m", module),
            *("--socket", path),
            *("--journal", self.layout.journal(service.name)),
            *("--svid", self.layout.svid(service.workload)),
            *("--directory", self.layout.services.path),
            *python.arguments,
        ]
        child = self._processes.start(service.name, argv, environment=python.environment)
        return lambda: child.wait_until(lambda: listens(path), what="listening")


def _decisions(metrics: str) -> int:
    lines = (line for line in metrics.splitlines() if line.startswith("authz_decisions_total{"))
    return sum(_last_numbers("\n".join(lines)))


def _last_numbers(lines: str) -> list[int]:
    """Return the number that ends each line of statistics."""
    return [int(float(line.rpartition(" ")[2])) for line in lines.splitlines()]
