"""What `policy lint` warns of: sound, loaded, and probably not what was meant."""

import pytest

from tests.policy_samples import ALLOW_OVERRIDE, PRIORITY, bundle, model

COLUMNS = "id, kind, act, eft, obligation"
MATCHER = "(p.kind == '*' || r.sub.kind == p.kind) && (p.act == '*' || r.act.name == p.act)"


def warnings(conf: str, *rows: str, **files: str) -> list[str]:
    loaded = bundle(conf, "\n".join(rows), **files)
    return [f"{one.file}:{one.line}:{one.column}: {one.message}" for one in loaded.warnings]


def hidden(*rows: str, effect: str | None = None) -> list[str]:
    conf = model(MATCHER, columns=COLUMNS, **({"effect": effect} if effect else {}))
    return [one.partition(": ")[2] for one in warnings(conf, *rows)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["p, a, agent, GET, allow,", "p, b, human, GET, allow,"], []),
        (
            ["p, a, agent, GET, allow,", "p, b, agent, GET, allow,"],
            ["adds nothing: rule `a` allows whenever this one matches"],
        ),
        (
            ["p, a, agent, GET, allow,", "p, b, agent, *, allow,"],
            ["adds nothing: rule `b` allows whenever this one matches"],
        ),
        (
            ["p, a, agent, GET, allow,", "p, b, *, GET, deny,"],
            ["never decides: rule `b` denies whenever this one matches"],
        ),
        (
            ["p, a, agent, GET, allow,", "p, b, *, *, escalate, sre"],
            ["never decides: rule `b` escalates whenever this one matches"],
        ),
        (["p, a, agent, GET, deny,", "p, b, *, GET, allow,"], []),
        (["p, a, agent, GET, escalate, sre", "p, b, agent, GET, escalate, finance"], []),
        (
            ["p, a, agent, GET, escalate, sre", "p, b, *, GET, deny,"],
            ["never decides: rule `b` denies whenever this one matches"],
        ),
    ],
)
def test_rules_that_another_hides(rows: list[str], expected: list[str]) -> None:
    assert hidden(*rows) == expected


def test_hidden_behind_what_comes_first() -> None:
    rows = ["p, a, agent, *, allow,", "p, b, agent, GET, deny,", "p, c, *, *, deny,"]
    expected = ["never decides: rule `a` allows whenever this one matches, and comes first"]
    assert hidden(*rows, effect=PRIORITY) == expected
    assert (
        hidden(*rows[::-1], effect=PRIORITY)
        == [
            "never decides: rule `c` denies whenever this one matches, and comes first",
        ]
        * 2
    )


def test_conditions_are_compared_by_meaning_and_not_by_spelling() -> None:
    conf = model("eval(p.rule)", effect=ALLOW_OVERRIDE, columns="id, rule")
    first = "r.sub.kind=='agent' && r.act.name == 'GET'"
    second = "(r.act.name == \"GET\") and r.chain.present and r.sub.kind == 'agent'"
    quoted = '"' + second.replace('"', '""') + '"'
    assert warnings(conf, f"p, a, {first}", f"p, b, {quoted}") == [
        "policy.csv:2:1: adds nothing: rule `a` allows whenever this one matches"
    ]


def test_roles_that_no_rule_asks_for() -> None:
    conf = model("g(r.sub.id, p.role)", columns="id, role, eft", roles="g = _, _\ng2 = _, _")
    rows = ["p, a, admin, allow", "g, alice, lead", "g, lead, admin", "g, bob, auditor"]
    assert warnings(conf, *rows, "g2, x, y") == [
        "policy.csv:4:9: no rule asks for role `auditor`, nor for one above it",
        "model.conf:7:6: no rule asks for a role of `g2`: its rows mean nothing",
    ]


def test_a_misspelt_role() -> None:
    conf = model("g(r.sub.id, p.role)", columns="id, role, eft", roles="g = _, _")
    rows = ["p, a, admin, allow", "p, b, amdin, allow", "p, c, alice, allow", "g, alice, admin"]
    assert warnings(conf, *rows) == [
        "policy.csv:2:7: no `g` row gives role `amdin`; did you mean `admin`?"
    ]


def test_a_role_that_the_request_names_is_asked_for() -> None:
    conf = model("g(r.sub.id, r.obj.resource)", columns="id, eft", roles="g = _, _")
    assert warnings(conf, "p, a, allow", "g, alice, admin") == []


def test_columns_that_no_matcher_reads() -> None:
    conf = model("r.sub.kind == p.kind && eval(p.rule)", columns="id, kind, scope, limit, rule")
    rows = ["p, a, agent, crm.read, 3, r.obj.tool == p.limit"]
    assert warnings(conf, *rows) == ["model.conf:9:5: no matcher reads column `scope` of `p`"]


def test_a_thousand_slips_are_not_all_told() -> None:
    conf = model(MATCHER, columns=COLUMNS)
    rows = [f"p, r{number}, agent, GET, allow," for number in range(1_000)]
    assert len(warnings(conf, *rows)) == 100


READS = "(p.proto == '*' || r.act.protocol == p.proto) && eval(p.rule)"
DECLARES = "name: sample\ndomain: data\narguments: {amount: /order/amount, to: /to}\n"


@pytest.mark.parametrize(
    ("protocol", "rule", "declares", "undeclared"),
    [
        ("http", "r.obj.args.amount > 5", True, []),
        ("http", "r.obj.args.ammount > 5", True, ["ammount"]),
        ("http", "r.obj.args.amount > 5", False, ["amount"]),
        ("http", "r.obj.args.a == r.obj.args.b", False, ["a", "b"]),
        ("*", "r.obj.args.x > 5", True, ["x"]),
        ("*", "r.obj.args.x > 5", False, []),
        ("*", "r.act.name in ('GET', 'POST') && r.obj.args.x > 5", False, ["x"]),
        ("*", "r.obj.type == 'http' && 'a' in r.obj.args.x", False, ["x"]),
        ("*", "r.obj.tool == 'crm' && r.obj.args.x > 5", True, []),
        ("*", "r.act.name == 'tools/call' && r.obj.args.x > 5", True, []),
        ("*", "r.obj.type == 'a2a_agent' && r.obj.args.x > 5", True, []),
        ("mcp", "r.obj.args.x > 5", True, []),
        ("http", "r.obj.query.x == 'a'", True, []),
    ],
)
def test_an_argument_that_no_http_request_has(
    protocol: str, rule: str, declares: bool, undeclared: list[str]
) -> None:
    conf = model(READS, columns="id, proto, rule, eft")
    quoted = '"' + rule.replace('"', '""') + '"'
    files = {"bundle_yaml": DECLARES} if declares else {}
    found = warnings(conf, f"p, r1, {protocol}, {quoted}, allow", **files)
    assert [one.split("`")[1] for one in found] == undeclared
    for one in found:
        assert one.startswith("policy.csv:1:1: no HTTP request has the argument")


def test_a_misspelt_argument_is_told_the_nearest() -> None:
    conf = model(READS, columns="id, proto, rule, eft")
    (found,) = warnings(conf, "p, a, http, r.obj.args.amout > 5, allow", bundle_yaml=DECLARES)
    assert found.endswith("; did you mean `amount`?")
