"""An Envoy for the benchmark: plain HTTP in, mutual TLS through the rendered enforcement point.

    load ─> TCP proxy that holds the agent's SVID ─mTLS─> enforcement point ─> fixed answer
                                                              └─> PDP
All in one Envoy with one worker, so that its CPU time is that of one enforcement point and a
little more.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from authz_server.core.attributes import Protocol
from authz_server.core.spiffe import SpiffeId
from authz_server.demo.authority import write_svid
from authz_server.envoy_config.binary import envoy_binary
from authz_server.envoy_config.bootstrap import bootstrap_tree
from authz_server.envoy_config.enforcement_point import EnforcementPoint, SvidFiles
from authz_server.settings.addresses import TcpAddress
from tests.bench.processes import free_port, on_core, wait_for_port
from tests.pdp_site import AUDIENCE, TRUST_DOMAIN, PdpSite

HOST = "data.site.example.org"
_WORKLOAD = SpiffeId.parse(f"spiffe://{TRUST_DOMAIN}/service/data-api")


@contextmanager
def envoy(site: PdpSite, pdp_ports: Mapping[str, int], *, core: int) -> Iterator[Mapping[str, int]]:
    """Run one Envoy that asks the PDP at each of `pdp_ports`; yield the plain port of each."""
    upstream = free_port()
    entries = {name: free_port() for name in pdp_ports}
    points = [_point(site, name, free_port(), upstream, port) for name, port in pdp_ports.items()]
    tree = bootstrap_tree(points, node="bench", admin_socket=None)
    resources = tree["static_resources"]
    assert isinstance(resources, dict)
    for point in points:
        resources["listeners"].append(_entry(point.name, entries[point.name]))
        resources["clusters"].append(_through_mtls(site, point))
    resources["listeners"].append(_fixed_answer(upstream))
    configuration = site.directory / "envoy.json"
    configuration.write_text(json.dumps(tree))
    command = [str(envoy_binary()), "-c", str(configuration), "--concurrency", "1"]
    with (site.directory / "envoy.log").open("wb") as log, on_core(core):
        process = subprocess.Popen(
            [*command, "--use-dynamic-base-id", "--log-level", "error"], stdout=log, stderr=log
        )
    try:
        for port in entries.values():
            wait_for_port(port, process)
        yield entries
    finally:
        process.terminate()
        process.wait()


def _point(site: PdpSite, name: str, listen: int, upstream: int, pdp: int) -> EnforcementPoint:
    certificate, key = write_svid(site.authority.issue_svid(_WORKLOAD), site.directory, "server")
    return EnforcementPoint(
        name=name,
        listen=TcpAddress("127.0.0.1", listen),
        upstream=TcpAddress("127.0.0.1", upstream),
        protocol=Protocol.HTTP,
        workload_id=_WORKLOAD,
        bundle="default",
        pdp=(TcpAddress("127.0.0.1", pdp),),
        svid=SvidFiles(
            certificate=certificate, private_key=key, trust_bundle=site.directory / "trust.pem"
        ),
        audience=AUDIENCE,
        domains=(HOST,),
        access_log=Path("/dev/null"),
    )


def _entry(name: str, port: int) -> dict[str, object]:
    proxy = _extension(
        "envoy.filters.network.tcp_proxy",
        "filters.network.tcp_proxy.v3.TcpProxy",
        {"stat_prefix": name, "cluster": f"{name}_mtls"},
    )
    return {
        "name": f"{name}_entry",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [proxy]}],
    }


def _through_mtls(site: PdpSite, point: EnforcementPoint) -> dict[str, object]:
    assert isinstance(point.listen, TcpAddress)
    certificate, key = write_svid(site.research, site.directory, "client")
    tls = {
        "sni": HOST,
        "common_tls_context": {
            "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": ["http/1.1"],
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(certificate)},
                    "private_key": {"filename": str(key)},
                }
            ],
        },
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": point.listen.port}}
    return {
        "name": f"{point.name}_mtls",
        "type": "STATIC",
        "connect_timeout": "1s",
        "transport_socket": _extension(
            "envoy.transport_sockets.tls", "transport_sockets.tls.v3.UpstreamTlsContext", tls
        ),
        "load_assignment": {
            "cluster_name": f"{point.name}_mtls",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def _extension(name: str, type_name: str, settings: Mapping[str, object]) -> dict[str, object]:
    kind = f"type.googleapis.com/envoy.extensions.{type_name}"
    return {"name": name, "typed_config": {"@type": kind, **settings}}


def _fixed_answer(port: int) -> dict[str, object]:
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    manager = _extension(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        {
            "stat_prefix": "upstream",
            "route_config": {
                "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]
            },
            "http_filters": [
                _extension("envoy.filters.http.router", "filters.http.router.v3.Router", {})
            ],
        },
    )
    return {
        "name": "upstream",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [manager]}],
    }
