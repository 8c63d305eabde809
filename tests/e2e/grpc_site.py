"""A gRPC service behind a hardened Envoy, and a policy that allows, denies and escalates its calls.

The service knows methods of each kind and remembers what reached it. A message is its bytes. `Both`
and `ApproveUp` are declared as `streams`; `Up` and `Duplex` stream too, and are not declared.
Listener `plain` is a copy without TLS; on `hasty` a request has to be there within a second.
"""

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml

from authz_server.core.attributes import Protocol
from authz_server.core.spiffe import SpiffeId
from authz_server.envoy_config.bootstrap import bootstrap_tree
from authz_server.envoy_config.enforcement_point import EnforcementPoint
from authz_server.settings.addresses import TcpAddress
from tests.e2e.attack_mesh import BUNDLE, Mesh, running_mesh, surroundings
from tests.e2e.envoy_profiles import RunningEnvoy, Tree, start_envoy
from tests.e2e.forge import AUDIENCE, spiffe

HOST = "rpc.example"
SERVICE = "echo.v1.Echo"

_MODEL = """\
[request_definition]
r = sub, act

[policy_definition]
p = id, sub, act, eft, obligation

[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))

[matchers]
m = r.sub.id == p.sub && r.act.name == p.act
"""
_POLICY = f"""\
p, unary, {spiffe("agent/narrow")}, {SERVICE}/Unary, allow,
p, down, {spiffe("agent/narrow")}, {SERVICE}/Down, allow,
p, up, {spiffe("agent/narrow")}, {SERVICE}/Up, allow,
p, both, {spiffe("agent/narrow")}, {SERVICE}/Both, allow,
p, duplex, {spiffe("agent/narrow")}, {SERVICE}/Duplex, allow,
p, approve, {spiffe("agent/narrow")}, {SERVICE}/Approve, escalate, operators
p, approve-up, {spiffe("agent/narrow")}, {SERVICE}/ApproveUp, escalate, operators
p, never, {spiffe("agent/narrow")}, {SERVICE}/Never, deny,
"""


@dataclass(slots=True)
class Service:
    """What reached the service: the method of each call."""

    calls: list[str] = field(default_factory=list)

    def note(self, method: str) -> None:
        """Remember a call."""
        self.calls.append(method)


@dataclass(frozen=True, slots=True)
class GrpcSite:
    """Everything that runs."""

    mesh: Mesh
    envoy: RunningEnvoy
    service: Service

    def channel(self, caller: str = "narrow", *, listener: str = "rpc") -> grpc.Channel:
        """Return a channel through Envoy as one caller; by `plain` as nobody."""
        address = f"127.0.0.1:{self.envoy.ports[listener]}"
        if listener == "plain":
            return grpc.insecure_channel(address, [("grpc.default_authority", HOST)])
        svid = self.mesh.svid(caller)
        credentials = grpc.ssl_channel_credentials(
            self.mesh.forge.authority.pem, svid.key_pem, svid.certificate_pem
        )
        # The listener's certificate has this DNS name; the authority is what the route matches.
        options = [
            ("grpc.ssl_target_name_override", "tool.example"),
            ("grpc.default_authority", HOST),
        ]
        return grpc.secure_channel(address, credentials, options)


@contextmanager
def running_site(directory: Path) -> Iterator[GrpcSite]:
    """Run PDP, Envoy and service below `directory`, which must have a short path."""
    bundle = directory / "bundles" / "rpc"
    bundle.mkdir(parents=True)
    (bundle / "model.conf").write_text(_MODEL)
    (bundle / "policy.csv").write_text(_POLICY)
    (bundle / "bundle.yaml").write_text(yaml.safe_dump(BUNDLE | {"name": "rpc"}))
    service = Service()
    with _serving(service) as port, running_mesh(directory, profiles=()) as mesh:
        around = surroundings(mesh, "rpc", 5.0)
        point = EnforcementPoint(
            name="rpc",
            listen=TcpAddress("127.0.0.1", 0),
            upstream=TcpAddress("127.0.0.1", port),
            protocol=Protocol.GRPC,
            workload_id=SpiffeId.parse(spiffe("tool/recorder")),
            bundle="rpc",
            pdp=(around.pdp,),
            svid=around.svid,
            audience=AUDIENCE,
            domains=(HOST,),
            require_delegation=False,
            streams=(f"{SERVICE}/Both", f"{SERVICE}/ApproveUp"),
            pdp_timeout_s=around.pdp_timeout_s,
        )
        tree: Tree = bootstrap_tree([point], node="rpc", admin_socket=around.admin)
        listeners = tree["static_resources"]["listeners"]
        plain = copy.deepcopy(listeners[0]) | {"name": "plain"}
        hasty = copy.deepcopy(listeners[0]) | {"name": "hasty"}
        del plain["filter_chains"][0]["transport_socket"]
        hasty["filter_chains"][0]["filters"][0]["typed_config"]["request_timeout"] = "1s"
        listeners += [plain, hasty]
        yield GrpcSite(mesh, start_envoy(tree, "rpc", directory, mesh.group), service)


@contextmanager
def _serving(service: Service) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, _handlers(service)),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def _handlers(service: Service) -> dict[str, "grpc.RpcMethodHandler[Any, Any]"]:
    def unary(name: str) -> "grpc.RpcMethodHandler[Any, Any]":
        def handle(request: bytes, _context: grpc.ServicerContext) -> bytes:
            service.note(name)
            return request

        return grpc.unary_unary_rpc_method_handler(handle)

    def down(request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        service.note("Down")
        for _ in range(3):
            yield request

    def up(name: str) -> "grpc.RpcMethodHandler[Any, Any]":
        def handle(requests: Iterator[bytes], _context: grpc.ServicerContext) -> bytes:
            service.note(name)
            return b",".join(requests)

        return grpc.stream_unary_rpc_method_handler(handle)

    def duplex(name: str) -> "grpc.RpcMethodHandler[Any, Any]":
        def handle(requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
            service.note(name)
            yield from requests

        return grpc.stream_stream_rpc_method_handler(handle)

    return {
        **{name: unary(name) for name in ("Unary", "Approve", "Never", "Unknown")},
        "Down": grpc.unary_stream_rpc_method_handler(down),
        **{name: up(name) for name in ("Up", "ApproveUp")},
        **{name: duplex(name) for name in ("Both", "Duplex")},
    }
