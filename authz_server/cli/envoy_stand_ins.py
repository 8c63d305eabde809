"""Validate a configuration where what it names is not: on a build machine.

Envoy opens every file that a configuration names when it validates it. Where one of the three files
of an SVID is not there, all three are minted, for this run alone; so is an empty delegation. Access
logs are opened elsewhere in any case: validation should not create one.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from authz_server.core.spiffe import SpiffeId
from authz_server.demo.authority import TrustDomainAuthority, write_svid
from authz_server.envoy_config.enforcement_point import EnforcementPoint, SvidFiles, SvidFromAgent
from authz_server.envoy_config.http_outbound import HttpOutbound
from authz_server.envoy_config.spec_file import EnvoySpec
from authz_server.envoy_config.tcp_outbound import CURRENT, DELEGATION_HEADERS, TcpOutbound

_HOLDER = SpiffeId.parse("spiffe://stand-in.example/envoy")


def absent_files(spec: EnvoySpec) -> list[Path]:
    """Return the files named in `spec` that Envoy would read and that are not here, each once."""
    named = [path for svid in _svids(spec) for path in _files(svid)]
    named += [path for way in spec.outbound for path in _delegation(way)]
    return sorted({path for path in named if not path.exists()})


def with_stand_ins(spec: EnvoySpec, directory: Path) -> EnvoySpec:
    """Return `spec` with what is absent replaced by what is made in `directory`."""
    made = _Made(directory)
    return dataclasses.replace(
        spec,
        points=tuple(made.point(point) for point in spec.points),
        outbound=tuple(made.way(way) for way in spec.outbound),
    )


class _Made:
    """An SVID, an empty delegation and a log in one directory."""

    def __init__(self, directory: Path) -> None:
        authority = TrustDomainAuthority.create(_HOLDER.trust_domain)
        certificate, private_key = write_svid(authority.issue_svid(_HOLDER), directory)
        trust_bundle = directory / "bundle.pem"
        trust_bundle.write_bytes(authority.bundle_pem)
        self._svid = SvidFiles(
            certificate=certificate, private_key=private_key, trust_bundle=trust_bundle
        )
        self._log = directory / "access.jsonl"
        self._delegation = directory
        current = directory / CURRENT
        current.mkdir()
        for header in DELEGATION_HEADERS:
            (current / header).touch()

    def point(self, old: EnforcementPoint) -> EnforcementPoint:
        pdp = old.pdp_tls
        return dataclasses.replace(
            old,
            svid=self._present(old.svid),
            pdp_tls=pdp and dataclasses.replace(pdp, svid=self._present(pdp.svid)),
            access_log=self._log,
        )

    def way(self, old: TcpOutbound | HttpOutbound) -> TcpOutbound | HttpOutbound:
        svid = self._present(old.svid)
        if isinstance(old, HttpOutbound):
            return dataclasses.replace(old, svid=svid, access_log=self._log)
        is_here = all(path.exists() for path in _delegation(old))
        return dataclasses.replace(
            old, svid=svid, delegation=old.delegation if is_here else self._delegation
        )

    def _present(self, svid: SvidFiles | SvidFromAgent) -> SvidFiles | SvidFromAgent:
        return svid if all(path.exists() for path in _files(svid)) else self._svid


def _svids(spec: EnvoySpec) -> Iterator[SvidFiles | SvidFromAgent]:
    for point in spec.points:
        yield point.svid
        if point.pdp_tls:
            yield point.pdp_tls.svid
    for way in spec.outbound:
        yield way.svid


def _files(svid: SvidFiles | SvidFromAgent) -> tuple[Path, ...]:
    if isinstance(svid, SvidFromAgent):
        return ()
    return svid.certificate, svid.private_key, svid.trust_bundle


def _delegation(way: TcpOutbound | HttpOutbound) -> list[Path]:
    if isinstance(way, HttpOutbound) or way.delegation is None:
        return []
    return [way.delegation / CURRENT / header for header in DELEGATION_HEADERS]
