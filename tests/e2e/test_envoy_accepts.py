"""The real Envoy accepts every configuration we render or ship, unknown fields refused."""

import dataclasses
import subprocess
from pathlib import Path

import pytest

from authz_server.agent.tunnel_files import leave_delegation
from authz_server.core.attributes import Protocol
from authz_server.core.spiffe import SpiffeId
from authz_server.demo.authority import TrustDomainAuthority, write_svid
from authz_server.envoy_config.binary import envoy_binary
from authz_server.envoy_config.bootstrap import render_bootstrap
from authz_server.envoy_config.enforcement_point import EnforcementPoint, SvidFiles
from authz_server.settings.addresses import TcpAddress, UnixAddress

EXAMPLES = sorted((Path(__file__).parents[2] / "envoy").glob("*.yaml"))
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


def complaints(bootstrap: str, directory: Path, suffix: str = ".json") -> str:
    """What Envoy has against `bootstrap`; empty when it accepts it."""
    path = directory / f"bootstrap{suffix}"
    path.write_text(bootstrap)
    argv = [envoy_binary(), "--mode", "validate", "--config-path", path, "--log-level", "error"]
    done = subprocess.run([str(part) for part in argv], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr or f"status {done.returncode}"


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
    assert complaints(text, tmp_path) == ""


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
    assert complaints(text, tmp_path, ".yaml") == ""


def test_validation_would_notice_an_unknown_field(tmp_path: Path) -> None:
    assert "no_such_field" in complaints('{"no_such_field": 1}', tmp_path)
