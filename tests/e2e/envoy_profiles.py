"""The two Envoys of the attack suite: as we render it, and as little as an operator can write.

`hardened` is what `authz-server` renders for an enforcement point. `default` has mutual TLS, the
ext_authz filter with the peer certificate, and nothing else: what reaches the PDP there is what the
PDP must withstand without help. Both have the same listeners (docstring of `LISTENERS`).
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from authz_server.core.attributes import Protocol
from authz_server.core.spiffe import SpiffeId
from authz_server.demo.processes import ChildProcess, ProcessGroup
from authz_server.envoy_config.binary import envoy_binary
from authz_server.envoy_config.bootstrap import bootstrap_tree
from authz_server.envoy_config.enforcement_point import (
    EnforcementPoint,
    SvidFiles,
    SvidFromAgent,
)
from authz_server.settings.addresses import TcpAddress, UnixAddress
from tests.e2e.forge import AUDIENCE, spiffe
from tests.e2e.raw_http import unix_get

# tool: the common case. strict: the route requires delegation. plain: no TLS. optional: TLS that
# does not ask for a client certificate to be there. upgrade: WebSocket is switched on. mcp, rest:
# bodies are judged, of which the default Envoy sends 8 KiB. text: as rest, the body sent as text.
LISTENERS = ("tool", "strict", "plain", "optional", "upgrade", "mcp", "rest", "text")
# What the routes of these listeners say to the PDP beside the defaults.
EXTENSIONS: Mapping[str, dict[str, str]] = {
    "strict": {"require_delegation": "true"},
    "mcp": {"protocol": "mcp", "bundle": "tools"},
    "rest": {"bundle": "orders"},
}
HOSTS = ("tool.example", "admin.example")

Tree = dict[str, Any]

# An operator's first guess: some of the body, and never an answer that the body is too large.
_PARTIAL_BODY: Tree = {
    "max_request_bytes": 8192,
    "allow_partial_message": True,
    "pack_as_bytes": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What an Envoy of either profile is connected to."""

    pdp: UnixAddress
    workload_port: int
    svid: SvidFiles
    svid_from_agent: SvidFromAgent | None = None  # of the hardened one, instead
    admin: Path
    pdp_timeout_s: float


def hardened(around: Surroundings) -> Tree:
    """Return the rendered configuration, with copies of `tool` for the odd listeners, and `tcp`."""
    points = [
        _point("tool", around),
        _point("strict", around, require_delegation=True),
        _point("mcp", around, protocol=Protocol.MCP, bundle="tools"),
        _point("rest", around, bundle="orders"),
        _tcp_point(around),
    ]
    tree: Tree = bootstrap_tree(points, node="hardened", admin_socket=around.admin)
    _add_odd_listeners(tree)
    return tree


def default(around: Surroundings) -> Tree:
    """Return the least configuration that asks the PDP and lets it see who calls."""
    tree: Tree = {
        "node": {"id": "default", "cluster": "default"},
        "admin": {"address": {"pipe": {"path": str(around.admin), "mode": 0o600}}},
        "static_resources": {
            "listeners": [
                _default_listener("tool", around),
                _default_listener("strict", around),
                _default_listener("mcp", around, body=_PARTIAL_BODY),
                _default_listener("rest", around, body=_PARTIAL_BODY),
            ],
            "clusters": [
                _cluster("pdp", {"pipe": {"path": str(around.pdp.path)}}, http2=True),
                _cluster(
                    "workload",
                    {"socket_address": _loopback(around.workload_port)},
                    http2=False,
                ),
            ],
        },
    }
    _add_odd_listeners(tree)
    return tree


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEnvoy:
    """An Envoy that listens. `ports` by listener name."""

    process: ChildProcess
    ports: dict[str, int]
    admin: Path

    def statistic(self, name: str) -> int:
        """Return the value of one counter or gauge, 0 when Envoy has not made it yet."""
        for line in unix_get(self.admin, f"/stats?filter=^{name}$").decode().splitlines():
            return int(line.rpartition(" ")[2])
        return 0


def start_envoy(tree: Tree, name: str, directory: Path, group: ProcessGroup) -> RunningEnvoy:
    """Start Envoy on `tree` and return once every listener is bound."""
    config = directory / f"{name}.json"
    config.write_text(json.dumps(tree))
    admin = Path(tree["admin"]["address"]["pipe"]["path"])
    argv: list[str | Path] = [envoy_binary(), "--config-path", config, "--log-level", "warning"]
    argv += ["--disable-hot-restart", "--concurrency", "1"]
    process = group.start(name, argv)
    process.wait_until(lambda: _live(admin), what="LIVE")
    listeners = json.loads(unix_get(admin, "/listeners?format=json"))["listener_statuses"]
    ports = {
        status["name"]: status["local_address"]["socket_address"]["port_value"]
        for status in listeners
        if "socket_address" in status["local_address"]
    }
    return RunningEnvoy(process=process, ports=ports, admin=admin)


def _live(admin: Path) -> bool:
    try:
        return unix_get(admin, "/ready").startswith(b"LIVE")
    except OSError:
        return False


def _point(
    name: str,
    around: Surroundings,
    *,
    require_delegation: bool = False,
    protocol: Protocol = Protocol.HTTP,
    bundle: str = "default",
) -> EnforcementPoint:
    return EnforcementPoint(
        name=name,
        listen=TcpAddress("127.0.0.1", 0),
        upstream=TcpAddress("127.0.0.1", around.workload_port),
        protocol=protocol,
        workload_id=SpiffeId.parse(spiffe("tool/recorder")),
        bundle=bundle,
        pdp=(around.pdp,),
        svid=around.svid_from_agent or around.svid,
        audience=AUDIENCE,
        domains=HOSTS,
        require_delegation=require_delegation,
        pdp_timeout_s=around.pdp_timeout_s,
    )


def _tcp_point(around: Surroundings) -> EnforcementPoint:
    return EnforcementPoint(
        name="tcp",
        listen=TcpAddress("127.0.0.1", 0),
        upstream=TcpAddress("127.0.0.1", around.workload_port),
        protocol=Protocol.TCP,
        workload_id=SpiffeId.parse(spiffe("tool/recorder")),
        bundle="default",
        pdp=(around.pdp,),
        svid=around.svid_from_agent or around.svid,
        require_delegation=False,
        pdp_timeout_s=around.pdp_timeout_s,
    )


def _add_odd_listeners(tree: Tree) -> None:
    listeners: list[Tree] = tree["static_resources"]["listeners"]
    named = {listener["name"]: listener for listener in listeners}
    tool, text = named["tool"], _renamed(named["rest"], "text")
    plain, optional, upgrade = (_renamed(tool, name) for name in ("plain", "optional", "upgrade"))
    del plain["filter_chains"][0]["transport_socket"]
    tls = optional["filter_chains"][0]["transport_socket"]["typed_config"]
    tls["require_client_certificate"] = False
    manager = upgrade["filter_chains"][0]["filters"][0]["typed_config"]
    manager["upgrade_configs"] = [{"upgrade_type": "websocket"}]
    (asking,) = (
        one
        for one in text["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
        if one["name"] == "envoy.filters.http.ext_authz"
    )
    asking["typed_config"]["with_request_body"]["pack_as_bytes"] = False
    listeners.extend([plain, optional, upgrade, text])


def _renamed(listener: Tree, name: str) -> Tree:
    return copy.deepcopy(listener) | {"name": name}


def _default_listener(name: str, around: Surroundings, *, body: Tree | None = None) -> Tree:
    extensions = EXTENSIONS.get(name)
    ext_authz: Tree = {
        "@type": _type("filters.http.ext_authz.v3.ExtAuthz"),
        "transport_api_version": "V3",
        "grpc_service": {
            "envoy_grpc": {"cluster_name": "pdp"},
            "timeout": f"{around.pdp_timeout_s}s",
        },
        "include_peer_certificate": True,
    }
    if body is not None:
        ext_authz["with_request_body"] = body
    host: Tree = {
        "name": name,
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "workload"}}],
    }
    if extensions:
        host["typed_per_filter_config"] = {
            "envoy.filters.http.ext_authz": {
                "@type": _type("filters.http.ext_authz.v3.ExtAuthzPerRoute"),
                "check_settings": {"context_extensions": extensions},
            }
        }
    manager: Tree = {
        "@type": _type("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "route_config": {"virtual_hosts": [host]},
        "http_filters": [
            {"name": "envoy.filters.http.ext_authz", "typed_config": ext_authz},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _type("filters.http.router.v3.Router")},
            },
        ],
    }
    return {
        "name": name,
        "address": {"socket_address": _loopback(0)},
        "filter_chains": [
            {
                "transport_socket": _default_tls(around),
                "filters": [{"name": "hcm", "typed_config": manager}],
            }
        ],
    }


def _default_tls(around: Surroundings) -> Tree:
    """Return mutual TLS without the SPIFFE validator: any certificate of the authority gets in."""
    certificate = {
        "certificate_chain": {"filename": str(around.svid.certificate)},
        "private_key": {"filename": str(around.svid.private_key)},
    }
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": _type("transport_sockets.tls.v3.DownstreamTlsContext"),
            "require_client_certificate": True,
            "common_tls_context": {
                "tls_certificates": [certificate],
                "validation_context": {"trusted_ca": {"filename": str(around.svid.trust_bundle)}},
            },
        },
    }


def _cluster(name: str, address: Tree, *, http2: bool) -> Tree:
    endpoint = {"endpoint": {"address": address}}
    cluster: Tree = {
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
    if http2:
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _type("upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return cluster


def _loopback(port: int) -> Tree:
    return {"address": "127.0.0.1", "port_value": port}


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.extensions.{name}"
