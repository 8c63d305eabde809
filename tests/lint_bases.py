"""The rendered configurations that samples of lint rules change."""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Final

from authz_server.core.attributes import Protocol
from authz_server.core.spiffe import SpiffeId
from authz_server.envoy_config.bootstrap import bootstrap_tree
from authz_server.envoy_config.enforcement_point import EnforcementPoint, PdpTls, SvidFiles
from authz_server.settings.addresses import TcpAddress, UnixAddress
from tests.lint_samples import Tree

_RUN: Final = Path("/run/authz")
_SVID: Final = SvidFiles(
    certificate=_RUN / "svid.pem",
    private_key=_RUN / "svid.key",
    trust_bundle=_RUN / "bundle.pem",
)
_HTTP: Final = EnforcementPoint(
    name="data",
    listen=TcpAddress("0.0.0.0", 8443),
    upstream=TcpAddress("127.0.0.1", 8080),
    protocol=Protocol.HTTP,
    workload_id=SpiffeId.parse("spiffe://prod.example.org/service/data-api"),
    audience="https://data.example.org",
    bundle="data",
    resource="customer-data",
    domains=("data.example.org",),
    pdp=(UnixAddress(_RUN / "pdp.sock"),),
    svid=_SVID,
)
POINTS: Final = {
    "http": _HTTP,
    "mcp": dataclasses.replace(_HTTP, protocol=Protocol.MCP),
    "grpc": dataclasses.replace(_HTTP, protocol=Protocol.GRPC),
    "remote": dataclasses.replace(
        _HTTP,
        pdp=(
            TcpAddress("pdp-1.prod.example.org", 9191),
            TcpAddress("pdp-2.prod.example.org", 9191),
        ),
        pdp_tls=PdpTls(spiffe_id=SpiffeId.parse("spiffe://prod.example.org/pdp"), svid=_SVID),
    ),
    "tcp": dataclasses.replace(
        _HTTP,
        name="ledger-db",
        protocol=Protocol.TCP,
        domains=("ledger-db.internal",),
        audience=None,
        require_delegation=False,
    ),
}
BASES: Final = tuple(POINTS)


@cache
def base(name: str) -> Tree:
    """Return the bootstrap of an Envoy with one enforcement point. Shared: copy before changing."""
    tree: Tree = bootstrap_tree([POINTS[name]], node="data-1", admin_socket=_RUN / "admin.sock")
    return tree
