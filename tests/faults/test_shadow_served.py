"""A server with a bundle in shadow mode says so everywhere, and passes nothing unrecorded."""

import json
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from authz_server.cli import main
from tests.pdp_site import RULES, PdpSite
from tests.server_process import ServerProcess, metadata, running

SHADOW = {"dir": "bundles", "mode": {"default": "shadow"}}
STRICTER = ("p, nothing, GET, /*, data.read, , deny", *RULES)


@pytest.fixture
def site(tmp_path: Path) -> PdpSite:
    return PdpSite.create(tmp_path, bundles=SHADOW)


@pytest.fixture
def server(site: PdpSite) -> Iterator[ServerProcess]:
    with running(site) as server:
        yield server


def warnings(server: ServerProcess) -> list[dict[str, object]]:
    return [event for event in server.events if event["event"] == "bundle_in_shadow"]


def told(answer: CheckResponse) -> tuple[bool, object, object]:
    """Return whether the request passed, and verdict and mode as the metadata has them."""
    shown = metadata(answer)
    return answer.status.code == 0, shown["verdict"], shown["mode"]


def command(*arguments: str) -> str:
    result = CliRunner().invoke(main.group, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def replayed(site: PdpSite, rules: Sequence[str]) -> list[tuple[str, str]]:
    """Return old and new verdict of each recorded decision that other rules would change."""
    new = site.directory / "new" / "default"
    shutil.copytree(site.bundle, new)
    (new / "policy.csv").write_text("\n".join(rules) + "\n")
    arguments = ["policy", "diff", str(site.bundle.parent), str(new.parent), "--output", "json"]
    arguments += ["--replay", str(site.ledger), "--config", str(site.configuration)]
    lines = map(json.loads, CliRunner().invoke(main.group, arguments).stdout.splitlines())
    return [
        (line["old"]["verdict"], line["new"]["verdict"])
        for line in lines
        if line.get("outcome") == "changed"
    ]


def test_it_is_never_silent(site: PdpSite, server: ServerProcess) -> None:
    """Log, gauge, counters, `/readyz`, and every way to read the ledger."""
    (warning,) = warnings(server)
    assert (warning["level"], warning["bundle"]) == ("warning", "default")
    assert server.event_names.index("bundle_in_shadow") < server.event_names.index("ready")
    assert server.metric('authz_bundle_shadow{bundle="default"}') == 1
    status, detail = server.readyz()
    assert (status, detail["not_enforced"]) == (200, ["default"])

    answers = [server.check(site.check_request(p)) for p in ("/open/1", "/elsewhere", "/ask/1")]
    assert [told(answer) for answer in answers] == [
        (True, "allow", "shadow"),
        (True, "deny", "shadow"),
        (True, "escalate", "shadow"),
    ]
    counted = 'authz_decisions_total{bundle="default",mode="shadow",reason="%s",verdict="%s"}'
    assert server.metric(counted % ("NO_MATCHING_RULE", "deny")) == 1
    assert server.metric(counted % ("ESCALATED_BY_RULE", "escalate")) == 1

    ledger = ("--ledger", f"sqlite:///{site.ledger}")
    listed = command("decisions", "list", *ledger)
    assert [verdict in listed for verdict in ("deny (shadow)", "allow (shadow)")] == [True, True]
    decision_id = str(metadata(answers[1])["decision_id"])
    assert "NOT ENFORCED" in command("decisions", "explain", decision_id, *ledger).upper()
    exported = command("decisions", "export", "--format", "ocsf", *ledger).splitlines()
    assert {json.loads(line)["action_id"] for line in exported} == {3}  # observed
    report = command(
        "decisions", "report", "--framework", "hipaa", "--from", "1h", "--no-verify", *ledger
    )
    assert "| default | denied | NO\\_MATCHING\\_RULE | 1 |" in report
    changed = replayed(site, (*RULES, "p, more, GET, /elsewhere, data.read, , allow"))
    assert changed == [("deny", "allow")]  # of three records, the one that the new rule allows
    assert command("approvals", "list", "--output", "json", *ledger) == ""  # nobody was asked


def test_a_reload_warns_again_of_the_policy_that_is_not_enforced_now(
    site: PdpSite, server: ServerProcess
) -> None:
    server.signal(signal.SIGHUP)  # nothing changed: nothing to say
    site.write_rules(STRICTER)
    server.signal_reload_until(lambda: len(warnings(server)) == 2)
    first, second = warnings(server)
    assert first["revision"] != second["revision"]
    assert told(server.check(site.check_request("/open/1"))) == (True, "deny", "shadow")


def test_a_ledger_that_is_gone_denies_what_would_pass(site: PdpSite, server: ServerProcess) -> None:
    """An answer that only says what would have been would leave no trace of what passed."""
    denied = site.check_request("/elsewhere")
    assert told(server.check(denied)) == (True, "deny", "shadow")
    aside = site.ledger.with_suffix(".aside")
    site.ledger.rename(aside)
    site.ledger.mkdir()
    for path in ("/elsewhere", "/open/1"):
        answer = server.check(site.check_request(path))
        assert told(answer) == (False, "deny", "enforce")
        assert metadata(answer)["reason"] == "LEDGER_UNAVAILABLE"
    site.ledger.rmdir()
    aside.rename(site.ledger)
    server.wait_until(lambda: told(server.check(denied)) == (True, "deny", "shadow"))


def test_a_revoked_agent_is_denied_all_the_same(site: PdpSite, server: ServerProcess) -> None:
    research = str(site.research.spiffe_id)
    command(
        "revocations", "add", "--config", str(site.configuration), "--spiffe-id", research,
        "--reason", "stolen",
    )  # fmt: skip
    intact, spoilt = site.check_request("/open/1"), site.check_request("/open/1", headers={})
    server.wait_until(lambda: server.reason(intact) == "REVOKED")
    for request in (intact, spoilt, site.check_request("//")):
        assert told(server.check(request)) == (False, "deny", "enforce")
        assert server.reason(request) == "REVOKED"
