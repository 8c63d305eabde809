"""An Envoy whose PDP says what a test tells it to, and keeps the bytes it was asked with.

Listeners: `raw` sends headers and bodies as bytes, as we render it; `text` sends both as text, and
`text_no_body` headers only; `mtls` is `raw` behind mutual TLS; `a2a` is `raw` behind Envoy's A2A
filter, without cut bodies, and `a2a_gate` lets that filter reject; `tcp` is the network filter, and
`proxied` that filter behind mutual TLS, and before it a PROXY header that is believed.
"""

import copy
import http.server
import socketserver
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from authz_server.demo.processes import ProcessGroup
from authz_server.envoy_config.enforcement_point import SvidFiles
from authz_server.settings.addresses import UnixAddress
from tests.e2e.envoy_profiles import RunningEnvoy, Surroundings, Tree, default, start_envoy

BODY_BYTES_MAX = 1024  # longer bodies reach the PDP cut
FORGED = "forged-by-the-upstream"
METADATA_HEADER = "x-test-metadata"  # of every answer: the dynamic metadata of the decision

A2A_FILTER = "envoy.filters.http.a2a"
PROXY_FILTER = "envoy.filters.listener.proxy_protocol"
TLV_TYPE = 0xE0  # the first of those that PROXY v2 leaves to applications

_EXTENSIONS = "type.googleapis.com/envoy.extensions"


@dataclass(slots=True)
class Hit:
    """One request as the upstream saw it. Header names in lower case."""

    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        """Return every value of header `name`."""
        return [value for key, value in self.headers if key == name]


@dataclass(slots=True)
class Scripted:
    """Everything that runs. `answer` is called with each check and returns the CheckResponse."""

    answer: Callable[[bytes], bytes] = field(default=lambda _: b"")
    checks: list[bytes] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    envoy: RunningEnvoy = field(init=False)

    def port(self, listener: str) -> int:
        """Return the port of a listener."""
        return self.envoy.ports[listener]

    def told(self, answer: bytes) -> None:
        """Make the PDP say `answer` from now on, and forget what was seen so far."""
        self.answer = lambda _: answer
        self.checks.clear()
        self.hits.clear()


@contextmanager
def running(directory: Path, svid: SvidFiles) -> Iterator[Scripted]:
    """Run PDP, Envoy and upstream below `directory`, which must have a short path."""
    scripted = Scripted()
    with (
        _upstream(scripted) as upstream_port,
        _pdp(scripted, directory / "pdp.sock"),
        ProcessGroup(directory) as group,
    ):
        around = Surroundings(
            pdp=UnixAddress(directory / "pdp.sock"),
            workload_port=upstream_port,
            svid=svid,
            admin=directory / "admin.sock",
            pdp_timeout_s=5.0,
        )
        tree = _tree(around)
        scripted.envoy = start_envoy(tree, "scripted", directory, group)
        yield scripted


def _tree(around: Surroundings) -> Tree:
    tree = default(around)
    mutual = tree["static_resources"]["listeners"][0]
    mutual["name"] = "mtls"
    _show_metadata(mutual)
    raw = {"encode_raw_headers": True, "include_tls_session": True} | _body(as_bytes=True)
    _filter(mutual).update(raw)
    _route(mutual)["typed_per_filter_config"] = {
        "envoy.filters.http.ext_authz": {
            "@type": f"{_EXTENSIONS}.filters.http.ext_authz.v3.ExtAuthzPerRoute",
            "check_settings": {"context_extensions": {"resource": "crm", "bundle": "tools"}},
        }
    }
    plain = _copy(mutual, "raw")
    del plain["filter_chains"][0]["transport_socket"]
    text, text_no_body = _copy(plain, "text"), _copy(plain, "text_no_body")
    _filter(text).update(_body(as_bytes=False))
    _filter(text)["encode_raw_headers"] = False
    _filter(text_no_body)["encode_raw_headers"] = False
    del _filter(text_no_body)["with_request_body"]
    gates = [_a2a(plain, "a2a", "PASS_THROUGH"), _a2a(plain, "a2a_gate", "REJECT")]
    listeners = [mutual, plain, text, text_no_body, _tcp(plain), _proxied(mutual)]
    tree["static_resources"]["listeners"] = listeners + gates
    return tree


def _body(*, as_bytes: bool) -> Tree:
    return {
        "with_request_body": {
            "max_request_bytes": BODY_BYTES_MAX,
            "allow_partial_message": True,
            "pack_as_bytes": as_bytes,
        }
    }


def _copy(listener: Tree, name: str) -> Tree:
    return copy.deepcopy(listener) | {"name": name}


def _manager(listener: Tree) -> Any:
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def _filter(listener: Tree) -> Any:
    return _manager(listener)["http_filters"][0]["typed_config"]


def _route(listener: Tree) -> Any:
    return _manager(listener)["route_config"]["virtual_hosts"][0]


def _show_metadata(listener: Tree) -> None:
    """Answer with what an access log would show of a decision; a log itself is flushed late."""
    value = "%DYNAMIC_METADATA(envoy.filters.http.ext_authz)%"
    header = {"header": {"key": METADATA_HEADER, "value": value}}
    every_status = {"op": "GE", "value": {"default_value": 100, "runtime_key": "none"}}
    _route(listener)["response_headers_to_add"] = [header]
    _manager(listener)["local_reply_config"] = {
        "mappers": [
            {
                "filter": {"status_code_filter": {"comparison": every_status}},
                "headers_to_add": [header],
            }
        ]
    }


def _a2a(plain: Tree, name: str, mode: str) -> Tree:
    listener = _copy(plain, name)
    asking = _filter(listener)
    asking["metadata_context_namespaces"] = [A2A_FILTER]
    asking["with_request_body"]["allow_partial_message"] = False
    settings = {
        "@type": f"{_EXTENSIONS}.filters.http.a2a.v3.A2a",
        "traffic_mode": mode,
        "storage_mode": "DYNAMIC_METADATA",
    }
    _manager(listener)["http_filters"].insert(0, {"name": A2A_FILTER, "typed_config": settings})
    return listener


def _tcp(plain: Tree) -> Tree:
    listener = _copy(plain, "tcp")
    listener["filter_chains"] = [
        {
            "filters": [
                {
                    "name": "envoy.filters.network.ext_authz",
                    "typed_config": {
                        "@type": f"{_EXTENSIONS}.filters.network.ext_authz.v3.ExtAuthz",
                        "stat_prefix": "tcp",
                        "transport_api_version": "V3",
                        "grpc_service": _filter(plain)["grpc_service"],
                    },
                },
                {
                    "name": "envoy.filters.network.tcp_proxy",
                    "typed_config": {
                        "@type": f"{_EXTENSIONS}.filters.network.tcp_proxy.v3.TcpProxy",
                        "stat_prefix": "tcp",
                        "cluster": "workload",
                    },
                },
            ]
        }
    ]
    return listener


def _proxied(mutual: Tree) -> Tree:
    listener = _tcp(mutual) | {"name": "proxied"}
    chain = listener["filter_chains"][0]
    chain["transport_socket"] = mutual["filter_chains"][0]["transport_socket"]
    settings = {
        "@type": f"{_EXTENSIONS}.filters.listener.proxy_protocol.v3.ProxyProtocol",
        "rules": [{"tlv_type": TLV_TYPE, "on_tlv_present": {"key": "delegation"}}],
    }
    listener["listener_filters"] = [{"name": PROXY_FILTER, "typed_config": settings}]
    asking = chain["filters"][0]["typed_config"]
    asking["include_peer_certificate"] = True
    asking["metadata_context_namespaces"] = [PROXY_FILTER]
    return listener


@contextmanager
def _pdp(scripted: Scripted, path: Path) -> Iterator[None]:
    def check(data: bytes, _: grpc.ServicerContext) -> bytes:
        scripted.checks.append(data)
        return scripted.answer(data)

    handler = grpc.method_handlers_generic_handler(
        "envoy.service.auth.v3.Authorization", {"Check": grpc.unary_unary_rpc_method_handler(check)}
    )
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        yield
    finally:
        server.stop(grace=None).wait()


@contextmanager
def _upstream(scripted: Scripted) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            headers = [(name.lower(), value) for name, value in self.headers.items()]
            scripted.hits.append(Hit(self.path, headers, self.rfile.read(length)))
            self.send_response(200)
            self.send_header("x-authz-decision-id", FORGED)
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST = _answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
