"""`policy diff`: what differs between revisions, and real decisions decided again."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from authz_server.cli import main
from authz_server.cli.policy_recorded import RecordedRequest, recorded_verdict
from authz_server.cli.policy_replay import Outcome, Pair, redecide
from authz_server.cli.policy_sources import load_noted
from authz_server.core.decision import ApprovalRecord, Decision
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.pdp import decide
from authz_server.core.record import decision_json
from authz_server.ledger.record import Record
from authz_server.ledger.store import Ledger
from authz_server.policy.diff import Change, diff_bundles
from authz_server.policy.replay import LoadedPolicy, replay
from authz_server.servers import wire
from tests.harness import casebook
from tests.harness.casebook import Case
from tests.harness.world import CASES, World, inventory
from tests.ledger_samples import NOON, TTL_S, allow, chain, deny, record
from tests.policy_samples import MANIFEST, PRIORITY, model

BUNDLES = CASES / "bundles"


# --- rules --------------------------------------------------------------------------------------


def written(directory: Path, policy: str, conf: str = "", **files: str) -> Path:
    """Write a bundle and return its directory."""
    directory.mkdir(parents=True)
    texts = {"model.conf": conf or model("eval(p.rule)"), "policy.csv": policy}
    texts |= {"bundle.yaml": MANIFEST}
    for name, text in (texts | {key.replace("_", "."): one for key, one in files.items()}).items():
        (directory / name).write_text(text)
    return directory


def loaded(directory: Path) -> LoadedPolicy:
    (one,) = load_noted(directory).values()
    return one.policy


def changes(tmp_path: Path, old: str, new: str, **options: Any) -> list[tuple[str, str]]:
    before = loaded(written(tmp_path / "old", old, **options))
    found = diff_bundles(before, loaded(written(tmp_path / "new", new, **options)))
    return [(one.change.value, one.id) for one in found.rules]


OLD = """\
p, read, r.act.read_only, allow,
p, write, r.chain.depth < 2, escalate, sre
p, gone, r.chain.present, deny,
"""
NEW = """\
# in another order, spelt otherwise
p, write, r.chain.depth < 3, escalate, sre
p, read, (r.act.read_only), allow,

p, fresh, "r.act.name in ('GET', 'PUT')", allow,
"""


def test_rules_are_joined_by_id_and_compared_by_what_they_say(tmp_path: Path) -> None:
    assert changes(tmp_path, OLD, NEW) == [
        ("added", "fresh"),
        ("changed", "write"),
        ("removed", "gone"),
    ]


def test_rules_without_ids_are_what_they_say(tmp_path: Path) -> None:
    conf = model("eval(p.rule)", columns="rule, eft")
    old = "p, r.act.read_only, allow\np, r.chain.present, deny\np, r.chain.present, deny\n"
    new = "\n\np, r.chain.present, deny\np, r.act.read_only, allow\np, r.chain.depth < 1, allow\n"
    found = changes(tmp_path, old, new, conf=conf)
    assert [change for change, _ in found] == ["added", "removed"]
    assert found[0][1].endswith("policy.csv:5")


def test_another_matcher_changes_every_rule_it_means_something_else_for(tmp_path: Path) -> None:
    before = loaded(written(tmp_path / "old", OLD))
    conf = model("eval(p.rule) && r.act.name == 'GET'")
    found = diff_bundles(before, loaded(written(tmp_path / "new", OLD, conf)))
    assert {one.change for one in found.rules} == {Change.CHANGED}
    assert str(found.rules[0].new).endswith('&& r.act.name == "GET"')


def test_effect_parties_and_role_rows_are_told_once_not_for_every_rule(tmp_path: Path) -> None:
    rules = "p, read, \"g(r.sub.id, 'admin')\", allow,\n"
    old = written(
        tmp_path / "old", rules, model("eval(p.rule)", roles="g = _, _"), roles_csv="g, a, admin\n"
    )
    new = written(
        tmp_path / "new",
        rules,
        model("eval(p.rule)", roles="g = _, _", effect=PRIORITY),
        roles_csv="g, b, admin\n",
        bundle_yaml=MANIFEST + "parties: [caller, actors]\n",
    )
    found = diff_bundles(loaded(old), loaded(new))
    assert [fact.name for fact in found.facts] == ["effect", "parties"]
    assert found.rules == ()
    assert (found.roles_added, found.roles_removed) == (
        (("g", "b", "admin"),),
        (("g", "a", "admin"),),
    )


def test_order_counts_where_the_first_match_decides(tmp_path: Path) -> None:
    conf = model("eval(p.rule)", effect=PRIORITY)
    rows = ["p, a, r.act.read_only, allow,", "p, b, r.chain.present, deny,"]
    old = loaded(written(tmp_path / "old", "\n".join(rows), conf))
    new = loaded(written(tmp_path / "new", "\n".join(reversed(rows)), conf))
    assert [(one.name, one.old, one.new) for one in diff_bundles(old, new).facts] == [
        ("order of rules", "a", "b")
    ]
    assert not diff_bundles(old, old)


# --- real decisions -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def policies() -> dict[str, LoadedPolicy]:
    return {name: one.policy for name, one in load_noted(BUNDLES).items()}


def decided(case: Case, world: World) -> Decision | None:
    request = casebook.check_request(case, world)
    try:
        access = wire.access_request(request)
    except RequestFault:
        return None
    return decide(access, world.snapshot(casebook.revocations(case, request)), world.now)


@pytest.mark.parametrize("case", casebook.cases(), ids=str)
def test_every_case_is_replayed_to_its_verdict_or_names_what_is_missing(
    case: Case, world: World, policies: dict[str, LoadedPolicy]
) -> None:
    decision = decided(case, world)
    if decision is None:
        return
    document = decision_json(decision, decision_id="d", duration_us=1)
    if recorded_verdict(document) is None:
        assert decision.reason not in {Reason.OK, Reason.DENIED_BY_RULE, Reason.NO_MATCHING_RULE}
        return
    policy = policies[decision.bundle or ""]
    found = replay(policy, RecordedRequest(document, inventory()).attributes(policy.bundle))
    if found.evaluation is None:
        assert found.reads
        return
    assert found.evaluation.verdict is decision.verdict
    if not found.reads:
        assert (found.evaluation.reason, found.evaluation.rules) == (
            decision.reason,
            decision.rules,
        )


def test_most_cases_can_be_replayed(world: World, policies: dict[str, LoadedPolicy]) -> None:
    """The test above is not passed by finding everything unreadable."""
    documents = [
        decision_json(one, decision_id=str(number), duration_us=1)
        for number, one in enumerate(decided(case, world) for case in casebook.cases())
        if one is not None
    ]
    # The bundle `a2a` judges by arguments throughout, and those are what no record holds.
    asked = [
        one for one in documents if recorded_verdict(one) is not None and one["bundle"] != "a2a"
    ]
    settled = 0
    for document in asked:
        policy = policies[str(document["bundle"])]
        attributes = RecordedRequest(document, inventory()).attributes(policy.bundle)
        settled += replay(policy, attributes).evaluation is not None
    assert len(asked) > 10
    assert settled > len(asked) / 2


def redecided(decision: Decision, tmp_path: Path, old: str, new: str) -> Any:
    pair = Pair(
        old=loaded(written(tmp_path / "old", old)), new=loaded(written(tmp_path / "new", new))
    )
    document = decision_json(replace(decision, bundle="b"), decision_id="d", duration_us=1)
    (one,) = redecide(iter([document]), {"b": pair}, None)
    return one


def test_an_approved_escalation_is_compared_as_the_escalation_it_was(tmp_path: Path) -> None:
    approval = ApprovalRecord(id="a", approver="bob", approved_at=NOON)
    document = decision_json(allow(approval=approval), decision_id="d", duration_us=1)
    assert recorded_verdict(document) == "escalate"
    one = redecided(
        allow(approval=approval),
        tmp_path,
        "p, r1, true, escalate, sre\n",
        "p, r1, true, escalate, ops\n",
    )
    assert one.outcome is Outcome.CHANGED


@pytest.mark.parametrize(
    ("rule", "reads"),
    [
        ("r.obj.args.tier == 'gold'", "r.obj.args.tier"),
        ("r.obj.labels.stage == 'production'", "r.obj.labels.stage"),
        ("r.sub.labels.team == 'red'", "r.sub.labels.team"),
        ("r.sub.purpose == 'search'", "r.sub.purpose"),
    ],
)
def test_what_was_not_recorded_is_named_never_guessed(
    tmp_path: Path, rule: str, reads: str
) -> None:
    one = redecided(allow(), tmp_path, "p, r1, true, allow,\n", f"p, r1, {rule}, allow,\n")
    assert (one.outcome, one.reads) == (Outcome.OPEN, {reads})
    assert one.new is None


def test_what_another_operand_settles_needs_no_argument(tmp_path: Path) -> None:
    new = "p, r1, r.obj.args.tier == 'gold' && r.act.name == 'GET', allow,\n"
    one = redecided(allow(), tmp_path, "p, r1, true, allow,\n", new)
    assert (one.outcome, one.new.reason) == (Outcome.CHANGED, Reason.NO_MATCHING_RULE)


def test_a_denial_stands_whatever_the_open_rules_do(tmp_path: Path) -> None:
    new = "p, r1, true, deny,\np, r2, r.obj.args.tier == 'gold', allow,\n"
    one = redecided(allow(), tmp_path, "p, r1, true, allow,\n", new)
    assert (one.outcome, one.new.verdict) == (Outcome.CHANGED, "deny")


def test_rules_that_stay_the_same_need_no_argument(tmp_path: Path) -> None:
    same = "p, r1, r.obj.args.tier == 'gold', allow,\n"
    new = same + "p, r2, r.act.name == 'GET', deny,\n"
    assert redecided(allow(), tmp_path, same, new).outcome is Outcome.SAME


def test_a_pseudonym_is_no_subject(tmp_path: Path) -> None:
    decision = allow(chain=chain(subject="hmac-sha256:" + "ab" * 32))
    rule = "p, r1, r.chain.subject == 'alice@example.org', allow,\n"
    one = redecided(decision, tmp_path, "p, r1, true, allow,\n", rule)
    assert (one.outcome, one.reads) == (Outcome.OPEN, {"r.chain.subject"})


def test_a_path_that_was_cut_is_not_known(tmp_path: Path) -> None:
    sample = allow()
    assert sample.resource is not None
    cut = replace(sample.resource, path="/" + "a" * 1023, path_sha256="ab" * 32)
    rule = "p, r1, r.obj.path == '/mcp', allow,\n"
    one = redecided(allow(resource=cut), tmp_path, "p, r1, true, allow,\n", rule)
    assert (one.outcome, one.reads) == (Outcome.OPEN, {"r.obj.path"})


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two revisions of a bundle and a ledger of decisions that the old one made."""
    written(tmp_path / "old" / "tools", "p, lookup, r.obj.tool == 'lookup_customer', allow,\n")
    written(
        tmp_path / "new" / "tools",
        "p, lookup, r.obj.tool == 'lookup_customer' && r.chain.depth < 2, allow,\n",
    )
    for name in ("old", "new"):
        (tmp_path / name / "tools" / "bundle.yaml").write_text("domain: data\n")
    ledger = Ledger.open(f"sqlite:///{tmp_path}/authz.db", approval_ttl_s=TTL_S)
    ledger.commit(
        [
            record(allow(rules=("lookup",)), "01"),
            record(deny(Reason.EXPIRED), "02"),
            record(deny(Reason.NO_MATCHING_RULE, bundle="another"), "03"),
        ]
    )
    ledger.close()
    return tmp_path


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main.group, ["policy", "diff", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_shows_rules_that_differ_and_exits_with_1(site: Path) -> None:
    result = run(site / "old", site / "new")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "  bundle tools"
    assert lines[1].startswith("~ rule lookup  (")
    assert lines[2:] == [
        '    - allow if r.obj.tool == "lookup_customer"',
        '    + allow if r.obj.tool == "lookup_customer" && r.chain.depth < 2',
    ]
    same = run(site / "old", site / "old")
    assert (same.exit_code, same.stdout) == (0, "  bundle tools: no rule differs\n")


def test_replay_lists_the_verdicts_that_change(site: Path) -> None:
    result = run(site / "old", site / "new", "--replay", site / "authz.db")
    assert result.exit_code == 1
    (line,) = [one for one in result.stdout.splitlines() if one.startswith("allow -> deny")]
    assert "  01  2026-07-01T12:00:00.123456Z  alice@example.org  " in line
    assert line.endswith("  lookup -> NO_MATCHING_RULE")
    assert counts(result) == {
        Outcome.SAME: 0,
        Outcome.CHANGED: 1,
        Outcome.NOT_ASKED: 1,
        Outcome.OTHER: 1,
    }
    assert "no inventory given" in result.stderr


def counts(result: Result) -> dict[Outcome, int]:
    found = {}
    for line in result.stdout.splitlines():
        if match := re.fullmatch(r"(.*?)\s{2,}([0-9]+)\s*", line):
            found[Outcome(match[1])] = int(match[2])
    return found


def test_replay_of_the_same_policy_changes_nothing(site: Path) -> None:
    url = f"sqlite:///{site}/authz.db"
    result = run(site / "old" / "tools", site / "old" / "tools", "--replay", url)
    assert result.exit_code == 0
    assert counts(result)[Outcome.SAME] == 1


def test_json_is_one_document_a_line(site: Path) -> None:
    result = run(site / "old", site / "new", "--replay", site / "authz.db", "--output", "json")
    rule, decision, summary = map(json.loads, result.stdout.splitlines())
    assert (rule["type"], rule["change"], rule["id"]) == ("rule", "changed", "lookup")
    assert decision["old"]["verdict"] == "allow"
    assert decision["new"]["reason"] == "NO_MATCHING_RULE"
    assert summary == {
        "type": "summary", "same": 0, "changed": 1, "open": 0, "not_asked": 1, "other": 1,
        "unreadable": 0, "recorded_otherwise": 0,
    }  # fmt: skip


def test_strict_counts_what_cannot_be_replayed(site: Path) -> None:
    policy = site / "new" / "tools" / "policy.csv"
    policy.write_text("p, lookup, r.obj.args.tier == 'gold', allow,\n")
    lenient = run(site / "old", site / "new", "--replay", site / "authz.db")
    assert lenient.exit_code == 0
    assert "cannot be replayed: reads r.obj.args.tier  (1, such as 01)" in lenient.stdout
    assert run(site / "old", site / "new", "--replay", site / "authz.db", "--strict").exit_code == 1


def test_an_inventory_tells_labels(site: Path) -> None:
    policy = site / "new" / "tools" / "policy.csv"
    policy.write_text("p, lookup, r.sub.labels.team == 'red', allow,\n")
    (site / "identities.yaml").write_text(
        'identities:\n  - {id: "spiffe://prod.example.org/agent/research-*", kind: agent,'
        " labels: {team: blue}}\n"
    )
    arguments = (site / "old", site / "new", "--replay", site / "authz.db")
    assert run(*arguments).exit_code == 0
    result = run(*arguments, "--inventory", site / "identities.yaml")
    assert result.exit_code == 1
    assert "as it is now" in result.stderr


def test_says_when_old_is_not_what_decided(site: Path) -> None:
    result = run(site / "new", site / "old", "--replay", site / "authz.db")
    assert "note: OLD does not answer 1 of them as recorded" in result.stdout


def test_says_when_no_record_is_of_the_bundle(site: Path) -> None:
    one, other = site / "old" / "tools", site / "new" / "tools"
    for directory in (one, other):
        (directory / "bundle.yaml").write_text("name: renamed\ndomain: data\n")
    result = run(one, other, "--replay", site / "authz.db")
    assert result.exit_code == 0
    assert "no record is of bundle renamed" in result.stdout
    named = run(one, other, "--replay", site / "authz.db", "--bundle", "tools")
    assert named.exit_code == 1


def test_a_bundle_that_goes_denies_what_it_allowed(site: Path) -> None:
    (site / "new" / "tools").rename(site / "new" / "others")
    result = run(site / "old", site / "new", "--replay", site / "authz.db")
    assert result.exit_code == 1
    assert "- bundle tools removed" in result.stdout
    assert "+ bundle others added" in result.stdout
    assert "lookup -> UNKNOWN_BUNDLE" in result.stdout


def test_hostile_text_of_a_record_stays_text(site: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{site}/authz.db", approval_ttl_s=TTL_S)
    ledger.commit([record(allow(chain=chain(subject="eve\n\x1b[2J")), "04")])
    ledger.close()
    result = run(site / "old", site / "new", "--replay", site / "authz.db")
    assert r"eve\n\x1b[2J" in result.stdout
    assert "\x1b" not in result.stdout


def many(count: int) -> Iterator[Record]:
    for number in range(count):
        yield record(allow(rules=("lookup",)), f"n{number:06d}")


def test_a_long_ledger_is_read_page_by_page(site: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{site}/authz.db", approval_ttl_s=TTL_S)
    ledger.commit(list(many(600)))
    ledger.close()
    result = run(site / "old", site / "new", "--replay", site / "authz.db")
    assert counts(result)[Outcome.CHANGED] == 601
    limited = run(site / "old", site / "new", "--replay", site / "authz.db", "--limit", "7")
    assert counts(limited)[Outcome.CHANGED] == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "nowhere"], "does not exist"),
        (["OLD", "NEW", "--bundle", "no"], "no bundle is called `no`"),
        (["OLD", "NEW", "--replay", "/nowhere.db"], "does not exist"),
        (["OLD", "NEW", "--replay", "LEDGER", "--inventory", "/no.yaml"], "cannot be read"),
        (["OLD", "EMPTY"], "there is no policy bundle in it"),
    ],
)
def test_mistakes_are_usage_errors(site: Path, arguments: list[str], message: str) -> None:
    (site / "empty").mkdir()
    places = {"OLD": "old", "NEW": "new", "LEDGER": "authz.db", "EMPTY": "empty"}
    result = run(*(site / places[one] if one in places else one for one in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
