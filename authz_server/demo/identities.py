"""Who the processes of a mesh are, and how each gets to prove it: from files, or from a real SPIRE.

Either way a workload finds its own `svid.pem`, `svid.key.pem` and `bundle.pem` in its directory,
which is what the clients of the demonstration read.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from authz_server.agent.svid import Svid
from authz_server.core.spiffe import SpiffeId
from authz_server.demo.authority import LeafProfile, TrustDomainAuthority, write_svid
from authz_server.demo.layout import Layout
from authz_server.demo.plan import MeshPlan, Service
from authz_server.envoy_config.enforcement_point import PdpTls, SvidFiles, SvidFromAgent
from authz_server.settings.addresses import TcpAddress, UnixAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run as one process of the mesh, and what to lay over its environment."""

    path: Path
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    arguments: tuple[str, ...] = ()


class MeshIdentity(Protocol):
    """Where the identities of a mesh come from."""

    def start(self) -> None:
        """Make ready to prove every workload of the plan."""

    def svid(self, workload: str) -> Svid:
        """Return the SVID of the workload at path `workload`, and have it in its directory."""

    def python(self, name: str) -> Program:
        """Return the interpreter for the process `name` (`pdp`, or a service)."""

    def envoy(self, service: Service, binary: Path) -> Path:
        """Return the Envoy that guards `service`."""

    def envoy_svid(self, service: Service) -> SvidFiles | SvidFromAgent:
        """Return what that Envoy proves itself with: it stands for the service it guards."""

    def files(self, workload: str) -> SvidFiles:
        """Return the files with the SVID of the workload at path `workload`."""

    @property
    def pdp(self) -> tuple[TcpAddress | UnixAddress, ...]:
        """Where each replica of the PDP answers."""

    def pdp_tls(self, service: Service) -> PdpTls | None:
        """Return how that Envoy and the PDP prove themselves to each other, or None: plaintext."""

    def pdp_settings(self) -> dict[str, object]:
        """Return the sections `tls` and `trust_bundles` of the PDP's configuration."""


class IssuedIdentity:
    """An authority in memory, whose SVIDs are written to files."""

    def __init__(self, layout: Layout, plan: MeshPlan) -> None:
        self._layout = layout
        self._plan = plan
        self._authority = TrustDomainAuthority.create(plan.trust_domain)
        self._svids: dict[str, Svid] = {}

    def start(self) -> None:
        """Write the trust bundle for the PDP."""
        (self._layout.pdp / "trust.pem").write_bytes(self._authority.bundle_pem)

    def svid(self, workload: str) -> Svid:
        """Return the SVID, issued and written at first use."""
        if workload not in self._svids:
            names = {
                name
                for service in self._plan.services
                if service.workload == workload
                for name in service.dns_names
            }
            profile = LeafProfile(dns_names=sorted(names))
            svid = self._authority.issue_svid(self._plan.spiffe_id(workload), profile=profile)
            write_identity(svid, self._authority.bundle_pem, self._layout.svid(workload))
            self._svids[workload] = svid
        return self._svids[workload]

    def python(self, _name: str) -> Program:
        """Return this interpreter."""
        return Program(path=Path(sys.executable))

    def envoy(self, _service: Service, binary: Path) -> Path:
        """Return the binary itself."""
        return binary

    def envoy_svid(self, service: Service) -> SvidFiles:
        """Return the files of the service."""
        return self.files(service.workload)

    def files(self, workload: str) -> SvidFiles:
        """Return the files of any workload."""
        self.svid(workload)
        return svid_files(self._layout.svid(workload))

    @property
    def pdp(self) -> tuple[UnixAddress, ...]:
        """A socket for each replica."""
        names = [f"pdp-{number + 1}" for number in range(self._plan.replicas)]
        return tuple(UnixAddress(self._layout.socket(name)) for name in names)

    def pdp_tls(self, _service: Service) -> None:
        """Return None: the socket is for this account alone."""

    def pdp_settings(self) -> dict[str, object]:
        """Return the bundle's file."""
        domain = str(self._plan.trust_domain)
        return {
            "tls": {"mode": "plaintext"},
            "trust_bundles": {"source": "files", "files": {domain: "trust.pem"}},
        }


def svid_files(directory: Path) -> SvidFiles:
    """Return the SVID in the directory of a workload, as Envoy reads it."""
    return SvidFiles(
        certificate=directory / "svid.pem",
        private_key=directory / "svid.key.pem",
        trust_bundle=directory / "bundle.pem",
    )


def write_identity(svid: Svid, bundle_pem: bytes, directory: Path) -> None:
    """Write SVID and bundle into the directory of a workload."""
    directory.mkdir(mode=0o700, exist_ok=True)
    write_svid(svid, directory)
    (directory / "bundle.pem").write_bytes(bundle_pem)


def envoy_id(plan: MeshPlan, service: Service) -> SpiffeId:
    """Return who the Envoy in front of `service` is to the PDP."""
    return plan.spiffe_id(f"/envoy/{service.name}")
