"""Seeds for each target, made anew: tokens and certificates are minted, none is stored.

python fuzz/corpus.py DIRECTORY
"""

import json
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from authz_server.demo.authority import envoy_certificate
from tests.harness import chains
from tests.harness.world import World

_AGENT = "spiffe://cases.example.org/agent/research"
_PROXY = "spiffe://td.example/proxy/edge"


def seeds() -> Mapping[str, list[bytes]]:
    """Return good and nearly good inputs by target."""
    root, first, second = chains.three_hops()
    return {
        "spiffe_id": [
            text.encode()
            for text in (
                *(_AGENT, "spiffe://td.example", "spiffe://td.example/a/", "spiffe://TD/a"),
                *("spiffe://td.example/a\n", "spiffe://td.example/../a", "spiffe://td:80/%61"),
            )
        ],
        "xfcc": [
            f"By={_PROXY};Hash={'ab' * 32};URI={_AGENT},By={_PROXY};URI={_PROXY}".encode(),
            b'By=a;Cert="-----BEGIN%20A";Subject="CN=\\"x, y\\"";URI=;DNS=a.b',
            json.dumps([{"by": [_PROXY], "hash": "ab" * 32, "uri": [_AGENT]}]).encode(),
        ],
        "compact_jws": [root.encode(), first.encode(), b"e30.e30.AA", b"eyJhbGciOiJub25lIn0.e30."],
        "chain_header": [
            root.encode(),
            f"{root}\n{first}".encode(),
            f"{root}\n{first}, {second}".encode(),
            f"{root}\n{second},{first}".encode(),
        ],
        "check_request": [request.SerializeToString() for request in _check_requests()],
    }


def _check_requests() -> list[CheckRequest]:
    world = World()
    svid = world.svid("agent/research")
    token = world.root({"sub": "alice", "to": "agent/research", "scope": "crm.read"})
    http, mcp, a2a, a2a_path, tcp = (CheckRequest() for _ in range(5))
    for request in (http, mcp, a2a, a2a_path, tcp):
        request.attributes.source.certificate = envoy_certificate(svid)
        request.attributes.source.principal = str(svid.spiffe_id)
    for request, method, path, body in (
        (http, "GET", "/v1/x?y=1", b""),
        (mcp, "POST", "/v1/x?y=1", _TOOL_CALL),
        (a2a, "POST", "/a2a", _MESSAGE_0_3),
        (a2a_path, "POST", "/acme/message:send?y=1", _MESSAGE_1_0),
    ):
        described = request.attributes.request.http
        described.method, described.path, described.host = method, path, "crm.example"
        described.scheme, described.raw_body = "https", body
        for name, value in (("txn-token", token), ("content-type", "application/json")):
            line = described.header_map.headers.add()
            line.key, line.raw_value = name, value.encode()
        request.attributes.context_extensions["audience"] = "https://crm.example"
    mcp.attributes.context_extensions["protocol"] = "mcp"
    for request in (a2a, a2a_path):
        request.attributes.context_extensions["protocol"] = "a2a"
    return [http, mcp, a2a, a2a_path, tcp]


_TOOL_CALL = (
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"a":1}}}'
)


def write(directory: Path) -> None:
    """Write the seeds below `directory`, one directory for each target."""
    for target, inputs in seeds().items():
        (directory / target).mkdir(parents=True, exist_ok=True)
        for data in inputs:
            (directory / target / sha256(data).hexdigest()[:16]).write_bytes(data)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
_MESSAGE_0_3 = (
    b'{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"messageId":"m",'
    b'"role":"user","parts":[{"kind":"file","file":{"uri":"https://a.example/"}}]},'
    b'"configuration":{"pushNotificationConfig":{"url":"https://h.example:443/x?y#z"}}}}'
)
_MESSAGE_1_0 = (
    b'{"tenant":"acme","message":{"message_id":"m","taskId":"t","role":"ROLE_USER",'
    b'"parts":[{"text":"x"},{"data":{"a":1}}],"extensions":["https://e.example/1"]}}'
)
