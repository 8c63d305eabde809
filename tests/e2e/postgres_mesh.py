"""PostgreSQL behind an Envoy, another Envoy beside its clients, and one PDP.

`inbound` stands in front of the database. Its listeners, as rendered: `orders` and `payroll` admit
raw connections, each judged by a bundle of its own; `tunnel` admits CONNECT; `greeting` and
`greeting_tunnel` lead to a server that speaks first. And bent copies of them (`_bent`), each for
what one setting is for.
`outbound` has a port for each client: `<client>_raw` and `<client>_tunnel`.
"""

import copy
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import yaml

from authz_server.agent import Delegation, Delegator
from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.agent.svid import Svid
from authz_server.agent.tunnel_files import leave_delegation
from authz_server.core.attributes import Protocol
from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.demo.authority import LeafProfile, TrustDomainAuthority, write_svid
from authz_server.demo.processes import ChildProcess, ProcessGroup
from authz_server.envoy_config.bootstrap import bootstrap_tree
from authz_server.envoy_config.enforcement_point import EnforcementPoint, SvidFiles
from authz_server.envoy_config.tcp_outbound import TcpOutbound
from authz_server.settings.addresses import TcpAddress, UnixAddress
from tests.e2e.attack_mesh import Ledger, _start_pdp
from tests.e2e.envoy_profiles import RunningEnvoy, Tree, start_envoy
from tests.postgres_server import PostgresServer

DOMAIN = TrustDomain.parse("shop.example.org")
ISSUER = "https://sts.shop.example.org"
ALICE, BOB = "alice@example.org", "bob@example.org"
CAROL = "carol@example.org"  # answers escalations
HOST = "orders-db.internal"
TARGET = f"{HOST}:5432"
AUDIENCE = f"tcp://{HOST}"
MAIL = "mail.internal:25"
GREETING = b"220 mail.internal speaks first\r\n"
SSL_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"  # PostgreSQL answers one byte
SHORT_S = "0.5s"  # the whole life of a connection by `short` and `short_tunnel`

DATABASE = SpiffeId.parse(f"{DOMAIN.uri}/service/orders-db")
CLIENTS = {
    "orders": SpiffeId.parse(f"{DOMAIN.uri}/service/orders"),
    "assistant": SpiffeId.parse(f"{DOMAIN.uri}/agent/assistant"),
    "research": SpiffeId.parse(f"{DOMAIN.uri}/agent/research"),
    "leaver": SpiffeId.parse(f"{DOMAIN.uri}/service/leaver"),  # is revoked in the course of a test
}

_MODEL = """\
[request_definition]
r = sub, chain, act, obj

[policy_definition]
p = id, kind, resource, uri, scope, obligation, eft

[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))

[matchers]
m = r.act.protocol == "tcp" && r.sub.kind == p.kind && r.obj.resource == p.resource && \\
    (p.uri == "" || r.obj.uri == p.uri) && (p.scope == "" || p.scope in r.chain.scope)
"""
_RULES = {
    "databases": """\
p, orders-service, service, orders-db, , , , allow
p, orders-agent, agent, orders-db, tcp://orders-db.internal:5432, orders.read, , allow
p, orders-repair, agent, orders-db, tcp://orders-db.internal:5432, orders.repair, dba, escalate
p, mail-service, service, mail, , , , allow
""",
    # Who may reach payroll is another team's business: the same service is refused there.
    "payroll": "p, payroll-service, service, payroll-db, , payroll.read, , allow\n",
}
_EXTENSIONS = "type.googleapis.com/envoy.extensions"


@dataclass(slots=True)
class Site:
    """Everything that runs, and the keys to it."""

    directory: Path
    group: ProcessGroup
    authority: TrustDomainAuthority
    issuer: DevelopmentIssuer
    postgres: PostgresServer
    ledger: Ledger
    pdp: ChildProcess
    inbound: RunningEnvoy
    outbound: RunningEnvoy
    svids: dict[str, Svid]

    def tls(self, client: str, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """Return a client context with the SVID of `client`. The server is not checked."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(
            self.directory / f"{client}.pem", self.directory / f"{client}.key.pem"
        )
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def open(
        self,
        listener: str,
        client: str,
        *,
        server_name: str = HOST,
        alpn: Sequence[str] = (),
        before_tls: bytes = b"",
    ) -> ssl.SSLSocket:
        """Open a TLS connection to `listener` with the SVID of `client`, and send nothing in it."""
        plain = socket.create_connection(("127.0.0.1", self.inbound.ports[listener]), timeout=15)
        try:
            plain.sendall(before_tls)
            return self.tls(client, alpn).wrap_socket(plain, server_hostname=server_name)
        except OSError:  # `ssl.SSLError` is one
            plain.close()
            raise

    def connect(self, port: str) -> psycopg.Connection[tuple[Any, ...]]:
        """Connect as a plain client of `outbound`, which knows of no TLS. Raises on a denial."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.outbound.ports[port],
            user="authz",
            dbname="postgres",
            sslmode="disable",
            gssencmode="disable",
            connect_timeout=15,
        )

    def root(self, subject: str = ALICE, scope: str = "orders.read", hops: int = 0) -> str:
        """Return a root grant for the assistant."""
        return self.issuer.issue_root(
            subject=subject, actor=CLIENTS["assistant"], scope=scope.split(), hops=hops
        )

    def linked(self, audience: str = AUDIENCE) -> Delegation:
        """Return a chain in which the assistant hands on to `research`."""
        root = self.root(hops=1)
        link = Delegator(self.svids["assistant"]).link(
            root, to=CLIENTS["research"], audience=[audience], scope=["orders.read"]
        )
        return Delegation(root=root, chain=link)

    def leave(self, client: str, delegation: Delegation | None) -> None:
        """Make `delegation` that of the next tunnels of `client`, as soon as Envoy notices."""
        leave_delegation(self.directory / f"delegation-{client}", delegation)

    def command(self, *arguments: str) -> None:
        """Run `authz-server` for this PDP's ledger."""
        group, name, *rest = arguments
        config = str(self.directory / "authz.yaml")
        argv = [sys.executable, "-m", "authz_server", group, name, "--config", config, *rest]
        subprocess.run(argv, check=True, capture_output=True)

    def reached(self) -> int:
        """Return how many connections PostgreSQL has ever accepted from anyone."""
        return self.postgres.log.read_text().count("connection received")

    def start_pdp(self) -> None:
        """Start the PDP again."""
        self.pdp = _start_pdp(self.directory, self.group)


def first_bytes(connection: socket.socket) -> bytes:
    """Return what the peer says next."""
    return connection.recv(65536)


def ended(connection: socket.socket) -> bool:
    """Tell whether the peer closes, be it by a TLS alert, and says nothing before."""
    try:
        return connection.recv(65536) == b""
    except (ssl.SSLError, ConnectionError):
        return True


@contextmanager
def running_site(directory: Path, postgres: PostgresServer) -> Iterator[Site]:
    """Run all of it below `directory`, which must have a short path."""
    authority = TrustDomainAuthority.create(DOMAIN)
    issuer = DevelopmentIssuer.create(issuer=ISSUER, trust_domain=DOMAIN)
    svids = {name: authority.issue_svid(spiffe_id) for name, spiffe_id in CLIENTS.items()}
    for name, svid in svids.items():
        write_svid(svid, directory, name)
        leave_delegation(directory / f"delegation-{name}", None)
    database = authority.issue_svid(DATABASE, profile=LeafProfile(dns_names=(HOST,)))
    write_svid(database, directory, "database")
    _write_pdp_files(directory, authority, issuer)
    with _greeter() as greeter, ProcessGroup(directory) as group:
        pdp = _start_pdp(directory, group)
        inbound = start_envoy(_inbound(directory, postgres, greeter), "inbound", directory, group)
        outbound = start_envoy(_outbound(directory, inbound), "outbound", directory, group)
        yield Site(
            directory=directory,
            group=group,
            authority=authority,
            issuer=issuer,
            postgres=postgres,
            ledger=Ledger(directory / "ledger.db"),
            pdp=pdp,
            inbound=inbound,
            outbound=outbound,
            svids=svids,
        )


def _write_pdp_files(
    directory: Path, authority: TrustDomainAuthority, issuer: DevelopmentIssuer
) -> None:
    for name, rules in _RULES.items():
        bundle = directory / "bundles" / name
        bundle.mkdir(parents=True)
        (bundle / "model.conf").write_text(_MODEL)
        (bundle / "policy.csv").write_text(rules)
        manifest = {"name": name, "domain": "infrastructure", "owner": "tests"}
        manifest |= {"description": "databases of the shop"}
        (bundle / "bundle.yaml").write_text(yaml.safe_dump(manifest | {"parties": ["caller"]}))
    inventory = [
        {"id": f"{DOMAIN.uri}/{kind}/*", "kind": kind, "owner": "team-shop"}
        for kind in ("agent", "service")
    ]
    (directory / "identities.yaml").write_text(yaml.safe_dump({"identities": inventory}))
    (directory / "trust.pem").write_bytes(authority.bundle_pem)
    (directory / "jwks.json").write_text(issuer.jwks())
    configuration = {
        "trust_domain": str(DOMAIN),
        "listen": {"grpc": f"unix://{directory}/pdp.sock", "http": "127.0.0.1:0"},
        "identity": {
            "trust_bundles": {"files": {str(DOMAIN): "trust.pem"}},
            "inventory": "identities.yaml",
        },
        "delegation": {
            "issuers": [{"issuer": ISSUER, "jwks_file": "jwks.json"}],
            "require": False,
        },
        "bundles": {"dir": "bundles"},
        "approvals": {"groups": {"dba": [CAROL]}},
        "ledger": {"url": "sqlite:///ledger.db"},
    }
    (directory / "authz.yaml").write_text(yaml.safe_dump(configuration))


def _svid(directory: Path, name: str) -> SvidFiles:
    return SvidFiles(
        certificate=directory / f"{name}.pem",
        private_key=directory / f"{name}.key.pem",
        trust_bundle=directory / "trust.pem",
    )


def _inbound(directory: Path, postgres: PostgresServer, greeter: int) -> Tree:
    usual: dict[str, Any] = {
        "upstream": UnixAddress(postgres.socket),
        "require_delegation": False,
    }

    def point(name: str, resource: str, bundle: str, **rest: Any) -> EnforcementPoint:
        return EnforcementPoint(
            name=name,
            listen=TcpAddress("127.0.0.1", 0),
            protocol=Protocol.TCP,
            workload_id=DATABASE,
            bundle=bundle,
            resource=resource,
            audience=AUDIENCE,
            pdp=(UnixAddress(directory / "pdp.sock"),),
            svid=_svid(directory, "database"),
            pdp_timeout_s=5.0,  # a busy test machine must not turn a verdict into a timeout
            **(usual | rest),
        )

    mail = TcpAddress("127.0.0.1", greeter)
    points = [
        point("orders", "orders-db", "databases", domains=(HOST,)),
        point("payroll", "payroll-db", "payroll", domains=("payroll-db.internal",)),
        point("tunnel", "orders-db", "databases", tunnels=(TARGET,), require_delegation=True),
        point("greeting", "mail", "databases", upstream=mail),
        point("greeting_tunnel", "mail", "databases", upstream=mail, tunnels=(MAIL,)),
    ]
    tree: Tree = bootstrap_tree(points, node="db", admin_socket=directory / "inbound.sock")
    listeners = tree["static_resources"]["listeners"]
    listeners += _bent({listener["name"]: listener for listener in listeners})
    return tree


def _bent(listeners: dict[str, Tree]) -> list[Tree]:
    """Return what is not rendered: what an operator could get wrong, and lives of half a second."""

    def bent(name: str, of: str) -> tuple[Tree, Any]:
        listener = copy.deepcopy(listeners[of]) | {"name": name}
        return listener, listener["filter_chains"][0]

    early, chain = bent("early", "greeting")
    for setting in ("upstream_connect_mode", "max_early_data_bytes"):
        del chain["filters"][1]["typed_config"][setting]

    short, chain = bent("short", "orders")
    chain["filters"][1]["typed_config"]["max_downstream_connection_duration"] = SHORT_S
    short_tunnel, chain = bent("short_tunnel", "tunnel")
    host = chain["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]
    host["routes"][0]["route"]["max_stream_duration"]["max_stream_duration"] = SHORT_S

    # A listener that believes PROXY headers, and shows what came in them to the PDP.
    proxied, chain = bent("proxied", "orders")
    tlv = {"tlv_type": 0xE0, "on_tlv_present": {"key": "delegation"}}
    settings = {
        "@type": f"{_EXTENSIONS}.filters.listener.proxy_protocol.v3.ProxyProtocol",
        "rules": [tlv],
    }
    header = {"name": "envoy.filters.listener.proxy_protocol", "typed_config": settings}
    proxied["listener_filters"] = [header, *proxied["listener_filters"]]
    chain["filters"][0]["typed_config"]["metadata_context_namespaces"] = [header["name"]]

    # Every destination, extended CONNECT too: what the PDP must withstand without help.
    anywhere, chain = bent("anywhere", "tunnel")
    manager = chain["filters"][0]["typed_config"]
    manager["route_config"]["virtual_hosts"][0]["domains"] = ["*"]
    manager["http2_protocol_options"]["allow_connect"] = True

    # The port taken off, as an HTTP point has it: one destination is as good as another.
    stripped, chain = bent("stripped", "tunnel")
    manager = chain["filters"][0]["typed_config"]
    manager["strip_any_host_port"] = True
    manager["route_config"]["virtual_hosts"][0]["domains"] = [HOST]

    # TLS that is passed on: nobody proves anything to this Envoy.
    passing, chain = bent("passing", "orders")
    del chain["transport_socket"]

    # The listener's labels are in no node metadata: it says nothing of itself.
    unsaid, chain = bent("unsaid", "orders")
    chain["filters"][0]["typed_config"]["bootstrap_metadata_labels_key"] = "authz.nowhere"
    return [early, short, short_tunnel, proxied, anywhere, stripped, passing, unsaid]


def _outbound(directory: Path, inbound: RunningEnvoy) -> Tree:
    ways: list[TcpOutbound] = []
    for client in CLIENTS:
        common: dict[str, Any] = {
            "listen": TcpAddress("127.0.0.1", 0),
            "peer": DATABASE,
            "svid": _svid(directory, client),
            "server_name": HOST,
        }
        raw = TcpAddress("127.0.0.1", inbound.ports["orders"])
        tunnel = TcpAddress("127.0.0.1", inbound.ports["tunnel"])
        ways += [
            TcpOutbound(name=f"{client}_raw", upstream=raw, **common),
            TcpOutbound(
                name=f"{client}_tunnel",
                upstream=tunnel,
                tunnel=TARGET,
                delegation=directory / f"delegation-{client}",
                **common,
            ),
        ]
    socket_dir = directory / "psql"
    socket_dir.mkdir()
    at_socket = UnixAddress(socket_dir / ".s.PGSQL.5432")
    ways.append(replace(ways[0], name="orders_socket", listen=at_socket))
    return bootstrap_tree(
        [], node="clients", admin_socket=directory / "outbound.sock", outbound=ways
    )


@contextmanager
def _greeter() -> Iterator[int]:
    """Run a server that speaks first, as those of MySQL and SMTP do; yield its port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.sendall(GREETING)
                while connection.recv(1024):
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()
