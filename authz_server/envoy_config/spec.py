"""The file that `envoy render` reads: every key, its default and its bounds.

It says what an operator decides and nothing else; what is not here is not a choice
(`enforcement_point`). A file is one enforcement point, or `enforcement_points` and `outbound` of
one Envoy. What stands at the top (`svid`, `pdp`, `access_log`) holds for each of them that says
nothing else.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from authz_server.core import limits
from authz_server.core.attributes import Protocol
from authz_server.envoy_config.enforcement_point import (
    PDP_TIMEOUT_S,
    PDP_TIMEOUT_S_MAX,
    PDP_TIMEOUT_S_MIN,
    Address,
    ForwardedCertificate,
    is_host,
    is_name,
)
from authz_server.envoy_config.spec_values import (
    STDOUT,
    AbsolutePath,
    AccessLog,
    Destination,
    Host,
    Label,
    MethodName,
    ServedHost,
)
from authz_server.settings.addresses import TcpAddress, UnixAddress
from authz_server.settings.values import (
    ONE_OR_MORE,
    Contradiction,
    GrpcListen,
    Text,
    WorkloadApiSocket,
    WorkloadId,
    phrase,
    refuse_all,
)

PDP_ADDRESSES_MAX: Final = 64  # more stand behind one host name
POINTS_MAX: Final = 256  # listeners of one Envoy, far beyond any pod or host
# Of the context extensions that a check may have, what is left beside the eight of a route.
LABELS_MAX: Final = limits.CONTEXT_EXTENSIONS_MAX - 8


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class SvidSection(_Section):
    """An X509-SVID, and what its peers are held against: from a SPIRE agent, or from files."""

    agent: WorkloadApiSocket | None = Field(
        default=None, description="socket of the SPIRE agent, which renews both: `unix:///path`"
    )
    spiffe_id: WorkloadId | None = Field(
        default=None, description="SVID to ask `agent` for; default: the point's `workload_id`"
    )
    certificate: AbsolutePath | None = Field(
        default=None, description="PEM file, leaf first; an absolute path, where Envoy runs"
    )
    private_key: AbsolutePath | None = Field(default=None, description="PEM file of its key")
    trust_bundle: AbsolutePath | None = Field(
        default=None, description="PEM file of the authorities of the trust domain"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "SvidSection":
        files = {
            "certificate": self.certificate,
            "private_key": self.private_key,
            "trust_bundle": self.trust_bundle,
        }
        found: list[Contradiction] = []
        if self.agent is not None:
            found += [((key,), "is not for an `agent`") for key, value in files.items() if value]
        elif not any(files.values()):
            raise phrase("must name an `agent`, or `certificate`, `private_key`, `trust_bundle`")
        else:
            found += [((key,), "is required") for key, value in files.items() if not value]
            if self.spiffe_id is not None:
                found.append((("spiffe_id",), "is for an `agent`; a file holds the SVID it holds"))
        refuse_all(found)
        return self


class PdpSection(_Section):
    """Where checks are decided."""

    addresses: Annotated[
        tuple[GrpcListen, ...], ONE_OR_MORE, Field(min_length=1, max_length=PDP_ADDRESSES_MAX)
    ] = Field(
        description="`host:port` or `unix:///path`, one or a list of equal PDPs that share the "
        "checks; a host name stands for every address it resolves to"
    )
    spiffe_id: WorkloadId | None = Field(
        default=None,
        description="SPIFFE ID that each of them must prove; required unless they are on this "
        "machine",
    )
    svid: SvidSection | None = Field(
        default=None, description="what Envoy proves to them; default: the point's `svid`"
    )
    timeout_s: Annotated[float, Field(ge=PDP_TIMEOUT_S_MIN, le=PDP_TIMEOUT_S_MAX)] = Field(
        default=PDP_TIMEOUT_S, description="longest wait for a verdict, then denial; in seconds"
    )

    @model_validator(mode="after")
    def _reachable(self) -> "PdpSection":
        found = list(_unreachable("addresses", self.addresses))
        named = any(is_name(address) for address in self.addresses)
        for index, address in enumerate(self.addresses):
            path = ("addresses", index)
            if address in self.addresses[:index]:
                found.append((path, "stands twice"))
            if self.spiffe_id is None and not address.is_local:
                # SECURITY: a verdict read over a plaintext network can be forged.
                wrong = "is not on this machine: `pdp.spiffe_id` must say whom to believe there"
                found.append((path, wrong))
            if named and isinstance(address, UnixAddress):
                found.append((path, "cannot stand beside a host name"))
        if self.svid is not None and self.spiffe_id is None:
            found.append((("svid",), "needs `pdp.spiffe_id`"))
        refuse_all(found)
        return self


class PointKeys(_Section):
    """An enforcement point: a listener that asks before anything reaches one workload."""

    name: Label = Field(description="labels listener, clusters and statistics")
    listen: GrpcListen = Field(description="where callers connect: `host:port`, `unix:///path`")
    upstream: GrpcListen = Field(description="where the workload answers")
    upstream_spiffe_id: WorkloadId | None = Field(
        default=None,
        description="SPIFFE ID that the workload proves itself; required unless it is on this "
        "machine",
    )
    protocol: Protocol = Field(description="what is spoken: http, grpc, mcp, a2a, tcp")
    workload_id: WorkloadId = Field(description="SPIFFE ID of what stands behind")
    audience: Text | None = Field(
        default=None, description="value that the `aud` of a delegation link must contain"
    )
    bundle: Text = Field(default="default", description="policy bundle that judges")
    resource: Text | None = Field(default=None, description="`r.obj.resource` in policies")
    labels: Mapping[Text, Text] = Field(
        default={}, max_length=LABELS_MAX, description="`r.obj.labels.<name>` in policies"
    )
    domains: Annotated[tuple[ServedHost, ...], ONE_OR_MORE] = Field(
        default=(),
        description="the only host names answered; required but for tcp, where they are TLS server "
        "names",
    )
    tunnels: Annotated[tuple[Destination, ...], ONE_OR_MORE] = Field(
        default=(), description="tcp: destinations of CONNECT that are admitted, `host:port`"
    )
    streams: Annotated[tuple[MethodName, ...], ONE_OR_MORE] = Field(
        default=(),
        description="grpc: methods whose client streams, `package.Service/Method`; they are judged "
        "at once, without their messages",
    )
    require_delegation: bool | None = Field(
        default=None,
        description="deny what comes without a chain; default: true, but for raw tcp, which "
        "carries none",
    )
    strip_delegation: bool = Field(
        default=False, description="take delegation headers off before the workload sees them"
    )
    forwarded_certificate: ForwardedCertificate = Field(
        default=ForwardedCertificate.SANITIZE_SET,
        description="`x-forwarded-client-cert` of callers: `SANITIZE_SET` replaces it; "
        "`APPEND_FORWARD` keeps what the PDP's `identity.trusted_proxies` send",
    )
    svid: SvidSection | None = Field(
        default=None, description="what Envoy proves to callers: the workload's own SVID"
    )
    pdp: PdpSection | None = Field(default=None, description="where this point asks")
    access_log: AccessLog | None = Field(default=None, description="`stdout`, or a file")

    @property
    def delegated(self) -> bool:
        """Whether a request needs a chain."""
        if self.require_delegation is not None:
            return self.require_delegation
        return self.protocol is not Protocol.TCP or bool(self.tunnels)

    @model_validator(mode="after")
    def _coherent(self) -> "PointKeys":
        found = list(_unreachable("upstream", (self.upstream,)))
        if self.upstream_spiffe_id is None and not self.upstream.is_local:
            # SECURITY: whoever reaches a plaintext port goes round the check, and the delegation
            # of every request crosses the network in the clear.
            wrong = "is not on this machine: `upstream_spiffe_id` must say who answers there"
            found.append((("upstream",), wrong))
        tcp = self.protocol is Protocol.TCP
        found += _tcp_contradictions(self) if tcp else _http_contradictions(self)
        if self.delegated and self.audience is None and not (tcp and not self.tunnels):
            found.append((("audience",), "is required: a delegation link must name it"))
        refuse_all(found)
        return self


class OutboundHostKeys(_Section):
    """The Envoy in front of one host."""

    upstream: GrpcListen = Field(description="address of the Envoy in front of it")
    spiffe_id: WorkloadId = Field(description="SPIFFE ID that it must prove")

    @model_validator(mode="after")
    def _reachable(self) -> "OutboundHostKeys":
        refuse_all(list(_unreachable("upstream", (self.upstream,))))
        return self


class OutboundKeys(_Section):
    """A local port from which plain clients of this workload reach others."""

    name: Label = Field(description="labels listener, clusters and statistics")
    listen: GrpcListen = Field(description="loopback `host:port`, or `unix:///path`")
    protocol: Literal["http", "tcp"] = Field(
        default="http", description="http (also gRPC, MCP and A2A), or tcp"
    )
    hosts: Mapping[Host, OutboundHostKeys] = Field(
        default={}, description="http: the hosts that may be called, and who answers for each"
    )
    upstream: GrpcListen | None = Field(default=None, description="tcp: address of the other Envoy")
    spiffe_id: WorkloadId | None = Field(
        default=None, description="tcp: SPIFFE ID that it must prove"
    )
    server_name: Host | None = Field(default=None, description="tcp: TLS server name to ask for")
    tunnel: Destination | None = Field(
        default=None, description="tcp: destination to CONNECT to, `host:port`"
    )
    delegation: AbsolutePath | None = Field(
        default=None, description="tcp: directory of the delegation that a `tunnel` carries"
    )
    svid: SvidSection | None = Field(default=None, description="what Envoy proves to the others")
    access_log: AccessLog | None = Field(default=None, description="http: `stdout`, or a file")

    @model_validator(mode="after")
    def _coherent(self) -> "OutboundKeys":
        found: list[Contradiction] = []
        if not self.listen.is_local:
            # SECURITY: who may use it acts as this workload.
            found.append((("listen",), "must be loopback or a Unix socket"))
        of_tcp = {
            "upstream": self.upstream,
            "spiffe_id": self.spiffe_id,
            "server_name": self.server_name,
            "tunnel": self.tunnel,
            "delegation": self.delegation,
        }
        if self.protocol == "http":
            wrong = "is for the protocol `tcp`; http has `hosts`"
            found += [((key,), wrong) for key, value in of_tcp.items() if value is not None]
            if not self.hosts:
                found.append((("hosts",), "must name the hosts that may be called"))
        else:
            found += self._tcp_contradictions()
        refuse_all(found)
        return self

    def _tcp_contradictions(self) -> Iterator[Contradiction]:
        if self.hosts:
            yield ("hosts",), "is for the protocol `http`; tcp has one `upstream`"
        if self.upstream is None:
            yield ("upstream",), "is required"
        else:
            yield from _unreachable("upstream", (self.upstream,))
        if self.spiffe_id is None:
            yield ("spiffe_id",), "is required"
        if self.access_log is not None:
            yield ("access_log",), "is for the protocol `http`"
        if self.delegation is not None and self.tunnel is None:
            yield ("delegation",), "needs a `tunnel`: a raw connection carries none"


class EnvoyKeys(_Section):
    """What holds for the whole Envoy."""

    node: Text | None = Field(
        default=None, description="names this Envoy in decision records; default: the first `name`"
    )
    admin: WorkloadApiSocket | None = Field(
        default=None,
        description="socket of the admin interface, `unix:///path`; none without it",
    )
    svid: SvidSection | None = Field(
        default=None, description="for every point and way out that has none of its own"
    )
    pdp: PdpSection | None = Field(
        default=None, description="for every point that has none of its own"
    )
    access_log: AccessLog = Field(
        default=STDOUT, description="for every point and way out that has none of its own"
    )
    outbound: Annotated[tuple[OutboundKeys, ...], Field(max_length=POINTS_MAX)] = Field(
        default=(), description="ways for this workload's own clients to others"
    )


class ManyPoints(EnvoyKeys):
    """A file with any number of points and ways out."""

    enforcement_points: Annotated[tuple[PointKeys, ...], Field(max_length=POINTS_MAX)] = Field(
        default=(), description="listeners that ask"
    )


class OnePoint(PointKeys, EnvoyKeys):
    """A file that is one enforcement point, its keys at the top."""

    access_log: AccessLog = Field(default=STDOUT, description="`stdout`, or a file")


def _unreachable(key: str, addresses: tuple[Address, ...]) -> Iterator[Contradiction]:
    for index, address in enumerate(addresses):
        if isinstance(address, TcpAddress) and address.port == 0:
            path = (key, index) if key == "addresses" else (key,)
            yield path, "must have a port"


def _http_contradictions(point: PointKeys) -> Iterator[Contradiction]:
    if not point.domains:
        yield ("domains",), "must name the hosts that are answered"
    if point.tunnels:
        yield ("tunnels",), "is for the protocol `tcp`"
    if point.streams and point.protocol is not Protocol.GRPC:
        yield ("streams",), "is for the protocol `grpc`"


def _tcp_contradictions(point: PointKeys) -> Iterator[Contradiction]:
    if point.strip_delegation:
        yield ("strip_delegation",), "is not for tcp: no delegation reaches what stands behind"
    if point.forwarded_certificate is not ForwardedCertificate.SANITIZE_SET and not point.tunnels:
        yield ("forwarded_certificate",), "is not for raw tcp, which has no headers"
    if point.streams:
        yield ("streams",), "is for the protocol `grpc`"
    if point.tunnels and point.domains:
        yield ("domains",), "is not for `tunnels`, which name their hosts"
    if point.delegated and not point.tunnels:
        wrong = "must be false for raw tcp, which carries no delegation; `tunnels` do"
        yield ("require_delegation",), wrong
    for index, domain in enumerate(point.domains):
        if not is_host(domain):
            yield ("domains", index), "must be one server name for tcp"
