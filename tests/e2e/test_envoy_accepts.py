"""The real Envoy accepts every configuration we render or ship, unknown fields refused."""

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner

from authz_server.agent.tunnel_files import leave_delegation
from authz_server.cli.main import group
from authz_server.core.attributes import Protocol
from authz_server.core.spiffe import SpiffeId
from authz_server.demo.authority import TrustDomainAuthority, write_svid
from authz_server.envoy_config.bootstrap import render_bootstrap
from authz_server.envoy_config.enforcement_point import (
    EnforcementPoint,
    SvidFiles,
    SvidFromAgent,
)
from authz_server.envoy_config.tcp_outbound import TcpOutbound
from authz_server.envoy_config.validation import complaints
from authz_server.settings.addresses import TcpAddress, UnixAddress

ENVOY = Path(__file__).parents[2] / "envoy"
EXAMPLES = sorted(ENVOY.glob("*.yaml"))
POINTS = sorted((ENVOY / "points").glob("*.yaml"))
WORKLOAD = SpiffeId.parse("spiffe://prod.example.org/service/data-api")


@pytest.fixture(scope="module")
def svid(tmp_path_factory: pytest.TempPathFactory) -> SvidFiles:
    """A real SVID on disk: Envoy reads certificates when it validates."""
    directory = tmp_path_factory.mktemp("svid")
    authority = TrustDomainAuthority.create(WORKLOAD.trust_domain)
    certificate, key = write_svid(authority.issue_svid(WORKLOAD), directory)
    bundle = directory / "bundle.pem"
    bundle.write_bytes(authority.bundle_pem)
    return SvidFiles(certificate=certificate, private_key=key, trust_bundle=bundle)


@pytest.mark.parametrize("strip", [False, True], ids=["pass", "strip"])
@pytest.mark.parametrize("protocol", [Protocol.HTTP, Protocol.GRPC, Protocol.MCP, Protocol.TCP])
def test_rendered(protocol: Protocol, strip: bool, svid: SvidFiles, tmp_path: Path) -> None:
    tcp = protocol is Protocol.TCP
    point = EnforcementPoint(
        name="data",
        listen=TcpAddress("127.0.0.1", 0),
        upstream=TcpAddress("data-api.internal", 8080),
        protocol=protocol,
        workload_id=WORKLOAD,
        audience=None if tcp else "https://data.example.org",
        bundle="data",
        labels={"class": "restricted"},
        domains=("data.example.org",),
        require_delegation=not tcp,
        strip_delegation=strip and not tcp,
        pdp=(UnixAddress(Path("/run/authz/pdp.sock")),),
        svid=svid,
        access_log=tmp_path / "access.jsonl",
    )
    other = dataclasses.replace(point, name="other", listen=UnixAddress(tmp_path / "in.sock"))
    # A node called `n` is the boolean false to a YAML reader that is not PyYAML.
    text = render_bootstrap([point, other], node="n", admin_socket=tmp_path / "admin.sock")
    assert complaints(text) == ""


@pytest.mark.parametrize("tunnel", [None, "orders-db.internal:5432"], ids=["raw", "tunnel"])
def test_rendered_way_out_with_svids_from_an_agent(tunnel: str | None, tmp_path: Path) -> None:
    leave_delegation(tmp_path / "delegation", None)
    way = TcpOutbound(
        name="orders",
        listen=UnixAddress(tmp_path / ".s.PGSQL.5432"),
        upstream=TcpAddress("orders-db.internal", 8443),
        peer=WORKLOAD,
        svid=SvidFromAgent(agent=Path("/run/spire/agent.sock"), spiffe_id=WORKLOAD),
        server_name="orders-db.internal",
        tunnel=tunnel,
        delegation=tmp_path / "delegation" if tunnel else None,
    )
    text = render_bootstrap([], node="n", admin_socket=tmp_path / "admin.sock", outbound=[way])
    assert complaints(text) == ""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_shipped_example(example: Path, svid: SvidFiles, tmp_path: Path) -> None:
    text = example.read_text()
    for name, path in (
        ("svid.pem", svid.certificate),
        ("svid.key", svid.private_key),
        ("bundle.pem", svid.trust_bundle),
    ):
        assert f"/run/authz/{name}" in text
        text = text.replace(f"/run/authz/{name}", str(path))
    # Envoy will not start before the agent has left its delegation, or that it has none.
    leave_delegation(tmp_path / "delegation", None)
    text = text.replace("/run/authz/delegation", str(tmp_path / "delegation"))
    assert complaints(text) == ""


@pytest.mark.parametrize("point", POINTS, ids=lambda path: path.stem)
def test_point(point: Path, tmp_path: Path) -> None:
    argv = ["envoy", "render", str(point), "--validate", "--write", str(tmp_path / "envoy.yaml")]
    result = CliRunner().invoke(group, argv)
    assert result.exit_code == 0, result.stderr


def test_what_envoy_says_reaches_the_operator(svid: SvidFiles, tmp_path: Path) -> None:
    """Only Envoy can tell that a file is no certificate; nothing is written then."""
    text = (POINTS[0].parent / "http.yaml").read_text()
    (tmp_path / "svid.key").write_text("no key")
    text = text.replace("/run/authz/svid.pem", str(svid.certificate))
    text = text.replace("/run/authz/bundle.pem", str(svid.trust_bundle))
    text = text.replace("/run/authz/svid.key", str(tmp_path / "svid.key"))
    (tmp_path / "point.yaml").write_text(text)
    target = tmp_path / "envoy.yaml"
    argv = ["envoy", "render", str(tmp_path / "point.yaml"), "--validate", "--write", str(target)]
    result = CliRunner().invoke(group, argv)
    assert (result.exit_code, target.exists()) == (1, False)
    assert "private key" in result.stderr


@pytest.mark.parametrize(
    ("bootstrap", "complaint"),
    [
        ('{"no_such_field": 1}', "no_such_field"),
        (
            '{"static_resources": {"clusters": [{"name": "a", "http2_protocol_options": {}}]}}',
            "deprecated",
        ),
    ],
    ids=["unknown", "deprecated"],
)
def test_validation_is_strict(bootstrap: str, complaint: str) -> None:
    assert complaint in complaints(bootstrap)
