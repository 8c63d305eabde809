"""`demo --everywhere`: its options, what is left out where PostgreSQL is missing, and its rows."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from authz_server.cli.demo import command
from authz_server.core.decision import Verdict
from authz_server.demo import everywhere_mesh, postgres
from authz_server.demo.everywhere import SCENARIOS, Row
from authz_server.demo.everywhere_cast import everywhere_plan
from authz_server.demo.run import SHIPPED_BUNDLES
from authz_server.policy.bundle import load_bundles
from authz_server.policy.consistency import CompiledBundles, play
from authz_server.policy.scenarios import Surroundings, load_scenarios
from authz_server.policy.source import FaultLog

ROW = Row(
    scenario="one",
    target="crm",
    bundle="tools",
    domain="ai_workload",
    action="tools/call crm_search",
    expected="allow",
    actual="allow",
    reason="OK",
    reached=True,
    recorded=True,
    decision_id="d-1",
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--replicas", "2"], "need --everywhere"),
        (["--stay"], "need --everywhere"),
        (["--scenario", str(SCENARIOS)], "need --everywhere"),
        (["--everywhere", "--spire"], "leave --spire out"),
        (["--everywhere", "--replicas", "9"], "not in the range"),
        (["--everywhere", "--scenario", "/nowhere.yaml"], "does not exist"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], message: str) -> None:
    done = CliRunner().invoke(command, options)
    assert done.exit_code == 2
    assert message in done.output


def test_without_postgresql_it_says_so_and_plays_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(postgres, "_PACKAGES", tmp_path)
    notes: list[str] = []
    with everywhere_mesh._database(notes, lambda _line: None) as server:
        assert server is None
    assert notes == [
        "the database is left out: PostgreSQL is not installed: apt-get install postgresql"
    ]
    names = [service.name for service in everywhere_plan(SHIPPED_BUNDLES).services]
    assert names == ["crm", "analyst", "fleet", "data"]


@pytest.mark.parametrize(
    ("changed", "good"),
    [
        ({}, True),
        ({"actual": "deny"}, False),
        ({"reached": False}, False),
        ({"recorded": False}, False),
        ({"expected": "deny", "actual": "deny", "reached": False}, True),
        ({"expected": "deny", "actual": "deny"}, False),
        ({"expected": "escalate", "actual": "escalate", "reached": False}, True),
        ({"expected": "deny", "actual": "none", "reached": False}, False),
    ],
    ids=str,
)
def test_every_witness_counts(changed: dict[str, object], good: bool) -> None:
    assert replace(ROW, **changed).as_expected is good  # type: ignore[arg-type]


def test_the_shipped_scenarios_reach_every_domain_and_every_verdict() -> None:
    policies = load_bundles(SHIPPED_BUNDLES)
    log = FaultLog()
    scenarios = load_scenarios(
        SCENARIOS.read_bytes(),
        file=str(SCENARIOS),
        surroundings=Surroundings(domains={name: one.domain for name, one in policies.items()}),
        log=log,
    )
    assert not log.faults
    steps = [step for scenario in scenarios for step in scenario.steps]
    assert {step.attributes.act.protocol for step in steps} == {"mcp", "a2a", "grpc", "http", "tcp"}
    domains = {step.attributes.env.domain for step in steps}
    assert domains == {"application", "infrastructure", "data", "ai_workload"}
    outcomes = [play(one, CompiledBundles(policies)) for one in scenarios]
    verdicts = {answer.said.verdict for outcome in outcomes for answer in outcome.answers}
    assert verdicts == set(Verdict)


def test_no_rule_that_goes_by_the_calendar_is_asked() -> None:
    """The mesh is played on every day of the week."""
    for text in ("Restart", "weekday", "hour_utc"):
        assert text not in SCENARIOS.read_text()
