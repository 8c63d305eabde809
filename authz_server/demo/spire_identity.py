"""The identities of a mesh from a real SPIRE: every process attested, nothing issued by us."""

import time
from pathlib import Path
from typing import Final

from authz_server.agent.svid import Svid
from authz_server.demo.identities import Program, envoy_id, svid_files, write_identity
from authz_server.demo.layout import Layout
from authz_server.demo.pdp_files import PORT_STEP
from authz_server.demo.plan import MeshPlan, Service
from authz_server.demo.processes import ProcessFailedError, ProcessGroup
from authz_server.demo.spire import Entry, Spire, SpirePlan
from authz_server.demo.spire_programs import SpirePrograms
from authz_server.demo.svids_of_agent import fetch_identities
from authz_server.demo.workload_program import (
    PYTHON_ENVIRONMENT,
    envoy_for,
    own_program,
    python_for,
)
from authz_server.envoy_config.binary import envoy_binary
from authz_server.envoy_config.enforcement_point import PdpTls, SvidFiles, SvidFromAgent
from authz_server.settings.addresses import TcpAddress

_PDP_PATH: Final = "/pdp"
_PDP_PORT: Final = 9191
_SERVER_PORT, _BUNDLE_PORT = 8081, 8443
_SVID_TIMEOUT_S: Final = 15.0  # server and agent look for new registrations every second
_POLL_S: Final = 0.1


class SpireIdentity:
    """A SPIRE of the mesh's own. The agents of the story all act in this process, as its SVIDs."""

    def __init__(
        self, layout: Layout, plan: MeshPlan, programs: SpirePrograms, processes: ProcessGroup
    ) -> None:
        self._layout = layout
        self._plan = plan
        self._registered: set[str] = set()
        self._svids: dict[str, Svid] = {}
        self._spire = Spire(
            SpirePlan(
                trust_domain=plan.trust_domain,
                directory=layout.root / "spire",
                sockets=layout.sockets,
                host=layout.loopback,
                server_port=_SERVER_PORT,
                bundle_port=_BUNDLE_PORT,
            ),
            programs,
            processes,
        )

    def start(self) -> None:
        """Start SPIRE with the registrations of everyone the plan names."""
        self._spire.start_server()
        entries = [self._entry(_PDP_PATH, python_for("pdp", self._programs))]
        for service in self._plan.services:
            envoy = self.envoy(service, envoy_binary())
            entries += [
                self._entry(service.workload, envoy),
                self._entry(service.workload, python_for(service.name, self._programs)),
                Entry(spiffe_id=envoy_id(self._plan, service), program=envoy),
            ]
        self._spire.register(entries)
        self._spire.start_agent()

    def svid(self, workload: str) -> Svid:
        """Return the SVID of a workload that acts in this process, registered at first use."""
        if workload not in self._svids:
            wanted = self._plan.spiffe_id(workload)
            self._spire.register([self._entry(workload, own_program())])
            deadline = time.monotonic() + _SVID_TIMEOUT_S
            while not (found := fetch_identities(self._agent, wanted)):
                if time.monotonic() > deadline:
                    raise ProcessFailedError(f"SPIRE gives this process no SVID for `{wanted}`")
                time.sleep(_POLL_S)
            write_identity(*found, self._layout.svid(workload))
            self._svids[workload] = found[0]
        return self._svids[workload]

    def python(self, name: str) -> Program:
        """Return an interpreter of its own for the process `name`."""
        return Program(
            path=python_for(name, self._programs),
            environment=PYTHON_ENVIRONMENT,
            arguments=() if name == "pdp" else ("--agent", str(self._agent)),
        )

    def envoy(self, service: Service, binary: Path) -> Path:
        """Return an Envoy of its own for `service`."""
        return envoy_for(f"envoy-{service.name}", binary, self._programs)

    def envoy_svid(self, service: Service) -> SvidFromAgent:
        """Return the SVID of the service, by SDS."""
        spiffe_id = self._plan.spiffe_id(service.workload)
        return SvidFromAgent(agent=self._agent, spiffe_id=spiffe_id)

    def files(self, workload: str) -> SvidFiles:
        """Return the files of a workload that acts in this process."""
        self.svid(workload)
        return svid_files(self._layout.svid(workload))

    @property
    def pdp(self) -> tuple[TcpAddress, ...]:
        """A TCP port for each replica: between it and Envoy, mutual TLS."""
        ports = [_PDP_PORT + PORT_STEP * number for number in range(self._plan.replicas)]
        return tuple(TcpAddress(self._layout.loopback, port) for port in ports)

    def pdp_tls(self, service: Service) -> PdpTls:
        """Return the PDP's id, and the Envoy's own SVID for it."""
        own = SvidFromAgent(agent=self._agent, spiffe_id=envoy_id(self._plan, service))
        return PdpTls(spiffe_id=self._plan.spiffe_id(_PDP_PATH), svid=own)

    def pdp_settings(self) -> dict[str, object]:
        """Return mutual TLS for the Envoys of this mesh, and trust from the Workload API."""
        clients = [f"{self._plan.trust_domain.uri}/envoy/*"]
        return {
            "tls": {"mode": "workload_api", "allowed_clients": clients},
            "trust_bundles": {"source": "workload_api", "socket": f"unix://{self._agent}"},
        }

    @property
    def _agent(self) -> Path:
        return self._spire.plan.agent_socket

    @property
    def _programs(self) -> Path:
        return self._layout.root / "programs"

    def _entry(self, workload: str, program: Path) -> Entry:
        return Entry(spiffe_id=self._plan.spiffe_id(workload), program=program)
