"""Scenarios: read strictly, asked of every bundle, and a disagreement is found and named."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from authz_server.cli import main
from authz_server.core.attributes import Attributes, Kind
from authz_server.core.decision import Verdict
from authz_server.core.errors import Reason
from authz_server.core.identities import Identity, Inventory
from authz_server.policy.consistency import CompiledBundles, Said, Scenario, Step, play
from authz_server.policy.scenarios import Surroundings, load_scenarios
from authz_server.policy.source import FaultLog
from tests.harness.world import CASES

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "casbin_models" / "consistency.yaml"
AGENT, SECOND = "spiffe://d.example/agent/one", "spiffe://d.example/agent/two"
ALICE = "alice@example.org"
DOMAINS = {"tools": "ai_workload", "data": "data", "agents": "application"}
INVENTORY = Inventory.of(
    (
        Identity(id="spiffe://d.example/agent/*", kind=Kind.AGENT, owner="team", labels={"a": "b"}),
        Identity(id=ALICE, kind=Kind.HUMAN, labels={"department": "support"}),
    )
)
STEP = {"bundle": "data", "act": {"name": "GET"}, "obj": {"path": "/x/y"}}


def document(**changes: Any) -> dict[str, Any]:
    values = {
        "name": "one",
        "task": "read",
        "subject": ALICE,
        "agent": AGENT,
        "steps": [STEP, {**STEP, "bundle": "tools"}],
        "expect": "same",
    }
    return {name: value for name, value in (values | changes).items() if value is not ...}


def load(
    text: str | dict[str, Any] | list[Any], surroundings: Surroundings | None = None
) -> tuple[tuple[Scenario, ...], FaultLog]:
    log = FaultLog()
    data = text if isinstance(text, str) else json.dumps(text)  # JSON is YAML, without aliases
    around = surroundings or Surroundings(domains=DOMAINS)
    return load_scenarios(data.encode(), file="s.yaml", surroundings=around, log=log), log


def step_of(surroundings: Surroundings | None = None, **changes: Any) -> Step:
    (scenario,), log = load(document(**changes), surroundings)
    assert log.faults == []
    return scenario.steps[0]


def asked(surroundings: Surroundings | None = None, **changes: Any) -> Attributes:
    return step_of(surroundings, **changes).attributes


# --- reading --------------------------------------------------------------------------------------


def test_a_step_needs_a_bundle_an_action_and_an_object_only() -> None:
    found = asked()
    assert (found.caller.id, found.caller.kind, found.caller.assurance) == (AGENT, "agent", "mtls")
    assert (found.caller.path, found.caller.trust_domain) == ("/agent/one", "d.example")
    assert found.subject is not None
    assert (found.subject.id, found.subject.kind) == (ALICE, "human")
    assert [actor.id for actor in found.actors] == [AGENT]
    chain = found.chain
    assert (chain.present, chain.subject, chain.actors, chain.leaf) == (
        True,
        ALICE,
        (AGENT,),
        AGENT,
    )
    assert (chain.mode, chain.assurance, chain.depth) == ("exercise", "hop_signed", 1)
    assert (found.act.protocol, found.act.read_only) == ("http", True)
    assert (found.obj.type, found.obj.segments) == ("http", ("x", "y"))
    assert (found.env.bundle, found.env.domain) == ("data", "data")


def test_without_a_subject_there_is_no_chain() -> None:
    for changes in ({"subject": ...}, {"subject": None}, {"chain": None}):
        found = asked(**changes)
        assert (found.chain.present, found.subject, found.actors) == (False, None, ())
    found = asked(steps=[{**STEP, "chain": None}, {**STEP, "bundle": "tools"}])
    assert not found.chain.present


def test_a_step_adds_to_the_chain_of_its_scenario() -> None:
    steps = [{**STEP, "chain": {"mode": "handoff", "purpose": "p"}}, {**STEP, "bundle": "tools"}]
    found = step_of(chain={"scope": ["a"], "purpose": "q"}, steps=steps)
    chain = found.attributes.chain
    assert (chain.scope, chain.purpose, chain.mode) == (frozenset("a"), "p", "handoff")
    assert {"chain.scope", "chain.purpose", "chain.mode", "act.name", "obj.path"} == found.given


def test_another_caller_stands_at_the_end_of_the_chain() -> None:
    steps = [{**STEP, "sub": {"id": SECOND, "purpose": "p"}}, {**STEP, "bundle": "tools"}]
    found = asked(Surroundings(domains=DOMAINS, inventory=INVENTORY), steps=steps)
    assert (found.caller.id, found.caller.purpose, found.caller.owner) == (SECOND, "p", "team")
    assert found.chain.actors == (AGENT, SECOND)
    assert [actor.role for actor in found.actors] == ["actor", "actor"]
    named = [{**STEP, "chain": {"actors": [SECOND, AGENT]}}, {**STEP, "bundle": "tools"}]
    assert asked(steps=named).chain.actors == (SECOND, AGENT)


def test_parties_are_as_the_scenario_says_over_what_the_inventory_does() -> None:
    around = Surroundings(domains=DOMAINS, inventory=INVENTORY, admit_unregistered=False)
    found = step_of(around)
    assert found.attributes.subject is not None
    assert found.attributes.subject.labels == {"department": "support"}
    assert (found.attributes.caller.owner, found.attributes.caller.labels) == ("team", {"a": "b"})
    assert not found.unregistered
    other = {ALICE: {"labels": {"department": "sales"}}, AGENT: {"kind": "service"}}
    found = step_of(around, parties=other)
    assert found.attributes.subject is not None
    assert found.attributes.subject.labels == {"department": "sales"}
    assert (found.attributes.caller.kind, found.attributes.caller.owner) == ("service", "team")


def test_who_is_in_no_inventory_is_denied_as_a_server_would() -> None:
    stranger = "spiffe://d.example/elsewhere"
    strict = Surroundings(domains=DOMAINS, inventory=INVENTORY, admit_unregistered=False)
    assert step_of(strict, agent=stranger).unregistered
    assert not step_of(strict, agent=stranger, parties={stranger: {}}).unregistered
    assert not step_of(replace(strict, admit_unregistered=True), agent=stranger).unregistered
    said = CompiledBundles({}).ask(step_of(strict, agent=stranger))
    assert (said.verdict, said.reason) == (Verdict.DENY, Reason.UNREGISTERED_IDENTITY)


HEAD = f"name: one\ntask: t\nagent: {AGENT}\nsubject: {ALICE}\n"
STEPS = "steps:\n- {bundle: data, act: {}, obj: {}}\n- {bundle: tools, act: {}, obj: {}}\n"


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        (f"{HEAD}{STEPS}expect: sane\n", 8, 9, "`expect` is required: `same`, or the verdict"),
        (f"{HEAD}{STEPS}", 1, 1, "`expect` is required: `same`, or the verdict"),
        (f"{HEAD}{STEPS}expect: {{data: deny}}\n", 8, 1, "`tools` needs a verdict"),
        (
            f"{HEAD}{STEPS}expect: {{data: deny, tools: maybe}}\n",
            8,
            29,
            "`tools` needs a verdict: allow, escalate or deny",
        ),
        (
            f"{HEAD}{STEPS}expect: {{data: deny, tools: deny, agents: deny}}\n",
            8,
            35,
            "unknown key `agents`",
        ),
        (f"{HEAD}{STEPS}expect: same\nowner: x\n", 9, 1, "unknown key `owner`"),
        (
            f"{HEAD}steps:\n- {{bundle: dota, act: {{}}, obj: {{}}}}\nexpect: same\n",
            6,
            12,
            "no bundle is called `dota`; did you mean `data`?",
        ),
        (
            f"{HEAD}steps:\n- {{bundle: data, act: {{nmae: GET}}, obj: {{}}}}\nexpect: same\n",
            6,
            24,
            "unknown key `nmae`; did you mean `name`?",
        ),
        (
            f"{HEAD}steps:\n- {{bundle: data, act: {{protocol: htpp}}, obj: {{}}}}\nexpect: same\n",
            6,
            34,
            "expected one of a2a, grpc, http, mcp, tcp; did you mean `http`?",
        ),
        (
            f"{HEAD}steps:\n- {{bundle: data, act: {{}}, obj: {{}}, env: {{bundle: x}}}}\n",
            6,
            42,
            "unknown key `bundle`",
        ),
        (
            f"{HEAD}steps:\n- {{bundle: data, act: {{}}}}\nexpect: same\n",
            6,
            3,
            "a step says what is done: `obj` is required",
        ),
        (
            f"{HEAD}steps:\n- {{bundle: data, act: {{}}, obj: {{}}}}\nexpect: same\n",
            7,
            9,
            "`same` compares bundles; the steps name one alone",
        ),
        (f"{HEAD}steps: []\nexpect: same\n", 5, 1, "`steps` is required, a list of 1 to 100"),
        (
            HEAD.replace(AGENT, "agent-one") + STEPS + "expect: same\n",
            3,
            8,
            "`agent` is not a SPIFFE ID",
        ),
        (
            f"{HEAD}chain: {{depth: 3}}\n{STEPS}expect: same\n",
            5,
            9,
            "unknown key `depth`",
        ),
        (
            f"{HEAD}chain: {{scope: all}}\n{STEPS}expect: same\n",
            5,
            16,
            "expected a list of texts",
        ),
        (
            HEAD.replace(f"subject: {ALICE}\n", "chain: {scope: [a]}\n") + STEPS + "expect: same\n",
            4,
            1,
            "a chain needs a `subject` of the scenario",
        ),
        (
            f"{HEAD}parties: {{{ALICE}: {{id: bob}}}}\n{STEPS}expect: same\n",
            5,
            31,
            "unknown key `id`",
        ),
        ("[]", 1, 1, "expected a list of scenarios"),
        ("name: [", 2, 1, "not YAML"),
    ],
)
def test_a_fault_has_its_place(text: str, line: int, column: int, message: str) -> None:
    _, log = load(text)
    found = [(fault.line, fault.column, fault.message) for fault in log.errors()]
    assert any(
        (at, col) == (line, column) and said.startswith(message) for at, col, said in found
    ), found


def test_every_fault_is_told_at_once_and_a_name_is_used_once() -> None:
    _, log = load([document(), document(agent=7, task=""), document(steps="x")])
    messages = " ".join(fault.message for fault in log.errors())
    for part in ("`name` of its own", "`agent` is required", "`task` is", "`steps` is required"):
        assert part in messages


# --- comparing ------------------------------------------------------------------------------------


class Script:
    """An asker that says what it is told of each bundle, step by step."""

    def __init__(self, **said: list[str]) -> None:
        self._said = {bundle: iter(verdicts) for bundle, verdicts in said.items()}

    def ask(self, step: Step) -> Said:
        verdict = Verdict(next(self._said[step.bundle]))
        reason = Reason.OK if verdict is Verdict.ALLOW else Reason.DENIED_BY_RULE
        return Said(verdict=verdict, reason=reason, rules=(f"{step.bundle}-{verdict}",))


def outcome(expect: object, **said: list[str]) -> tuple[bool, Mapping[str, tuple[str, bool]]]:
    steps = [{**STEP, "bundle": bundle} for bundle, verdicts in said.items() for _ in verdicts]
    (scenario,), log = load(document(steps=steps, expect=expect))
    assert log.faults == []
    found = play(scenario, Script(**said))
    return found.agrees, {a.bundle: (a.said.verdict, a.agrees) for a in found.answers}


def test_the_strictest_step_of_a_bundle_counts() -> None:
    steps = {"tools": ["allow", "escalate", "allow"], "data": ["escalate", "deny", "allow"]}
    assert outcome({"tools": "escalate", "data": "deny"}, **steps)[0]
    assert outcome({"tools": "allow", "data": "deny"}, **steps) == (
        False,
        {"tools": ("escalate", False), "data": ("deny", True)},
    )


@pytest.mark.parametrize("verdict", Verdict)
def test_same_is_what_all_say(verdict: Verdict) -> None:
    assert outcome("same", tools=[verdict], data=[verdict], agents=[verdict])[0]
    other = Verdict.DENY if verdict is Verdict.ALLOW else Verdict.ALLOW
    agrees, answers = outcome("same", tools=[verdict], data=[other], agents=[verdict])
    assert not agrees
    assert {name for name, (_, one) in answers.items() if not one} == {"tools", "data", "agents"}


# --- the command ----------------------------------------------------------------------------------


def consistency(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main.group, ["policy", "consistency", *map(str, arguments)])


def test_the_shipped_bundles_agree_where_they_are_expected_to() -> None:
    """The command as a pipeline runs it, on what is shipped."""
    result = consistency(SHIPPED, "--bundles", SHIPPED.parent, "--output", "json")
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) >= 8
    asked_of = {answer["bundle"] for one in found for answer in one["answers"]}
    assert asked_of == {path.parent.name for path in SHIPPED.parent.glob("*/bundle.yaml")}
    assert {answer["domain"] for one in found for answer in one["answers"]} == {
        "application", "infrastructure", "data", "ai_workload",
    }  # fmt: skip
    assert {answer["verdict"] for one in found for answer in one["answers"]} == set(Verdict)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """The shipped bundles, one of which has lost the rule that keeps payroll closed."""
    copy = tmp_path / "bundles"
    shutil.copytree(SHIPPED.parent, copy)
    rules = copy / "data" / "policy.csv"
    kept = [line for line in rules.read_text().splitlines() if not line.startswith("p, payroll")]
    opened = "p, payroll-for-all, agent, *, /v1/payroll, true, allow"
    people = "p, payroll-for-people, human, *, /v1/payroll, true, allow"
    rules.write_text("\n".join([*kept, opened, people]) + "\n")
    scenario = document(
        name="payroll",
        chain={"scope": ["data.read"], "purpose": "support-case"},
        steps=[
            {"bundle": "tools", "act": {"protocol": "mcp", "name": "tools/call"},
             "obj": {"tool": "payroll_read"}},
            {"bundle": "data", "act": {"name": "GET"}, "obj": {"path": "/v1/payroll"}},
        ],
    )  # fmt: skip
    (tmp_path / "payroll.yaml").write_text(json.dumps([scenario]))
    return tmp_path


def test_a_planted_disagreement_is_found_and_named(planted: Path) -> None:
    sound = consistency(planted / "payroll.yaml", "--bundles", SHIPPED.parent)
    assert sound.exit_code == 0, sound.output
    found = consistency(planted / "payroll.yaml", "--bundles", planted / "bundles")
    assert found.exit_code == 1
    rows = [line for line in found.stdout.splitlines() if line.endswith("DISAGREES")]
    assert len(rows) == 2
    assert "payroll-for-all" in rows[1]
    said = "`payroll` disagrees: deny: tools (NO_MATCHING_RULE); allow: data (payroll-for-all"
    assert f"{planted}/payroll.yaml:1: {said}" in found.stderr
    assert "0 of 1 scenarios agree" in found.stderr


def test_json_holds_what_the_table_shows(planted: Path) -> None:
    found = consistency(
        planted / "payroll.yaml", "--bundles", planted / "bundles", "--output", "json"
    )
    (line,) = found.stdout.splitlines()
    document = json.loads(line)
    assert (document["scenario"], document["agrees"], document["expect"]) == (
        "payroll", False, "same",
    )  # fmt: skip
    assert document["answers"][0] == {
        "bundle": "tools",
        "domain": "ai_workload",
        "verdict": "deny",
        "reason": "NO_MATCHING_RULE",
        "rules": [],
        "decision_id": None,
        "line": 1,
        "steps": 1,
        "agrees": False,
    }


def test_unreadable_scenarios_end_in_every_fault(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("- {name: x}\n")
    (tmp_path / "two.yaml").write_text("nonsense\n")
    result = consistency(
        tmp_path / "one.yaml", tmp_path / "two.yaml", tmp_path / "three.yaml",
        "--bundles", SHIPPED.parent,
    )  # fmt: skip
    assert result.exit_code == 2
    assert f"{tmp_path}/one.yaml:1:3: error: `task` is required" in result.output
    assert f"{tmp_path}/two.yaml:1:1: error: expected a list of scenarios" in result.output
    assert f"{tmp_path}/three.yaml: error: cannot be read" in result.output


def test_a_scenario_comes_from_standard_input_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(
        main.group, ["policy", "consistency", "-"], input=SHIPPED.read_bytes()
    )
    assert result.exit_code == 0, result.stderr
    broken = CliRunner().invoke(main.group, ["policy", "consistency", "-"], input="[1]")
    assert (broken.exit_code, broken.stderr.split()[0]) == (2, "standard")


def test_without_bundles_it_says_how_to_name_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    result = consistency(SHIPPED)
    assert (result.exit_code, "--bundles" in result.stderr) == (2, True)


def test_a_configuration_gives_bundles_and_inventory(tmp_path: Path) -> None:
    """Its inventory says who the parties are; a stranger is denied as the server would."""
    configuration = {
        "trust_domain": "cases.example.org",
        "identity": {
            "trust_bundles": {"files": {"cases.example.org": "trust.pem"}},
            "inventory": str(CASES / "identities.yaml"),
        },
        "delegation": {"require": False},
        "bundles": {"dir": str(CASES / "bundles")},
    }
    (tmp_path / "authz.yaml").write_text(yaml.safe_dump(configuration))
    steps = [STEP, {**STEP, "bundle": "agents"}]
    stranger = "spiffe://cases.example.org/agents-we-never-saw/x"
    (tmp_path / "one.yaml").write_text(json.dumps([document(agent=stranger, steps=steps)]))
    result = consistency(
        tmp_path / "one.yaml", "--config", tmp_path / "authz.yaml", "--output", "json"
    )
    assert result.exit_code == 0, result.output
    reasons = {answer["reason"] for answer in json.loads(result.stdout)["answers"]}
    assert reasons == {"UNREGISTERED_IDENTITY"}


def test_the_example_of_the_page_comes_out_as_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "consistency.md").read_text()
    shown, scenario = (
        page.split(f"```{kind}\n")[1].split("```")[0] for kind in ("console", "yaml")
    )
    (tmp_path / "lookup.yaml").write_text(scenario)
    monkeypatch.chdir(tmp_path)
    result = consistency("lookup.yaml", "--bundles", ROOT / "casbin_models")
    printed = [line.rstrip() for line in (result.stdout + result.stderr).splitlines()]
    assert ["$ authz-server policy consistency lookup.yaml", *printed] == shown.splitlines()
