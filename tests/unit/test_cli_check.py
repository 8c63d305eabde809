"""`check` says what a live server says for the same bytes, in JSON or as Envoy sends them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from google.protobuf.json_format import MessageToJson

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from authz_server.cli import main
from tests.pdp_site import PdpSite
from tests.server_process import ServerProcess, metadata, running

# What no two decisions share.
OWN = ("decision_id", "time", "duration_us")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> PdpSite:
    return PdpSite.create(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def server(site: PdpSite) -> Iterator[ServerProcess]:
    with running(site) as process:
        yield process


def check(site: PdpSite, data: bytes, *options: str) -> tuple[int, dict[str, Any]]:
    """Run `check`; return the exit code and the decision."""
    arguments = ["check", "--config", str(site.configuration), *options]
    result = CliRunner().invoke(main.group, arguments, input=data)
    assert result.exit_code in {0, 1}, result.output
    return result.exit_code, json.loads(result.stdout)


def recorded(site: PdpSite, decision_id: str) -> dict[str, Any]:
    """Return what the ledger holds, as the command line shows it."""
    arguments = ["decisions", "show", decision_id, "--output", "json"]
    result = CliRunner().invoke(main.group, [*arguments, "--config", str(site.configuration)])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        ("/open/1", 0, "OK"),
        ("/open/closed/1", 1, "DENIED_BY_RULE"),
        ("/ask/1", 1, "ESCALATED_BY_RULE"),
        ("/open/%2e%2e/ask", 1, "NON_CANONICAL_PATH"),
        ("/elsewhere?a=1", 1, "NO_MATCHING_RULE"),
    ],
)
def test_the_decision_is_that_of_the_live_server(
    site: PdpSite, server: ServerProcess, path: str, code: int, reason: str
) -> None:
    data = site.check_request(path)
    live = recorded(site, str(metadata(server.check(data))["decision_id"]))
    exit_code, offline = check(site, data, "--binary")
    assert (exit_code, offline["reason"]) == (code, reason)
    for document in (live, offline):
        for member in OWN:
            assert document.pop(member)
    # A ticket is the ledger's business; offline there is none.
    assert (live.pop("access_request") is None) == (reason != "ESCALATED_BY_RULE")
    assert offline.pop("access_request") is None
    assert offline == live


def test_garbage_is_the_same_denial_offline_and_live(site: PdpSite, server: ServerProcess) -> None:
    for data in (b"\xff\xff\xff", b"", b"\x0a\x05hello", b"x" * (2 * 1024 * 1024)):
        live = metadata(server.check(data))
        code, offline = check(site, data, "--binary")
        assert code == 1
        assert (live["verdict"], live["reason"]) == (offline["verdict"], offline["reason"])


def test_json_is_read_as_protobuf_defines_it(site: PdpSite) -> None:
    data = site.check_request("/open/1")
    text = MessageToJson(CheckRequest.FromString(data)).encode()
    from_json, from_bytes = check(site, text), check(site, data, "--binary")
    for _, document in (from_json, from_bytes):
        for member in OWN:
            document.pop(member)
    assert from_json == from_bytes
    assert from_json[0] == 0


def test_the_time_decides(site: PdpSite) -> None:
    code, decision = check(
        site, site.check_request("/open/1"), "--binary", "--now", "2036-01-01T02:00:00+02:00"
    )
    assert code == 1
    assert decision["time"] == "2036-01-01T00:00:00.000000Z"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"nonsense": 1}', b"\xff", b"[" * 100_000])
def test_unreadable_input_is_a_usage_error_without_a_traceback(site: PdpSite, text: bytes) -> None:
    arguments = ["check", "--config", str(site.configuration)]
    result = CliRunner().invoke(main.group, arguments, input=text)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stdout == ""


@pytest.mark.parametrize("now", ["yesterday", "2026-11-24T10:00:00", "10"])
def test_a_time_without_an_offset_is_a_usage_error(site: PdpSite, now: str) -> None:
    arguments = ["check", "--config", str(site.configuration), "--now", now]
    result = CliRunner().invoke(main.group, arguments, input=b"{}")
    assert result.exit_code == 2
    assert "Invalid value for '--now'" in result.stderr


def test_a_broken_configuration_is_a_usage_error(site: PdpSite, tmp_path: Path) -> None:
    (tmp_path / "authz.yaml").write_text("trust_domain: 7\nlsten: {}\n")
    arguments = ["check", "--config", str(tmp_path / "authz.yaml")]
    result = CliRunner().invoke(main.group, arguments, input=b"{}")
    assert result.exit_code == 2
    assert "authz.yaml:1:" in result.stderr
    assert "authz.yaml:2:" in result.stderr


def test_nothing_is_recorded_and_no_ledger_is_needed(tmp_path: Path) -> None:
    site = PdpSite.create(tmp_path / "site", ledger={"url": "sqlite:///nowhere/authz.db"})
    assert check(site, site.check_request("/open/1"), "--binary")[0] == 0
    assert not (tmp_path / "site" / "nowhere").exists()
    assert list((tmp_path / "site" / "state").iterdir()) == []


def test_the_configuration_may_come_from_the_environment(site: PdpSite) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "authz_server", "check", "--binary"],
        input=site.check_request("/open/1"),
        env={"AUTHZ_CONFIG": str(site.configuration), "PATH": ""},
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
