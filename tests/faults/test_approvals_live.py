"""An approval passes one call, whoever races for it, and survives the server's restart."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from authz_server.cli import main
from tests.pdp_site import PdpSite
from tests.server_process import ServerProcess, metadata, running


@pytest.fixture
def site(tmp_path: Path) -> PdpSite:
    return PdpSite.create(tmp_path)


def ticket(server: ServerProcess, data: bytes) -> str:
    """Ask for what needs a person; return the id of the question."""
    answer = server.check(data)
    assert metadata(answer)["verdict"] == "escalate"
    problem = json.loads(answer.denied_response.body)
    assert problem["access_request"]["status"] == "pending"
    assert problem["access_request"]["approver_group"] == "approvers"
    return str(problem["access_request"]["id"])


def approve(site: PdpSite, number: str) -> None:
    """Answer as bob, from the command line."""
    arguments = ["approvals", "approve", number, "--as", "bob@example.org"]
    result = CliRunner().invoke(main.group, [*arguments, "--config", str(site.configuration)])
    assert result.exit_code == 0, result.output


def test_fifty_racing_calls_share_one_approval_and_one_passes(site: PdpSite) -> None:
    data = site.check_request("/ask/1")
    with running(site) as server:
        approve(site, ticket(server, data))
        with ThreadPoolExecutor(10) as pool:
            reasons = list(pool.map(server.reason, [data] * 50))
        assert sorted(set(reasons)) == ["ESCALATED_BY_RULE", "OK"]
        assert reasons.count("OK") == 1
        assert server.metric('authz_escalations_total{ticket="consumed"}') == 1
        assert server.metric('authz_escalations_total{ticket="pending"}') == 50


def test_an_approval_outlives_the_server_but_not_its_use(site: PdpSite) -> None:
    data = site.check_request("/ask/1")
    with running(site) as server:
        approve(site, ticket(server, data))
        server.signal(signal.SIGKILL)
        server.wait()
    with running(site) as server:
        # A renewed chain is the same request; another path is not.
        assert server.reason(site.check_request("/ask/2")) == "ESCALATED_BY_RULE"
        assert server.reason(site.check_request("/ask/1")) == "OK"
        assert server.reason(data) == "ESCALATED_BY_RULE"


def test_without_a_ledger_nothing_can_be_approved(tmp_path: Path) -> None:
    site = PdpSite.create(tmp_path, ledger={"mode": "off"})
    with running(site) as server:
        answer = server.check(site.check_request("/ask/1"))
        assert metadata(answer)["verdict"] == "escalate"
        assert "access_request" not in json.loads(answer.denied_response.body)
        assert server.reason(site.check_request("/open/1")) == "OK"
        assert "unrecorded" in server.event_names
    assert list((tmp_path / "state").iterdir()) == []
