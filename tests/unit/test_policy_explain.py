"""What `explain` tells of a rule: operands as bound, values seen, what was reached, which roles."""

import pytest

from authz_server.core.attributes import AMBIGUOUS, Attributes
from authz_server.core.errors import Reason
from authz_server.policy.bundle import load_bundle_files
from authz_server.policy.explain import (
    Explanation,
    Operand,
    Outcome,
    PartyExplanation,
    RuleExplanation,
    explain,
)
from authz_server.policy.rule_notes import RuleNotes
from tests.policy_samples import attributes, field, model, party, texts

COLUMNS = "id, kind, rule, eft, obligation"
MATCHER = "(p.kind == '*' || r.sub.kind == p.kind) && eval(p.rule)"


def told(
    request: Attributes, *rules: str, near: int = 5, parties: str = "caller", roles: str = ""
) -> Explanation:
    """Explain `request` by rules written `kind: condition`, all of which allow."""
    rows = []
    for number, rule in enumerate(rules, 1):
        kind, _, condition = rule.partition(": ")
        rows.append(f"p, r{number}, {kind}, {field(condition)}, allow,")
    conf = model(MATCHER, columns=COLUMNS, roles="g = _, _" if roles else "")
    files = texts(
        conf,
        "\n".join(rows),
        bundle_yaml=f"name: sample\ndomain: data\nparties: [{parties}]\n",
        **({"roles_csv": roles} if roles else {}),
    )
    notes = RuleNotes()
    return explain(load_bundle_files(files, observe=notes), notes, request, near=near)


def only_party(explanation: Explanation) -> PartyExplanation:
    (found,) = explanation.parties
    return found


def rule(explanation: Explanation, rule_id: str = "r1") -> RuleExplanation:
    return next(one for one in only_party(explanation).rules if one.rule.id == rule_id)


def shown(operands: tuple[Operand, ...]) -> list[tuple[str, str, bool]]:
    return [(one.text, one.outcome.value, one.reached) for one in operands]


def test_a_matching_rule_shows_every_operand_with_the_values_seen() -> None:
    found = rule(told(attributes(), "agent: r.chain.depth <= 2 && keyMatch(r.obj.path, '/v1/*')"))
    assert (found.outcome, found.decided, found.candidate) == (Outcome.TRUE, True, True)
    assert shown(found.operands) == [
        ('r.sub.kind == "agent"', "true", True),
        ("r.chain.depth <= 2", "true", True),
        ('keyMatch(r.obj.path, "/v1/*")', "true", True),
    ]
    assert [dict(one.values) for one in found.operands] == [
        {"r.sub.kind": "agent"},
        {"r.chain.depth": 2},
        {"r.obj.path": "/v1/customers/7"},
    ]


def test_the_operand_that_fails_decides_and_those_after_it_are_not_reached() -> None:
    request = attributes(obj={"args": {"amount": AMBIGUOUS}})
    found = rule(told(request, "*: r.chain.depth > 5 && r.obj.args.amount > 3"))
    assert found.outcome is Outcome.FALSE
    assert shown(found.operands) == [
        ("r.chain.depth > 5", "false", True),
        ("r.obj.args.amount > 3", "error", False),
    ]


def test_an_operand_that_cannot_be_evaluated_fails_the_rule_and_says_why() -> None:
    request = attributes(obj={"args": {"amount": "many"}})
    explanation = told(request, "*: r.obj.args.amount > 3", "*: r.chain.present")
    found = rule(explanation)
    assert explanation.evaluation.reason is Reason.POLICY_ERROR
    assert (found.outcome, found.decided) == (Outcome.ERROR, True)
    assert found.operands[0].error == "values of different types have no order"
    assert found.operands[0].values == {"r.obj.args.amount": "many"}
    assert rule(explanation, "r2").decided is False


def test_parts_of_an_or_are_told_up_to_the_one_that_holds() -> None:
    condition = (
        "*: r.act.name == 'PUT' || (r.chain.present && !r.act.read_only) || r.chain.depth < 9"
    )
    (operand,) = rule(told(attributes(), condition)).operands
    assert operand.outcome is Outcome.TRUE
    assert shown(operand.parts) == [
        ('r.act.name == "PUT"', "false", True),
        ("r.chain.present && !r.act.read_only", "false", True),
        ("r.chain.depth < 9", "true", True),
    ]
    assert shown(operand.parts[1].parts) == [
        ("r.chain.present", "true", True),
        ("!r.act.read_only", "false", True),
    ]


def test_a_negated_group_is_told_with_what_is_inside() -> None:
    (operand,) = rule(told(attributes(), "*: !(r.chain.present && r.act.read_only)")).operands
    assert (operand.text, operand.outcome) == (
        "!(r.chain.present && r.act.read_only)",
        Outcome.FALSE,
    )
    (inner,) = operand.parts
    assert inner.outcome is Outcome.TRUE


def test_the_nearest_rules_come_first_and_the_rest_is_counted() -> None:
    rules = (
        "human: r.chain.depth > 5",
        "agent: r.chain.depth > 5 && r.chain.present",
        "agent: r.chain.depth > 5",
        "agent: r.chain.present",
    )
    found = only_party(told(attributes(), *rules, near=2))
    assert [one.rule.id for one in found.rules] == ["r4", "r2", "r3"]
    assert found.others == 1
    assert [one.missed for one in found.rules] == [0, 1, 1]


def test_a_rule_the_index_leaves_out_is_no_candidate_and_cannot_fail() -> None:
    request = attributes(obj={"path": "/elsewhere", "args": {"n": AMBIGUOUS}})
    rules = [f"*: r.obj.path == '/v{n}' && r.obj.args.n > 1" for n in range(9)]
    explanation = told(request, *rules, near=99)
    assert explanation.evaluation.reason is Reason.NO_MATCHING_RULE
    found = only_party(explanation)
    assert len(found.rules) == 9
    assert {(one.candidate, one.outcome) for one in found.rules} == {(False, Outcome.FALSE)}


def test_every_party_is_explained_and_the_strictest_stands() -> None:
    request = attributes(
        actors=(party(id="spiffe://example.org/agent/a"),),
        subject=party(id="alice", kind="human", role="subject"),
    )
    explanation = told(request, "agent: r.chain.present", parties="caller, actors, subject")
    assert explanation.evaluation.reason is Reason.NO_MATCHING_RULE
    assert [(one.party.id, one.evaluation.verdict) for one in explanation.parties] == [
        ("spiffe://example.org/agent/b", "allow"),
        ("spiffe://example.org/agent/a", "allow"),
        ("alice", "deny"),
    ]


def test_roles_held_are_told_of_those_that_rules_ask_for() -> None:
    request = attributes(sub={"id": "bob", "labels": {"team": "red"}})
    explanation = told(
        request,
        "*: g(r.sub.id, 'admin')",
        "*: g(r.sub.id, 'reader')",
        "*: g(r.sub.labels.team, 'reader')",
        "*: r.chain.present && g(r.sub.id, 'auditor')",
        roles="g, bob, writer\ng, writer, reader\ng, eve, admin\ng, eve, auditor\n",
    )
    roles = {one.member: one for one in only_party(explanation).roles}
    assert (roles["bob"].held, roles["bob"].asked) == (("reader",), 3)
    assert (roles["red"].held, roles["red"].asked) == ((), 1)


def test_a_rule_without_condition_says_so() -> None:
    assert shown(rule(told(attributes(), "*: true")).operands) == [("true", "true", True)]


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ("r.act.name not in ('GET', \"PUT\")", 'r.act.name not in ("GET", "PUT")'),
        ("'a' not in r.chain.scope", '"a" not in r.chain.scope'),
        ("r.sub.owner != nil", "r.sub.owner != nil"),
        ("!keyMatch(r.obj.path, '/a')", '!keyMatch(r.obj.path, "/a")'),
        ("r.obj.args['a-b'] == 1.5", 'r.obj.args["a-b"] == 1.5'),
        ("r.obj.segments[1] == 'x'", 'r.obj.segments[1] == "x"'),
        ("r.obj.args.a + 1 > 2", "(r.obj.args.a + 1) > 2"),
        ("r.obj.args.on", "r.obj.args.on"),
        ("!r.obj.args.on", "!r.obj.args.on"),
        ("not (r.chain.depth < 1)", "!(r.chain.depth < 1)"),
        (
            "r.chain.present && (r.chain.depth < 1 || r.act.read_only)",
            "r.chain.present && (r.chain.depth < 1 || r.act.read_only)",
        ),
        (
            "r.chain.depth < 1 || r.chain.present && r.act.read_only",
            "r.chain.depth < 1 || (r.chain.present && r.act.read_only)",
        ),
        ("timeMatch('2026-01-01 00:00:00', '_')", 'timeMatch("2026-01-01 00:00:00", "_")'),
    ],
)
def test_conditions_are_written_as_the_language_reads_them(condition: str, text: str) -> None:
    notes = RuleNotes()
    files = texts(model("eval(p.rule)"), f"p, r1, {field(condition)}, allow,")
    load_bundle_files(files, observe=notes)
    assert notes["r1"].condition == text
    again = RuleNotes()
    files = texts(model("eval(p.rule)"), f"p, r1, {field(text)}, allow,")
    load_bundle_files(files, observe=again)
    assert again["r1"].condition == text
