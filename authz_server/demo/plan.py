"""What a mesh consists of, as data: services, identities, policies and approvers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from authz_server.core.attributes import Kind, Protocol
from authz_server.core.spiffe import SpiffeId, TrustDomain


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A workload that others call, always through its own Envoy.

    `module` is the Python module that serves it (see `services.serving`); None for what is started
    by others and answers at `socket`. `workload` is the path of its SPIFFE ID, `host` its name in
    the mesh. A delegation link must name `https://<host>`. A TCP service is reached by CONNECT to
    one of `tunnels`.
    """

    name: str
    module: str | None = None
    socket: Path | None = None
    workload: str
    host: str
    bundle: str
    protocol: Protocol = Protocol.HTTP
    resource: str | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    tunnels: tuple[str, ...] = ()
    strip_delegation: bool = False

    @property
    def audience(self) -> str:
        """What a delegation link must name to be used here."""
        return f"https://{self.host}"

    @property
    def dns_names(self) -> tuple[str, ...]:
        """What its SVID names besides the SPIFFE ID, which clients of these two cannot compare."""
        return (self.host,) if self.protocol in {Protocol.GRPC, Protocol.TCP} else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WayOut:
    """An Envoy beside a workload that calls: plain in, mutual TLS out.

    `workload` is the path of the caller's SPIFFE ID, which is lent to whoever reaches the local
    ports. `services` are the names of those it leads to; a TCP one gets a port of its own.
    """

    name: str
    workload: str
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """One entry of the identity inventory. `id` is a SPIFFE ID, or a person's name."""

    id: str
    kind: Kind
    owner: str | None = None
    purpose: str | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshPlan:
    """A mesh to start. `bundles` is copied, so that a running mesh's policy can be edited.

    `replicas` is how many PDPs share the checks. `ledger` is the address of a prepared PostgreSQL
    that they share, each through an outbox of its own; None means one SQLite file for all.
    `callers` are the paths of workloads that only call, registered or not.
    """

    trust_domain: TrustDomain
    services: tuple[Service, ...]
    parties: tuple[Party, ...]
    bundles: Path
    approvers: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    callers: tuple[str, ...] = ()
    ways_out: tuple[WayOut, ...] = ()
    replicas: int = 1
    ledger: str | None = None

    def spiffe_id(self, path: str) -> SpiffeId:
        """Return the SPIFFE ID of the workload at `path`, such as `/agent/research`."""
        return SpiffeId.parse(self.trust_domain.uri + path)
