"""The file of `envoy render`: what each key does, and every refusal with its place."""

import dataclasses
from pathlib import Path

import pytest

from authz_server.core.attributes import Protocol
from authz_server.core.errors import ConfigurationError
from authz_server.core.spiffe import SpiffeId
from authz_server.envoy_config.enforcement_point import (
    EnforcementPoint,
    ForwardedCertificate,
    PdpTls,
    SvidFiles,
    SvidFromAgent,
)
from authz_server.envoy_config.http_outbound import HttpOutbound, OutboundHost
from authz_server.envoy_config.spec import POINTS_MAX
from authz_server.envoy_config.spec_file import EnvoySpec, parse_spec
from authz_server.envoy_config.tcp_outbound import TcpOutbound
from authz_server.settings.addresses import TcpAddress, UnixAddress

POINT = """\
name: crm
listen: 0.0.0.0:8443
upstream: 127.0.0.1:8080
protocol: mcp
workload_id: spiffe://prod.example.org/tool/crm
audience: https://crm.prod.example.org
domains: [crm.prod.example.org]
"""
SVID = "svid: {certificate: /c.pem, private_key: /k.pem, trust_bundle: /b.pem}\n"
PDP = "pdp: {addresses: unix:///pdp.sock}\n"
MINIMAL = POINT + SVID + PDP
TCP = """\
name: db
listen: 0.0.0.0:5432
upstream: 127.0.0.1:15432
protocol: tcp
workload_id: spiffe://prod.example.org/data/db
"""
HOSTS = 'hosts: {a.example: {upstream: "a:8443", spiffe_id: "spiffe://prod.example.org/a"}}'

FILES = SvidFiles(
    certificate=Path("/c.pem"), private_key=Path("/k.pem"), trust_bundle=Path("/b.pem")
)
CRM = SpiffeId.parse("spiffe://prod.example.org/tool/crm")
PDP_ID = SpiffeId.parse("spiffe://prod.example.org/pdp")


def spec_of(text: str) -> EnvoySpec:
    return parse_spec(text.encode(), file="point.yaml")


def point_of(text: str) -> EnforcementPoint:
    (point,) = spec_of(text).points
    return point


def faults_of(text: str) -> list[tuple[int, int, str]]:
    with pytest.raises(ConfigurationError) as caught:
        spec_of(text)
    return [(fault.line, fault.column, fault.message) for fault in caught.value.faults]


def only_fault(text: str) -> tuple[int, int, str]:
    (fault,) = faults_of(text)
    return fault


def in_list(*points: str) -> str:
    """A file with `points` below `enforcement_points`."""
    items = ("- " + point.strip().replace("\n", "\n  ") + "\n" for point in points)
    return "enforcement_points:\n" + "".join(items)


def test_a_dozen_lines_are_a_hardened_point() -> None:
    spec = spec_of(MINIMAL)
    assert (spec.node, spec.admin_socket, spec.outbound) == ("crm", None, ())
    assert spec.points == (
        EnforcementPoint(
            name="crm",
            listen=TcpAddress("0.0.0.0", 8443),
            upstream=TcpAddress("127.0.0.1", 8080),
            protocol=Protocol.MCP,
            workload_id=CRM,
            audience="https://crm.prod.example.org",
            bundle="default",
            domains=("crm.prod.example.org",),
            require_delegation=True,
            pdp=(UnixAddress(Path("/pdp.sock")),),
            svid=FILES,
        ),
    )


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("bundle: tools", "bundle", "tools"),
        ("resource: crm", "resource", "crm"),
        ("labels: {class: restricted}", "labels", {"class": "restricted"}),
        ("require_delegation: false", "require_delegation", False),
        ("strip_delegation: true", "strip_delegation", True),
        (
            "forwarded_certificate: APPEND_FORWARD",
            "forwarded_certificate",
            ForwardedCertificate.APPEND_FORWARD,
        ),
        ("access_log: /var/log/crm.jsonl", "access_log", Path("/var/log/crm.jsonl")),
        ("access_log: stdout", "access_log", None),
    ],
)
def test_key_of_a_point(line: str, field: str, value: object) -> None:
    assert getattr(point_of(f"{MINIMAL}{line}\n"), field) == value


def test_keys_of_the_envoy() -> None:
    spec = spec_of(MINIMAL + "node: crm-7\nadmin: unix:///run/admin.sock\n")
    assert (spec.node, spec.admin_socket) == ("crm-7", Path("/run/admin.sock"))


def test_a_workload_elsewhere_proves_itself() -> None:
    text = MINIMAL.replace("127.0.0.1:8080", "crm.internal:8443")
    fault = only_fault(text)
    assert fault[:2] == (3, 11)
    assert "`upstream_spiffe_id` must say who answers there" in fault[2]
    point = point_of(text + "upstream_spiffe_id: spiffe://prod.example.org/tool/crm\n")
    assert point.upstream_peer == CRM


def test_pdps_elsewhere_prove_themselves_to_the_svid_of_the_point() -> None:
    pdp = (
        "pdp: {addresses: ['10.0.0.1:9191', '10.0.0.2:9191'], timeout_s: 0.5,"
        " spiffe_id: 'spiffe://prod.example.org/pdp'}\n"
    )
    point = point_of(POINT + SVID + pdp)
    assert point.pdp == (TcpAddress("10.0.0.1", 9191), TcpAddress("10.0.0.2", 9191))
    assert point.pdp_timeout_s == 0.5
    assert point.pdp_tls == PdpTls(spiffe_id=PDP_ID, svid=FILES)


def test_an_agent_gives_the_svid_of_the_workload_unless_told_otherwise() -> None:
    agent = Path("/agent.sock")
    svid = "svid: {agent: unix:///agent.sock}\n"
    pdp = "pdp: {addresses: 'pdp:9191', spiffe_id: 'spiffe://prod.example.org/pdp'"
    point = point_of(f"{POINT}{svid}{pdp}}}\n")
    own = SvidFromAgent(agent=agent, spiffe_id=CRM)
    assert (point.svid, point.pdp_tls) == (own, PdpTls(spiffe_id=PDP_ID, svid=own))

    envoy = SpiffeId.parse("spiffe://prod.example.org/envoy/crm")
    other = f"svid: {{agent: unix:///agent.sock, spiffe_id: '{envoy}'}}"
    point = point_of(f"{POINT}{svid}{pdp}, {other}}}\n")
    assert point.pdp_tls is not None
    assert (point.svid, point.pdp_tls.svid) == (own, SvidFromAgent(agent=agent, spiffe_id=envoy))


def test_what_stands_at_the_top_holds_for_points_that_say_nothing_else() -> None:
    second = POINT.replace("crm", "erp").replace("8443", "8444")
    own = "pdp: {addresses: unix:///other.sock}\naccess_log: /erp.jsonl\n"
    spec = spec_of(f"{SVID}{PDP}access_log: /all.jsonl\n{in_list(POINT, second + own)}")
    crm, erp = spec.points
    assert (crm.svid, erp.svid) == (FILES, FILES)
    assert (crm.access_log, erp.access_log) == (Path("/all.jsonl"), Path("/erp.jsonl"))
    assert erp.pdp == (UnixAddress(Path("/other.sock")),)
    assert spec.node == "crm"


def test_raw_tcp_needs_no_delegation_and_a_tunnel_does() -> None:
    raw = point_of(TCP + SVID + PDP + "domains: [db.example]\n")
    assert (raw.require_delegation, raw.domains, raw.is_raw) == (False, ("db.example",), True)
    tunnel = point_of(f"{TCP}{SVID}{PDP}audience: https://db\ntunnels: ['db.example:5432']\n")
    assert (tunnel.require_delegation, tunnel.tunnels) == (True, ("db.example:5432",))


def test_ways_out_may_stand_alone_or_beside_a_point() -> None:
    way = f"outbound:\n- name: tools\n  listen: 127.0.0.1:15001\n  {HOSTS}\n"
    expected = HttpOutbound(
        name="tools",
        listen=TcpAddress("127.0.0.1", 15001),
        hosts=(
            OutboundHost(
                host="a.example",
                upstream=TcpAddress("a", 8443),
                peer=SpiffeId.parse("spiffe://prod.example.org/a"),
            ),
        ),
        svid=FILES,
    )
    alone = spec_of(SVID + way)
    assert (alone.node, alone.points, alone.outbound) == ("tools", (), (expected,))
    assert spec_of(MINIMAL + way).outbound == (expected,)

    # From an agent it is the one workload that this Envoy stands beside.
    agent = "svid: {agent: unix:///agent.sock}\n"
    (beside,) = spec_of(POINT + agent + PDP + way).outbound
    own = SvidFromAgent(agent=Path("/agent.sock"), spiffe_id=CRM)
    assert beside == dataclasses.replace(expected, svid=own)


def test_way_out_for_tcp() -> None:
    way = """\
outbound:
- name: ledger
  protocol: tcp
  listen: unix:///run/.s.PGSQL.5432
  upstream: db.example:8443
  spiffe_id: spiffe://prod.example.org/data/db
  tunnel: db.example:5432
  delegation: /run/delegation
"""
    assert spec_of(SVID + way).outbound == (
        TcpOutbound(
            name="ledger",
            listen=UnixAddress(Path("/run/.s.PGSQL.5432")),
            upstream=TcpAddress("db.example", 8443),
            peer=SpiffeId.parse("spiffe://prod.example.org/data/db"),
            svid=FILES,
            tunnel="db.example:5432",
            delegation=Path("/run/delegation"),
        ),
    )


def test_every_fault_comes_at_once_with_its_place() -> None:
    text = """\
name: CRM
lisen: 0.0.0.0:8443
upstream: 127.0.0.1
protocol: soap
workload_id: spiffe://prod.example.org/tool/
domains: ["*", crm.prod.example.org, CRM]
labels: {class: 7}
access_log: crm.jsonl
svid: {agent: unix:///agent.sock, certificate: c.pem}
pdp: {addresses: [], timeout_s: 0}
"""
    assert [(line, column) for line, column, _ in faults_of(text)] == [
        (1, 1),  # listen
        (1, 7),
        (2, 1),
        (3, 11),
        (4, 11),
        (5, 14),
        (6, 11),
        (6, 38),
        (7, 17),
        (8, 13),
        (9, 48),
        (10, 7),
        (10, 33),
    ]
    messages = [message for _, _, message in faults_of(text)]
    assert messages[0] == "`listen` is required"
    assert messages[2] == "`lisen` is not a known key; did you mean `listen`?"
    assert messages[4] == "`protocol` must be `http`, `grpc`, `mcp`, `a2a` or `tcp`"
    assert messages[-1] == "`pdp.timeout_s` must be at least 0.001"


def test_an_unknown_key_does_not_hide_how_the_others_fit_together() -> None:
    text = MINIMAL.replace("127.0.0.1:8080", "10.0.0.7:8080").replace("audience:", "audiense:")
    assert [message.partition(":")[0] for _, _, message in faults_of(text)] == [
        "`audience` is required",
        "`upstream` is not on this machine",
        "`audiense` is not a known key; did you mean `audience`?",
    ]
    two = SVID + PDP + in_list(POINT + "lables: {}", POINT.replace("crm", "erp"))
    assert ["is where another part" in message for _, _, message in faults_of(two)] == [False, True]


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("", 1, "must be a mapping"),
        ("enforcement_points: []\n" + SVID, 1, "must name a point"),
        (MINIMAL + in_list(POINT), 6, "`audience` belongs into one of `enforcement_points`"),
        (POINT + PDP, 1, "`svid` is required, here or at the top of the file"),
        (POINT + SVID, 1, "`pdp` is required, here or at the top of the file"),
        (MINIMAL.replace("[crm.prod.example.org]", "[]"), 7, "must name the hosts"),
        (MINIMAL.replace("domains: [crm.prod.example.org]\n", ""), 1, "must name the hosts"),
        (
            MINIMAL.replace("audience: https://crm.prod.example.org\n", ""),
            1,
            "`audience` is required: a delegation link must name it",
        ),
        (MINIMAL + "tunnels: ['a:1']\n", 10, "is for the protocol `tcp`"),
        (MINIMAL + "tunnels: [A:1]\n", 10, "must be one lower-case `host:port`"),
        (MINIMAL + "streams: [a.B/C]\n", 10, "is for the protocol `grpc`"),
        (MINIMAL + "streams: [a.B]\n", 10, "must be the full name of a gRPC method"),
        (MINIMAL.replace("127.0.0.1:8080", "127.0.0.1:0"), 3, "must have a port"),
        (MINIMAL + "failure_mode_allow: true\n", 10, "is not a known key"),
        (MINIMAL + "name: again\n", 10, "stands twice"),
        (POINT + SVID + "pdp: {addresses: '10.0.0.1:9191'}\n", 9, "is not on this machine"),
        (POINT + SVID + "pdp: {addresses: ['[::1]:1', '[::1]:1']}\n", 9, "stands twice"),
        (
            POINT + SVID + "pdp: {addresses: [unix:///a, 'localhost:1']}\n",
            9,
            "cannot stand beside a host name",
        ),
        (
            POINT + SVID + "pdp: {addresses: unix:///a, svid: {agent: unix:///b}}\n",
            9,
            "needs `pdp.spiffe_id`",
        ),
        (POINT + PDP + "svid: {}\n", 9, "must name an `agent`, or"),
        (POINT + PDP + "svid: {certificate: /c}\n", 9, "`svid.private_key` is required"),
        (
            POINT + PDP + "svid: {agent: unix:///a, certificate: /c}\n",
            9,
            "is not for an `agent`",
        ),
        (TCP + SVID + PDP + "require_delegation: true\n", 8, "must be false for raw tcp"),
        (TCP + SVID + PDP + "strip_delegation: true\n", 8, "is not for tcp"),
        (TCP + SVID + PDP + "forwarded_certificate: APPEND_FORWARD\n", 8, "no headers"),
        (TCP + SVID + PDP + "domains: ['*.example']\n", 8, "must be one server name"),
        (TCP + SVID + PDP + "tunnels: ['a:1']\n", 1, "`audience` is required"),
        (
            TCP + SVID + PDP + "tunnels: ['a:1']\naudience: x\ndomains: [a]\n",
            10,
            "is not for `tunnels`",
        ),
        (SVID + PDP + in_list(POINT, POINT.replace("8443", "1")), 11, "is the name of another"),
        (
            SVID + PDP + in_list(POINT, POINT.replace("name: crm", "name: erp")),
            12,
            "is where another part",
        ),
        (
            PDP
            + in_list(
                POINT + "svid: {agent: unix:///a}",
                POINT.replace("name: crm", "name: erp").replace("8443", "1")
                + "svid: {agent: unix:///b}",
            ),
            10,
            "must be from one agent for the whole Envoy",
        ),
        (SVID + f"outbound: [{{name: a, listen: '0.0.0.0:1', {HOSTS}}}]\n", 2, "loopback"),
        (SVID + "outbound: [{name: a, listen: '[::1]:1'}]\n", 2, "must name the hosts"),
        (
            SVID + f"outbound: [{{name: a, listen: '[::1]:1', tunnel: 'a:1', {HOSTS}}}]\n",
            2,
            "`outbound[0].tunnel` is for the protocol `tcp`",
        ),
        (
            f"svid: {{agent: unix:///a}}\noutbound: [{{name: a, listen: '[::1]:1', {HOSTS}}}]\n",
            1,
            "it is not clear whose SVID to ask for",
        ),
        (
            SVID + "outbound: [{name: a, protocol: tcp, listen: '[::1]:1', upstream: 'a:1',"
            " spiffe_id: 'spiffe://a/b', delegation: /d}]\n",
            2,
            "needs a `tunnel`",
        ),
        (
            SVID + "outbound: [{name: a, protocol: tcp, listen: '[::1]:1', upstream: 'a:1',"
            " spiffe_id: 'spiffe://a/b', tunnel: 'a:1', delegation: '/d%x'}]\n",
            2,
            "plain characters",
        ),
    ],
)
def test_refusal(text: str, line: int, complaint: str) -> None:
    found = faults_of(text)
    assert any(at == line and complaint in message for at, _, message in found), found


def test_points_are_bounded() -> None:
    with pytest.raises(ConfigurationError, match=f"at most {POINTS_MAX} entries"):
        spec_of(SVID + PDP + in_list(*[POINT] * (POINTS_MAX + 1)))
