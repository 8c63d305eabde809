"""Make of a file of `spec` what the renderer takes, or say all that is wrong with it."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from authz_server.core.errors import ConfigurationError, Fault, InvalidValueError
from authz_server.core.spiffe import SpiffeId
from authz_server.core.yaml_document import Path as KeyPath
from authz_server.core.yaml_document import YamlDocument, YamlValue
from authz_server.envoy_config.enforcement_point import (
    EnforcementPoint,
    PdpTls,
    SvidFiles,
    SvidFromAgent,
)
from authz_server.envoy_config.http_outbound import HttpOutbound, OutboundHost
from authz_server.envoy_config.spec import (
    EnvoyKeys,
    ManyPoints,
    OnePoint,
    OutboundKeys,
    PdpSection,
    PointKeys,
    SvidSection,
)
from authz_server.envoy_config.spec_values import STDOUT
from authz_server.envoy_config.tcp_outbound import TcpOutbound
from authz_server.settings.addresses import TcpAddress
from authz_server.settings.environment import Overrides
from authz_server.settings.faults import dotted, faults_of

_NO_OVERRIDES: Final = Overrides(values={})  # the environment says nothing about Envoy
_MANY: Final = "enforcement_points"
# Keys that only one of the two forms has at its top.
_OF_A_POINT: Final = frozenset(PointKeys.model_fields) - frozenset(EnvoyKeys.model_fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoySpec:
    """Everything that one Envoy does, ready to be rendered."""

    node: str
    admin_socket: Path | None
    points: tuple[EnforcementPoint, ...]
    outbound: tuple[TcpOutbound | HttpOutbound, ...]


def parse_spec(data: bytes, *, file: str) -> EnvoySpec:
    """Return what `data` (YAML) describes; `file` names it in faults.

    Raises `ConfigurationError` with every fault at once, each with its line and column.
    """
    document = YamlDocument.parse(data, file=file)
    if not isinstance(document.value, dict):
        raise ConfigurationError([document.fault((), "must be a mapping; see `--example`")])
    keys = document.value.keys()
    if "static_resources" in keys:
        wrong = "this is Envoy's configuration, and not an enforcement point; see `--example`"
        raise ConfigurationError([document.key_fault(("static_resources",), wrong)])
    mixed = keys & _OF_A_POINT if _MANY in keys else frozenset()
    if mixed:
        wrong = f"belongs into one of `{_MANY}`"
        faults = [document.key_fault((key,), f"`{key}` {wrong}") for key in mixed]
        raise ConfigurationError(_in_order(faults))
    many = _MANY in keys or ("outbound" in keys and not keys & _OF_A_POINT)
    model: type[ManyPoints | OnePoint] = ManyPoints if many else OnePoint
    try:
        spec = model.model_validate(document.value)
    except ValidationError as error:
        raise ConfigurationError(_in_order(_found(error, model, document))) from error
    return _Builder(document, spec).build()


def _found(
    error: ValidationError, model: type[ManyPoints | OnePoint], document: YamlDocument
) -> list[Fault]:
    """Return the faults in `error`, and what its unknown keys hid: how the others fit together."""
    faults = list(faults_of(error, model, document, _NO_OVERRIDES))
    unknown = [found["loc"] for found in error.errors() if found["type"] == "extra_forbidden"]
    if unknown:
        try:
            _Builder(document, model.model_validate(_without(document.value, unknown))).build()
        except ValidationError as hidden:
            faults += faults_of(hidden, model, document, _NO_OVERRIDES)
        except ConfigurationError as hidden:
            faults += hidden.faults
    return list(dict.fromkeys(faults))


def _without(value: YamlValue, paths: list[KeyPath]) -> YamlValue:
    """Return a copy of `value` without the keys at `paths`, which exist."""
    copied = copy.deepcopy(value)
    for *above, key in paths:
        below: Any = copied
        for part in above:
            below = below[part]
        del below[key]
    return copied


class _Builder:
    """Lay what holds for the whole Envoy under each of its parts. Used for one file, then dropped.

    The keys of each part are sound; what is checked here is one part against another.
    """

    def __init__(self, document: YamlDocument, spec: ManyPoints | OnePoint) -> None:
        self._document = document
        self._spec = spec
        self._faults: list[Fault] = []

    def build(self) -> EnvoySpec:
        points = [point for path, keys in self._points() if (point := self._point(path, keys))]
        ways = [
            way
            for index, keys in enumerate(self._spec.outbound)
            if (way := self._way(("outbound", index), keys))
        ]
        if not self._faults:
            self._check_together(points, ways)
        if self._faults:
            raise ConfigurationError(_in_order(self._faults))
        return EnvoySpec(
            node=self._spec.node or [*points, *ways][0].name,
            admin_socket=self._spec.admin.path if self._spec.admin else None,
            points=tuple(points),
            outbound=tuple(ways),
        )

    def _points(self) -> Iterator[tuple[KeyPath, PointKeys]]:
        if isinstance(self._spec, OnePoint):
            yield (), self._spec
            return
        for index, keys in enumerate(self._spec.enforcement_points):
            yield (_MANY, index), keys

    def _point(self, path: KeyPath, keys: PointKeys) -> EnforcementPoint | None:
        svid = self._svid(path, keys.svid, default_id=keys.workload_id)
        pdp = keys.pdp or self._spec.pdp
        if pdp is None:
            self._refuse(path, "pdp", "is required, here or at the top of the file")
        if svid is None or pdp is None:
            return None
        try:
            return EnforcementPoint(
                name=keys.name,
                listen=keys.listen,
                upstream=keys.upstream,
                upstream_peer=keys.upstream_spiffe_id,
                protocol=keys.protocol,
                workload_id=keys.workload_id,
                audience=keys.audience,
                bundle=keys.bundle,
                resource=keys.resource,
                labels=MappingProxyType(dict(keys.labels)),
                domains=keys.domains,
                tunnels=keys.tunnels,
                streams=keys.streams,
                require_delegation=keys.delegated,
                strip_delegation=keys.strip_delegation,
                forwarded_certificate=keys.forwarded_certificate,
                svid=svid,
                pdp=pdp.addresses,
                pdp_tls=_pdp_tls(pdp, svid),
                pdp_timeout_s=pdp.timeout_s,
                access_log=self._log(keys.access_log),
            )
        except InvalidValueError as error:
            self._faults.append(self._document.fault(path, str(error)))
            return None

    def _way(self, path: KeyPath, keys: OutboundKeys) -> TcpOutbound | HttpOutbound | None:
        svid = self._svid(path, keys.svid, default_id=None)
        if svid is None:
            return None
        try:
            return self._tcp(keys, svid) if keys.protocol == "tcp" else self._http(keys, svid)
        except InvalidValueError as error:
            self._faults.append(self._document.fault(path, str(error)))
            return None

    def _http(self, keys: OutboundKeys, svid: SvidFiles | SvidFromAgent) -> HttpOutbound:
        hosts = (
            OutboundHost(host=host, upstream=to.upstream, peer=to.spiffe_id)
            for host, to in keys.hosts.items()
        )
        return HttpOutbound(
            name=keys.name,
            listen=keys.listen,
            hosts=tuple(hosts),
            svid=svid,
            access_log=self._log(keys.access_log),
        )

    def _tcp(self, keys: OutboundKeys, svid: SvidFiles | SvidFromAgent) -> TcpOutbound:
        assert keys.upstream is not None, "checked by the model"
        assert keys.spiffe_id is not None, "checked by the model"
        return TcpOutbound(
            name=keys.name,
            listen=keys.listen,
            upstream=keys.upstream,
            peer=keys.spiffe_id,
            svid=svid,
            server_name=keys.server_name,
            tunnel=keys.tunnel,
            delegation=keys.delegation,
        )

    def _svid(
        self, path: KeyPath, own: SvidSection | None, *, default_id: SpiffeId | None
    ) -> SvidFiles | SvidFromAgent | None:
        section = own or self._spec.svid
        if section is None:
            self._refuse(path, "svid", "is required, here or at the top of the file")
            return None
        # Of a way out: who calls is the one workload that this Envoy stands beside.
        workloads = {keys.workload_id for _, keys in self._points()}
        if default_id is None and len(workloads) == 1:
            (default_id,) = workloads
        found = _svid(section, default_id)
        if found is None:
            where = (*path, "svid") if own else ("svid",)
            self._refuse(where, "spiffe_id", "is required: it is not clear whose SVID to ask for")
        return found

    def _check_together(
        self, points: list[EnforcementPoint], ways: list[TcpOutbound | HttpOutbound]
    ) -> None:
        paths = [path for path, _ in self._points()]
        paths += [("outbound", index) for index in range(len(ways))]
        parts = [*points, *ways]
        if not parts:
            self._refuse((), _MANY, "must name a point, unless `outbound` names a way out")
        agents = {agent for part in parts for agent in part.agents}
        for index, (path, part) in enumerate(zip(paths, parts, strict=True)):
            before = parts[:index]
            if part.name in {other.name for other in before}:
                self._refuse(path, "name", "is the name of another part of this Envoy")
            taken = {other.listen for other in before}
            if part.listen in taken and not _any_port(part):
                self._refuse(path, "listen", "is where another part of this Envoy listens")
            if len(agents) > 1 and part.agents:
                self._refuse(path, "svid", "must be from one agent for the whole Envoy")

    def _log(self, own: str | Path | None) -> Path | None:
        log = self._spec.access_log if own is None else own
        return None if log == STDOUT else Path(log)

    def _refuse(self, path: KeyPath, key: str, wrong: str) -> None:
        whole = (*path, key)
        self._faults.append(self._document.fault(whole, f"`{dotted(whole)}` {wrong}"))


def _svid(section: SvidSection, default_id: SpiffeId | None) -> SvidFiles | SvidFromAgent | None:
    if section.agent is None:
        assert section.certificate is not None, "checked by the model"
        assert section.private_key is not None, "checked by the model"
        assert section.trust_bundle is not None, "checked by the model"
        return SvidFiles(
            certificate=section.certificate,
            private_key=section.private_key,
            trust_bundle=section.trust_bundle,
        )
    spiffe_id = section.spiffe_id or default_id
    if spiffe_id is None:
        return None
    return SvidFromAgent(agent=section.agent.path, spiffe_id=spiffe_id)


def _pdp_tls(pdp: PdpSection, svid: SvidFiles | SvidFromAgent) -> PdpTls | None:
    if pdp.spiffe_id is None:
        return None
    default_id = svid.spiffe_id if isinstance(svid, SvidFromAgent) else None
    own = _svid(pdp.svid, default_id) if pdp.svid else svid
    assert own is not None, "an agent gives the point's own SVID where no other is named"
    return PdpTls(spiffe_id=pdp.spiffe_id, svid=own)


def _any_port(part: EnforcementPoint | TcpOutbound | HttpOutbound) -> bool:
    return isinstance(part.listen, TcpAddress) and part.listen.port == 0


def _in_order(faults: Iterator[Fault] | list[Fault]) -> list[Fault]:
    return sorted(faults, key=lambda fault: (fault.file, fault.line, fault.column))
