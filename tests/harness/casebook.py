"""Reads `tests/cases/decisions.yaml` and turns a case into what each layer is given.

caller    name of the SVID presented (`agent/x`), null for none, or `{uris, dns}` for a leaf
          certificate with these names
route     the context extensions, by name
chain     `root` and `links` to mint (see `World.root`, `World.link`), then bent by
          `order`, `swap_root`, `repeat_root`, `drop_root`; or `raw_root`; null for none
request   `method, path, headers, body`; or `mcp: {method, params}`; or `a2a: {method, params}` over
          JSON-RPC, with `path` in it for another endpoint; or `connect: host:port` for a tunnel,
          with `headers, body` and at most a wrong `path`; or `tcp: {sni}` for a raw connection,
          whose listener has the route's context as labels
revoked   what is revoked: `{txn: true}` means the chain's own
envoy     false where Envoy itself would never send this (see the attack suite)
expect    `verdict, reason`, and `rules` where they matter
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
import yaml

from authz_server._pb.envoy.service.auth.v3 import external_auth_pb2 as auth
from authz_server.core.snapshot import Revocations
from authz_server.demo.authority import LeafProfile, envoy_certificate
from tests.harness.world import CASES, World, spiffe_id

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case, defaults applied."""

    name: str
    spec: Mapping[str, Any]
    extensions: Mapping[str, str]

    @property
    def expect(self) -> Mapping[str, Any]:
        """The verdict, reason and rules that must come out."""
        expected: Mapping[str, Any] = self.spec["expect"]
        return expected

    @property
    def is_raw(self) -> bool:
        """Whether it is a TCP connection, of which Envoy shows no request."""
        return "tcp" in self.spec["request"]

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCall:
    """The request of a case, as a client would send it."""

    method: str
    path: str
    headers: Headers
    body: bytes


@functools.cache
def cases() -> tuple[Case, ...]:
    """Return every case of the book."""
    book = yaml.safe_load((CASES / "decisions.yaml").read_text())
    return tuple(
        Case(
            name=entry["name"],
            spec=book["defaults"] | entry,
            extensions=book["routes"][(book["defaults"] | entry)["route"]],
        )
        for entry in book["cases"]
    )


@functools.cache
def routes() -> Mapping[str, Mapping[str, str]]:
    """Return the context extensions of every route of the book."""
    found: Mapping[str, Mapping[str, str]] = yaml.safe_load((CASES / "decisions.yaml").read_text())[
        "routes"
    ]
    return found


def delegation_headers(spec: Mapping[str, Any] | None, world: World) -> Headers:
    """Mint and bend the chain of a case."""
    if spec is None:
        return []
    if "raw_root" in spec:
        return [("txn-token", spec["raw_root"].encode())]
    if "raw_root_repeat" in spec:
        head, filler, count = spec["raw_root_repeat"]
        return [("txn-token", (head + filler * count).encode())]
    root, *links = world.chain(spec["root"], spec.get("links", ()))
    links = [links[i] for i in spec.get("order", range(len(links)))]
    if "swap_root" in spec:
        root = world.root(spec["swap_root"] | {"txn": txn_of(root)})
    headers = [] if spec.get("drop_root") else [("txn-token", root.encode())]
    headers *= 2 if spec.get("repeat_root") else 1
    if links:
        headers.append(("delegation-chain", ", ".join(links).encode()))
    return headers


def txn_of(root: str) -> str:
    """Return the transaction of a root."""
    return str(jwt.decode(root, options={"verify_signature": False})["txn"])


def http_call(case: Case, world: World) -> HttpCall:
    """Build the request of a case with its delegation headers."""
    spec = case.spec["request"]
    headers: Headers = [(k, v.encode()) for k, v in spec.get("headers", {}).items()]
    headers += delegation_headers(case.spec["chain"], world)
    if "mcp" in spec:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, **spec["mcp"]}).encode()
        headers.append(("content-type", b"application/json"))
        return HttpCall(method="POST", path="/mcp", headers=headers, body=body)
    if "a2a" in spec:
        message = {name: value for name, value in spec["a2a"].items() if name != "path"}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, **message}).encode()
        headers.append(("content-type", b"application/json"))
        path = spec["a2a"].get("path", "/a2a")
        return HttpCall(method="POST", path=path, headers=headers, body=body)
    if "connect" in spec:
        body = spec.get("body", "").encode()
        return HttpCall(method="CONNECT", path=spec.get("path", ""), headers=headers, body=body)
    if "tcp" in spec:
        return HttpCall(method="", path="", headers=headers, body=b"")
    path = spec.get("path")
    if path is None:
        head, filler, count = spec["path_repeat"]
        path = head + filler * count
    return HttpCall(
        method=spec["method"], path=path, headers=headers, body=spec.get("body", "").encode()
    )


def certificate(caller: str | Mapping[str, Any] | None, world: World) -> str:
    """Return the caller's leaf as Envoy sends it; empty for none."""
    if caller is None:
        return ""
    if isinstance(caller, str):
        return envoy_certificate(world.svid(caller))
    authority = world.other if "other" in str(caller["uris"]) else world.authority
    profile = LeafProfile(dns_names=caller.get("dns", ()))
    return envoy_certificate(authority.issue_leaf(caller["uris"], profile=profile))


def check_request(case: Case, world: World) -> bytes:
    """Return the CheckRequest a hardened Envoy would send for the case."""
    call = http_call(case, world)
    message = auth.CheckRequest()
    attributes = message.attributes
    attributes.source.certificate = certificate(case.spec["caller"], world)
    attributes.source.address.socket_address.address = "127.0.0.1"
    attributes.source.address.socket_address.port_value = 40000
    attributes.destination.address.socket_address.address = "127.0.0.1"
    attributes.destination.address.socket_address.port_value = 10443
    if case.is_raw:
        attributes.destination.labels.update({"node": "casebook", **case.extensions})
        attributes.tls_session.sni = case.spec["request"]["tcp"].get("sni", "")
        return message.SerializeToString()
    host = case.spec["request"].get("connect", "data.example")
    attributes.context_extensions.update(case.extensions)
    http = attributes.request.http
    http.method, http.path, http.host = call.method, call.path, host
    http.scheme, http.protocol, http.raw_body = "https", "HTTP/1.1", call.body
    http.size = len(call.body)
    fields: Headers = [
        (":method", call.method.encode()),
        *([(":path", call.path.encode())] if call.path else []),
        (":authority", host.encode()),
        (":scheme", b"https"),
        *call.headers,
    ]
    for name, value in fields:
        http.header_map.headers.add(key=name, raw_value=value)
    return message.SerializeToString()


def revocations(case: Case, request: bytes) -> Revocations:
    """Return what the case has revoked."""
    revoked = case.spec.get("revoked", {})
    if "spiffe_id" in revoked:
        return Revocations(spiffe_id=frozenset({spiffe_id(revoked["spiffe_id"])}))
    if "txn" in revoked:
        headers = auth.CheckRequest.FromString(request).attributes.request.http.header_map.headers
        (root,) = (h.raw_value.decode() for h in headers if h.key == "txn-token")
        return Revocations(txn=frozenset({txn_of(root)}))
    return Revocations()
