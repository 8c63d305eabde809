"""One real Envoy with a listener for every unsafe setting, a PDP with simple rules, an upstream.

The listeners are the samples of `tests/cases/envoy_lint.yaml`, word for word, with the addresses
and certificates of this machine; beside them stand the configurations that they change, by the name
of the base. The PDP is one that anybody could have written: it denies what begins with `/closed` or
is sent by an agent called `banned`, believes every other word of the check, and allows the rest.
"""

import copy
import dataclasses
import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import grpc

from authz_server._pb.envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from authz_server._pb.envoy.type.v3.http_status_pb2 import StatusCode
from authz_server.agent.svid import Svid
from authz_server.demo.authority import TrustDomainAuthority, write_svid
from authz_server.demo.processes import ProcessGroup
from authz_server.envoy_config.bootstrap import bootstrap_tree
from authz_server.envoy_config.enforcement_point import SvidFiles
from authz_server.settings.addresses import TcpAddress, UnixAddress
from tests.e2e.envoy_profiles import RunningEnvoy, start_envoy
from tests.e2e.raw_http import ANSWER_TIMEOUT_S, Answer, NoAnswerError, RawConnection
from tests.lint_bases import POINTS
from tests.lint_samples import Sample, Tree, find, samples

HOST: Final = "data.example.org"
TRUST_DOMAIN: Final = "prod.example.org"
DEAD: Final = frozenset({"EA201-1", "EA201-3", "EA202-1"})  # whose PDP is down
# Settings of the process need an Envoy of their own.
BY_STRANGERS: Final = frozenset({"EA703-1"})  # whose PDP is a stranger with a forged name
OF_PROCESS: Final = ("EA803-1", "EA805-1")

Judge = Callable[[AttributeContext], CheckResponse]


@dataclass(slots=True)
class Hit:
    """One request as the upstream saw it; header names in lower case."""

    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    more: bytes = b""  # what came on the connection after an upgrade

    def values(self, name: str) -> list[str]:
        """Return every value of header `name`."""
        return [value for key, value in self.headers if key == name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one request: the answer's status (0: none), what the others saw."""

    status: int
    hits: list[Hit]
    checks: list[AttributeContext]

    @property
    def hit(self) -> Hit:
        """The only request that the upstream saw."""
        (hit,) = self.hits
        return hit

    @property
    def check(self) -> AttributeContext:
        """The only check."""
        (check,) = self.checks
        return check

    @property
    def passed(self) -> bool:
        """Whether the upstream saw anything."""
        return bool(self.hits)


@dataclass(slots=True)
class Site:
    """Everything that runs. Requests are sent one after the other."""

    directory: Path
    authority: TrustDomainAuthority
    envoys: list[RunningEnvoy] = field(default_factory=list)
    upstream_port: int = 0
    impostor_port: int = 0  # a PDP that proves to be another workload of the trust domain
    stranger_port: int = 0  # a PDP whose certificate has the right name, and signed itself
    hits: list[Hit] = field(default_factory=list)
    connections: int = 0
    checks: list[AttributeContext] = field(default_factory=list)
    judge: Judge = lambda _: allowed()
    released: threading.Event = field(default_factory=threading.Event)
    _assistant: ssl.SSLContext | None = None

    def port(self, listener: str) -> int:
        """Return the port of a listener: a sample's id, or the name of a base."""
        return next(envoy.ports[listener] for envoy in self.envoys if listener in envoy.ports)

    def client(
        self, svid: Svid | None = None, *, certificate: bool = True, tls12: bool = False
    ) -> ssl.SSLContext:
        """Return a client with an SVID, by default that of an agent called `assistant`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if tls12:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        if certificate:
            own = svid or self.authority.issue_svid("/agent/assistant")
            context.load_cert_chain(*write_svid(own, _fresh(self.directory)))
        return context

    def ask(
        self,
        listener: str,
        request: bytes,
        *,
        tls: ssl.SSLContext | None = None,
        plain: bool = False,
        first: bytes = b"",
    ) -> Outcome:
        """Send one request, `first` in front of the handshake, and return what came of it."""
        self.hits.clear()
        self.checks.clear()
        try:
            with self.connect(listener, tls=tls, plain=plain, first=first) as connection:
                connection.send(request)
                answer = connection.answer()
        except NoAnswerError:
            answer = Answer(status=0)
        return Outcome(status=answer.status, hits=list(self.hits), checks=list(self.checks))

    def connect(
        self,
        listener: str,
        *,
        tls: ssl.SSLContext | None = None,
        plain: bool = False,
        first: bytes = b"",
    ) -> RawConnection:
        """Connect to a listener, by mutual TLS unless `plain`."""
        port = self.port(listener)
        if self._assistant is None:
            self._assistant = self.client()
        context = tls or self._assistant
        if not first:
            return RawConnection(port, tls=None if plain else context, server_name=HOST)
        connection = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT_S)
        connection.sendall(first)
        return RawConnection.over(context.wrap_socket(connection, server_hostname=HOST))


def get(path: str = "/open", *headers: str, host: str = HOST, version: str = "1.1") -> bytes:
    """Return a GET."""
    lines = [f"GET {path} HTTP/{version}", *([f"Host: {host}"] if host else []), *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def post(body: bytes, *headers: str, path: str = "/open") -> bytes:
    """Return a POST."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def allowed() -> CheckResponse:
    """Return an answer that allows."""
    response = CheckResponse()
    response.ok_response.SetInParent()
    return response


def denied() -> CheckResponse:
    """Return an answer that denies."""
    response = CheckResponse()
    response.status.code = grpc.StatusCode.PERMISSION_DENIED.value[0]
    response.denied_response.status.code = StatusCode.Forbidden
    return response


def header(check: AttributeContext, name: str) -> list[bytes]:
    """Return every value of a header that the PDP was shown."""
    http = check.request.http
    lines = [one.raw_value for one in http.header_map.headers if one.key == name]
    if not lines and name in http.headers:
        return [http.headers[name].encode()]
    return lines


def by_path(check: AttributeContext) -> CheckResponse:
    """Judge as the site's PDP does."""
    closed = check.request.http.path.startswith("/closed")
    banned = "banned" in check.source.principal
    is_http = bool(check.request.http.method)
    return allowed() if is_http and not closed and not banned else denied()


@contextmanager
def running(directory: Path) -> Iterator[Site]:
    """Run the site below `directory`, which must have a short path."""
    site = Site(directory, TrustDomainAuthority.create(TRUST_DOMAIN))
    site.judge = by_path
    with _upstream(site), _pdp(site, directory / "pdp.sock"), ProcessGroup(directory) as group:
        for number, tree in enumerate(_trees(site)):
            site.envoys.append(start_envoy(tree, f"envoy-{number}", directory, group))
        try:
            yield site
        finally:
            site.released.set()


# --- configuration ------------------------------------------------------------------------------


def _trees(site: Site) -> Iterator[Tree]:
    shown = [one for one in samples() if one.shown]
    joined = _empty(site.directory / "admin.sock")
    for name in ("http", "mcp", "tcp", "remote"):
        _add(joined, name, _base(site, name))
    _add(joined, "remote-stranger", _base(site, "remote", site.stranger_port))
    _add(joined, "http-dead", _dead(_base(site, "http")))
    _add(joined, "tcp-dead", _dead(_base(site, "tcp")))
    merged = _base(site, "http")
    find(merged, "route")["typed_per_filter_config"] = _context({"resource": "of-the-route"})
    _add(joined, "merged", merged)
    for sample in shown:
        if sample.id in OF_PROCESS:
            continue
        _add(joined, sample.id, _changed(site, sample))
        if "safe" in sample.values:
            safe = sample.safe(_base(site, sample.base))
            _add(joined, f"{sample.id}-safe", _dead(safe) if sample.id in DEAD else safe)
    yield joined
    yield from (_of_process(site, one) for one in shown if one.id in OF_PROCESS)


def _context(extensions: dict[str, str]) -> Tree:
    kind = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"
    settings = {"check_settings": {"context_extensions": extensions}}
    return {"envoy.filters.http.ext_authz": {"@type": f"type.googleapis.com/{kind}", **settings}}


def _empty(admin: Path) -> Tree:
    return {
        "node": {"id": "lint", "cluster": "lint"},
        "admin": {"address": {"pipe": {"path": str(admin), "mode": 0o600}}},
        "static_resources": {"listeners": [], "clusters": []},
    }


def _base(site: Site, name: str, remote_port: int = 0) -> Tree:
    """Return a base with the addresses of this machine.

    The PDP of `remote` is whoever listens on `remote_port`, by default a workload that is not it.
    """
    pdp: tuple[TcpAddress | UnixAddress, ...] = (UnixAddress(site.directory / "pdp.sock"),)
    tls = POINTS[name].pdp_tls
    if tls is not None:
        pdp = (TcpAddress("127.0.0.1", remote_port or site.impostor_port),)
        tls = dataclasses.replace(tls, svid=_svid(site))
    point = dataclasses.replace(
        POINTS[name],
        listen=TcpAddress("127.0.0.1", 0),
        upstream=TcpAddress("127.0.0.1", site.upstream_port),
        pdp=pdp,
        pdp_tls=tls,
        svid=_svid(site),
        pdp_timeout_s=5.0,
    )
    tree: Tree = bootstrap_tree([point], node="lint", admin_socket=site.directory / "admin.sock")
    if name == "tcp":
        # The samples are about the question; which names a client may ask for is another matter.
        find(tree, "chain").pop("filter_chain_match", None)
    return tree


def _svid(site: Site) -> SvidFiles:
    certificate, key = site.directory / "svid.pem", site.directory / "svid.key.pem"
    if not certificate.exists():
        svid = site.authority.issue_svid("/service/data-api")
        write_svid(svid, site.directory)
        (site.directory / "bundle.pem").write_bytes(site.authority.bundle_pem)
    return SvidFiles(
        certificate=certificate, private_key=key, trust_bundle=site.directory / "bundle.pem"
    )


def _changed(site: Site, sample: Sample) -> Tree:
    remote_port = site.stranger_port if sample.id in BY_STRANGERS else 0
    changed = sample.unsafe(_base(site, sample.base, remote_port))
    return _dead(changed) if sample.id in DEAD else changed


def _dead(tree: Tree) -> Tree:
    changed: Tree = json.loads(json.dumps(tree).replace("/pdp.sock", "/nobody.sock"))
    return changed


def _add(joined: Tree, name: str, tree: Tree) -> None:
    """Add listeners and clusters of `tree` to `joined`, under names of their own."""
    directory = Path(joined["admin"]["address"]["pipe"]["path"]).parent
    text = json.dumps(tree["static_resources"]).replace("/run/authz/", f"{directory}/")
    for cluster in tree["static_resources"]["clusters"]:
        text = text.replace(f'"{cluster["name"]}"', f'"{name}-{cluster["name"]}"')
    resources = json.loads(text)
    for number, listener in enumerate(resources["listeners"]):
        listener["name"] = name if number == 0 else f"{name}-second"
    for part in ("listeners", "clusters"):
        joined["static_resources"][part] += resources[part]


def _of_process(site: Site, sample: Sample) -> Tree:
    tree = copy.deepcopy(_base(site, "http"))
    question: Any = find(tree, "ext_authz")
    off = {"numerator": 0, "denominator": "HUNDRED"}
    question["filter_enabled"] = {"default_value": off, "runtime_key": "authz.enabled"}
    changed = sample.unsafe(tree)
    changed["static_resources"]["listeners"][0]["name"] = sample.id
    changed["admin"]["address"]["pipe"]["path"] = str(site.directory / f"{sample.id}.sock")
    return changed


# --- the PDP and the upstream -------------------------------------------------------------------


@contextmanager
def _pdp(site: Site, path: Path) -> Iterator[None]:
    def check(data: bytes, _: grpc.ServicerContext) -> bytes:
        attributes = CheckRequest.FromString(data).attributes
        site.checks.append(attributes)
        if attributes.request.http.path == "/hang":
            site.released.wait()
        return site.judge(attributes).SerializeToString()

    handler = grpc.method_handlers_generic_handler(
        "envoy.service.auth.v3.Authorization", {"Check": grpc.unary_unary_rpc_method_handler(check)}
    )
    # Each check of a path that hangs keeps its thread until the end.
    server = grpc.server(ThreadPoolExecutor(max_workers=32))
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{path}")
    impostor = site.authority.issue_svid("/agent/impostor")
    stranger = TrustDomainAuthority.create(TRUST_DOMAIN).issue_svid("/pdp")
    site.impostor_port = server.add_secure_port("127.0.0.1:0", _credentials(impostor))
    site.stranger_port = server.add_secure_port("127.0.0.1:0", _credentials(stranger))
    server.start()
    try:
        yield
    finally:
        site.released.set()
        server.stop(grace=None).wait()


def _credentials(svid: Svid) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(svid.key_pem, svid.cert_chain_pem)])


@contextmanager
def _upstream(site: Site) -> Iterator[None]:
    class Connection(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            site.connections += 1
            try:
                while self._serve_one():
                    pass
            except (OSError, ValueError):
                return

        def _serve_one(self) -> bool:
            line = self.rfile.readline().decode("latin-1")
            if not line.strip():
                return False
            hit = Hit(line.split(" ")[1], [])
            while field := self.rfile.readline().strip():
                name, _, value = field.decode("latin-1").partition(":")
                hit.headers.append((name.lower(), value.strip()))
            hit.body = self._body(hit)
            site.hits.append(hit)
            if hit.values("upgrade"):
                head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                self.wfile.write(head + b"Connection: Upgrade\r\n\r\n")
                hit.more = self.rfile.readline()
                self.wfile.write(b"heard\r\n\r\n")
                return False
            head = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n"
            date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT").encode()
            self.wfile.write(head + b"Date: " + date + b"\r\n\r\nok")
            return True

        def _body(self, hit: Hit) -> bytes:
            body = b""
            if "chunked" in hit.values("transfer-encoding"):
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body
            return self.rfile.read(int(next(iter(hit.values("content-length")), "0")))

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Connection) as server:
        site.upstream_port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _fresh(directory: Path) -> Path:
    number = sum(1 for _ in directory.glob("client-*"))
    fresh = directory / f"client-{number}"
    fresh.mkdir()
    return fresh


def long_ago() -> datetime:
    """Return a moment at which a certificate can have been made that has expired since."""
    return datetime.now(UTC) - timedelta(hours=12)
