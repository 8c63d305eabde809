"""One enforcement point: everything an operator decides about an Envoy in front of a workload.

What is not here is not a choice: TLS version, client certificates, path normalisation, failing
closed. `bootstrap.render_bootstrap` writes those the same way for every point.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from authz_server.core.attributes import Protocol
from authz_server.core.errors import InvalidValueError, RequestFault
from authz_server.core.paths import canonical_destination, canonical_host
from authz_server.core.protocols.grpc import is_method
from authz_server.core.spiffe import SpiffeId
from authz_server.settings.addresses import TcpAddress, UnixAddress

Address = TcpAddress | UnixAddress

# Envoy's default is 200 ms. SECURITY: `0s` means no limit at all since 1.38, so never zero, nor
# less than a millisecond, which Envoy cuts to zero.
PDP_TIMEOUT_S = 0.25
PDP_TIMEOUT_S_MIN = 0.001
# A caller waits for a verdict longer than for most answers, and a hung PDP holds each of them.
PDP_TIMEOUT_S_MAX = 10

_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,62})")


def is_name(address: Address) -> bool:
    """Tell whether Envoy must resolve `address` before it can connect."""
    if isinstance(address, UnixAddress):
        return False
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        return True
    return False


def is_label(text: str) -> bool:
    """Tell whether `text` can label listeners, clusters and statistics."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> None:
    """Raise `InvalidValueError` unless `name` can label listeners, clusters and statistics."""
    if not is_label(name):
        raise InvalidValueError(f"name `{name}` is not of the form `[a-z0-9][a-z0-9_-]*`")


def is_host(text: str) -> bool:
    """Tell whether `text` is a host as the PDP spells it."""
    try:
        return canonical_host(text) == text
    except RequestFault:
        return False


def is_destination(text: str) -> bool:
    """Tell whether `text` is a host and a port as the PDP spells them."""
    try:
        host, port = canonical_destination(text)
    except RequestFault:
        return False
    return f"{host}:{port}" == text


@dataclass(frozen=True, slots=True, kw_only=True)
class SvidFiles:
    """An X509-SVID and the trust bundle that proves its peers, as PEM files Envoy can read."""

    certificate: Path
    private_key: Path
    trust_bundle: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SvidFromAgent:
    """An X509-SVID, and the bundles of all trust domains, that Envoy takes from an agent by SDS.

    `agent` is the SPIRE agent's socket; `spiffe_id` names the SVID, to which this Envoy must be
    registered. Both rotate without a restart.
    """

    agent: Path
    spiffe_id: SpiffeId


@dataclass(frozen=True, slots=True, kw_only=True)
class PdpTls:
    """Mutual TLS to the PDP: who it must be, and what Envoy proves itself with.

    The PDP admits the ids in its `tls.allowed_clients` alone.
    """

    spiffe_id: SpiffeId
    svid: SvidFiles | SvidFromAgent


class ForwardedCertificate(StrEnum):
    """What becomes of a caller's `x-forwarded-client-cert` (`forward_client_cert_details`)."""

    SANITIZE_SET = "SANITIZE_SET"  # replaced: callers connect themselves
    APPEND_FORWARD = "APPEND_FORWARD"  # kept: callers come through proxies that the PDP trusts


@dataclass(frozen=True, slots=True, kw_only=True)
class EnforcementPoint:
    """An Envoy listener that asks the PDP before anything reaches one workload.

    `name` labels listener, clusters and statistics. `workload_id` is what stands behind it,
    `audience` what a delegation link must name to be used here. `domains` are the only host names
    answered: values of `Host` (HTTP protocols; at least one), or TLS server names (TCP; none admits
    every connection). With `tunnels` a TCP point admits HTTP CONNECT to these destinations
    (`host:port`) instead of raw connections, and delegation with it. `streams` are the gRPC methods
    (`package.Service/Method`) whose client streams: they are judged at once, without a message.
    `strip_delegation` lets the PDP take the delegation headers off before the workload sees them.
    `access_log` None means standard output.
    `pdp` are the addresses of one PDP or of several equal ones, which share the checks; a host name
    stands for every address it resolves to. `pdp_tls` None means plaintext to the PDP, which then
    has to be on this machine. With `upstream_peer` the workload is spoken to by mutual TLS and must
    prove that id; None means plaintext, for a workload beside this Envoy.
    """

    name: str
    listen: Address
    upstream: Address
    protocol: Protocol
    workload_id: SpiffeId
    bundle: str
    pdp: tuple[Address, ...]
    svid: SvidFiles | SvidFromAgent
    pdp_tls: PdpTls | None = None
    upstream_peer: SpiffeId | None = None
    audience: str | None = None
    resource: str | None = None
    domains: tuple[str, ...] = ()
    tunnels: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    require_delegation: bool = True
    strip_delegation: bool = False
    forwarded_certificate: ForwardedCertificate = ForwardedCertificate.SANITIZE_SET
    pdp_timeout_s: float = PDP_TIMEOUT_S
    access_log: Path | None = None

    def __post_init__(self) -> None:
        # INVARIANT: a point in hand renders to a configuration that is safe to run.
        check_name(self.name)
        self._check_pdp()
        if len(self.agents) > 1:
            raise InvalidValueError(f"point `{self.name}` takes SVIDs from more than one agent")
        if not PDP_TIMEOUT_S_MIN <= self.pdp_timeout_s <= PDP_TIMEOUT_S_MAX:
            raise InvalidValueError(
                f"PDP timeout is not from {PDP_TIMEOUT_S_MIN} to {PDP_TIMEOUT_S_MAX} seconds"
            )
        if self.protocol is Protocol.TCP:
            self._check_tcp()
        else:
            self._check_http()

    def _check_pdp(self) -> None:
        if not self.pdp:
            raise InvalidValueError(f"point `{self.name}` has no PDP to ask")
        if len(set(self.pdp)) != len(self.pdp):
            raise InvalidValueError(f"point `{self.name}` has a PDP address that is named twice")
        for address in self.pdp:
            if self.pdp_tls is None and not address.is_local:
                # SECURITY: a verdict read over a plaintext network can be forged.
                raise InvalidValueError(
                    f"PDP address `{address}` is neither loopback nor a socket, and there is no TLS"
                )
        if any(is_name(address) for address in self.pdp) and any(
            isinstance(address, UnixAddress) for address in self.pdp
        ):
            # Envoy resolves all addresses of a cluster, or none.
            raise InvalidValueError(
                f"point `{self.name}` names a PDP by host, which cannot stand beside a socket"
            )

    def _check_tcp(self) -> None:
        if self.streams:
            raise InvalidValueError(f"point `{self.name}` has `streams`, which are for gRPC")
        if self.strip_delegation:
            raise InvalidValueError(
                f"point `{self.name}` is TCP: no delegation reaches what stands behind it"
            )
        if self.tunnels:
            self._check_tunnels()
        elif self.require_delegation:
            raise InvalidValueError(
                f"point `{self.name}` is TCP: a raw connection carries no delegation, and each "
                "would be denied; name the destinations of CONNECT `tunnels`"
            )
        for domain in self.domains:
            if not is_host(domain):
                raise InvalidValueError(
                    f"point `{self.name}` is TCP: `{domain}` is not one lower-case server name"
                )

    def _check_http(self) -> None:
        if self.tunnels:
            raise InvalidValueError(f"point `{self.name}` has `tunnels`, which are for TCP")
        if not self.domains or "*" in self.domains:
            raise InvalidValueError(f"point `{self.name}` needs the explicit host names it serves")
        if self.streams:
            self._check_streams()

    def _check_streams(self) -> None:
        if self.protocol is not Protocol.GRPC:
            raise InvalidValueError(f"point `{self.name}` has `streams`, which are for gRPC")
        for method in self.streams:
            if not is_method(method):
                raise InvalidValueError(
                    f"point `{self.name}`: stream `{method}` is not `package.Service/Method`"
                )

    def _check_tunnels(self) -> None:
        if self.domains:
            raise InvalidValueError(f"point `{self.name}` has `tunnels`, which name its hosts")
        for tunnel in self.tunnels:
            if not is_destination(tunnel):
                raise InvalidValueError(
                    f"point `{self.name}`: tunnel `{tunnel}` is not one lower-case `host:port`"
                )

    @property
    def is_raw(self) -> bool:
        """Whether connections are passed on as they are, rather than HTTP requests or tunnels."""
        return self.protocol is Protocol.TCP and not self.tunnels

    @property
    def agents(self) -> frozenset[Path]:
        """The agents that this point takes SVIDs from; one at most."""
        svids = [self.svid, *([self.pdp_tls.svid] if self.pdp_tls else [])]
        return frozenset(svid.agent for svid in svids if isinstance(svid, SvidFromAgent))

    @property
    def context_extensions(self) -> dict[str, str]:
        """The route's context extensions, as the PDP reads them (`core.request.RouteContext`)."""
        values = {
            "bundle": self.bundle,
            "workload_id": str(self.workload_id),
            "protocol": str(self.protocol),
            "resource": self.resource or "",
            "audience": self.audience or "",
            "require_delegation": "true" if self.require_delegation else "",
            "strip_delegation": "true" if self.strip_delegation else "",
            "body": "" if self.protocol is Protocol.TCP else "whole",
        }
        values |= {f"label.{key}": value for key, value in self.labels.items()}
        return {key: value for key, value in values.items() if value}
