"""Write TARGETS.yaml for a running mesh: everything `policy consistency --through` needs of it."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml
from google.protobuf import descriptor_pb2

from authz_server._pb.fleet.v1 import fleet_pb2
from authz_server.core.attributes import Protocol
from authz_server.demo.mesh import Mesh
from authz_server.demo.plan import Service
from authz_server.demo.services.a2a_agent import RPC_PATH

TARGETS: Final = "targets.yaml"
_ISSUER_KEY: Final = "sts.key.pem"
_DESCRIPTORS: Final = "fleet.binpb"
_SSL_REQUEST: Final = struct.pack("!II", 8, 80877103)  # what a PostgreSQL answers with one letter


def write_targets(mesh: Mesh) -> Path:
    """Write TARGETS.yaml for `mesh`, and what it names, into its directory; return its path."""
    root = mesh.layout.root
    key = root / _ISSUER_KEY
    key.touch(mode=0o600)
    key.write_bytes(mesh.issuer.key_pem)
    files = descriptor_pb2.FileDescriptorSet()
    fleet_pb2.DESCRIPTOR.CopyToProto(files.file.add())
    (root / _DESCRIPTORS).write_bytes(files.SerializeToString())
    for caller in mesh.plan.callers:
        mesh.svid(caller)
    document = {
        "trust_domain": str(mesh.plan.trust_domain),
        "issuer": {"issuer": mesh.issuer.issuer, "key_file": _ISSUER_KEY, "kid": mesh.issuer.kid},
        "agents": {
            str(mesh.plan.spiffe_id(caller)): str(mesh.layout.svid(caller).relative_to(root))
            for caller in mesh.plan.callers
        },
        "targets": [
            *(_target(mesh, service) for service in mesh.plan.services),
            *_outbound_targets(mesh),
        ],
    }
    path = root / TARGETS
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def _target(mesh: Mesh, service: Service) -> dict[str, object]:
    endpoint = mesh.endpoint(service.name)
    optional = {
        "resource": service.resource,
        "labels": dict(service.labels),
        "descriptors": _DESCRIPTORS if service.protocol is Protocol.GRPC else None,
        "path": RPC_PATH if service.protocol is Protocol.A2A else None,
        "tunnel": next(iter(service.tunnels), None),
        "first_bytes": _SSL_REQUEST.hex() if service.protocol is Protocol.TCP else None,
    }
    return {
        "name": service.name,
        "bundle": service.bundle,
        "protocol": str(service.protocol),
        "address": f"{endpoint.host}:{endpoint.port}",
        "host": service.host,
        "peer": endpoint.spiffe_id,
    } | {key: value for key, value in optional.items() if value}


def _outbound_targets(mesh: Mesh) -> Iterator[dict[str, object]]:
    """Yield the same services by way of a plain client's own Envoy."""
    for port in mesh.local_ports():
        for service in port.services:
            if service.protocol is Protocol.HTTP:
                direct = _target(mesh, service)
                del direct["peer"]
                yield direct | {
                    "name": port.way.name,
                    "address": str(port.address),
                    "caller": str(mesh.plan.spiffe_id(port.way.workload)),
                }
