"""Types and names: what silently goes wrong in Casbin is a load error here, with its place."""

import pytest

from tests.policy_samples import condition_faults, faults, field, model, rule_bundle, texts


@pytest.mark.parametrize(
    ("condition", "column", "message"),
    [
        ("r.sub.knd == 'agent'", 7, "no attribute `knd`; did you mean `kind`?"),
        ("r.subj.id == 'a'", 3, "no token `subj`; did you mean `sub`?"),
        ("r.sub == 'a'", 1, "`r.sub` is a record"),
        ("r == 'a'", 1, "expected `r.` and a request token"),
        ("p.rul == 'a'", 3, "no column `rul`; did you mean `rule`?"),
        ("p == 'a'", 1, "expected `p.` and one column name"),
        ("alice == r.sub.id", 1, "unknown name `alice`"),
        ("r2.sub.id == 'a'", 1, "unknown name `r2`"),
        ("r.sub.id.x == 'a'", 10, "without parts"),
        ("r.obj.labels == 'a'", 1, "is a map; name one value"),
        ("r.obj.args.a.b == 'a'", 1, "is a map; name one value"),
        ("r.obj.args[0] == 'a'", 1, "is a map; name one value"),
        ("r.obj.segments[256] == 'a'", 16, "an element of"),
        ("r.chain.scope[0] == 'a'", 15, "without parts"),
        ("r.sub.id", 1, "expected a condition, found text"),
        ("p.rule", 1, "evaluate a column with `eval(…)`"),
        ("r.chain.depth", 1, "expected a condition, found a number"),
        ("r.chain.scope && true", 1, "expected a condition, found a collection"),
        ("1", 1, "expected a condition, found a number"),
        ("r.chain.present == 'true'", 17, "can never match: a condition compared with text"),
        ("r.chain.present == 1", 17, "can never match: a condition compared with a number"),
        ("true == 1", 6, "can never match"),
        ("r.chain.depth == '2'", 15, "can never match: a number compared with text"),
        ("r.chain.depth == p.rule", 15, "a column is text"),
        ("r.chain.depth < p.rule", 15, "put the comparison into an `eval` column"),
        ("r.sub.id < 3", 10, "can never match: text ordered against a number"),
        ("r.chain.present < true", 17, "orders numbers or text"),
        ("r.sub.owner < nil", 13, "orders numbers or text"),
        ("r.chain.scope == 'a'", 15, "a collection is not compared"),
        ("'admin' in r.sub.path", 9, "a substring is no membership"),
        ("r.act.name in p.rule", 12, "a substring is no membership"),
        ("'a' in 'abc'", 5, "a substring is no membership"),
        ("r.chain.depth > 1 / 0", 19, "cannot be computed"),
        ("2 in r.chain.scope", 3, "the collection holds text"),
        ("r.sub.id in ()", 13, "the tuple is empty"),
        ("r.sub.id in ('a', 2)", 19, "can never match"),
        ("r.sub.id + 1 == 'a'", 10, "`+` cannot be applied"),
        ("r.sub.id - 'a' == 'a'", 10, "`-` cannot be applied to text"),
        ("-r.sub.id == 'a'", 1, "`-` needs a number"),
        ("keyMatch(r.obj.path)", 1, "1 arguments, expected 2: `keyMatch(text, pattern)`"),
        ("keymatch(r.obj.path, '/a')", 1, "unknown function `keymatch`; did you mean `keyMatch`?"),
        ("keyMatch(r.obj.path, r.sub.path)", 22, "never the request's"),
        ("keyMatch(r.chain.depth, '/a')", 10, "expected text, found a number"),
        ("regexMatch(r.obj.path, '/' + r.sub.id)", 28, "never the request's"),
        ("g(r.sub.id, 'admin')", 1, "unknown function `g`"),
        ("__import__('os')", 1, "unknown function `__import__`"),
        ("eval('true')", 6, "`eval` takes a column"),
        ("eval(p.rule, p.id)", 1, "2 arguments, expected 1"),
        ("r.sub.kind == 'agnet'", 15, "`agnet` is no value of `r.sub.kind`; did you mean `agent`?"),
        ("r.sub.kind == '*'", 15, "`==` knows no wildcard"),
        ("r.sub.kind != 'robot'", 15, "can never match"),
        ("r.act.protocol in ('http', 'htp')", 28, "did you mean `http`?"),
        ("keyMatch(r.obj.path, '/a/*/b')", 22, "ignores all after `*`"),
        ("keyMatch2(r.obj.path, '/a(b)')", 23, "has a regex meaning"),
        ("keyMatch2(r.obj.path, '/a/b*')", 23, "must be a whole segment"),
        ("keyMatch2(r.obj.path, '/:id.json')", 23, "no variable name"),
        ("keyMatch3(r.obj.path, '/{a}{b}')", 23, "regex meaning"),
        ("regexMatch(r.obj.path, '(a+)+')", 24, "a repetition of nothing but a repetition"),
        ("regexMatch(r.obj.path, '(?=a)')", 24, "is not supported"),
        ("regexMatch(r.obj.path, '[a')", 24, "ends too early"),
        ("globMatch(r.obj.path, '/a/**')", 23, "crosses no `/`"),
        ("ipMatch(r.env.source_ip, '10.0.0.0/33')", 26, "not an IP address or network"),
        ("timeMatch('2026-01-01', '_')", 11, "write a UTC time as"),
    ],
)
def test_a_fault_says_where_and_what(condition: str, column: int, message: str) -> None:
    found = condition_faults(condition)
    assert len(found) == 1, found
    assert found[0].startswith(f"{column}: "), found
    assert message in found[0]


def test_all_faults_of_a_matcher_come_at_once() -> None:
    assert [fault.split(":")[0] for fault in condition_faults("r.sub.x == 1 && r.y.z && q")] == [
        "7",
        "19",
        "26",
    ]


def test_a_fault_in_an_eval_column_stands_under_its_character() -> None:
    rule = 'r.sub.id == "ab" && r.sub.knd == "x"'
    policy = f"p, r1, true, allow,\np, r2, {field(rule)}, allow,\n"
    found = faults(texts(model("eval(p.rule)"), policy))
    column = 1 + policy.splitlines()[1].index("knd")
    assert found[0].startswith("policy.csv:2:")
    assert f"policy.csv:2:{column}: r.sub has no attribute `knd`; did you mean `kind`?" in found


def test_a_fault_in_a_continued_matcher_stands_in_its_own_line() -> None:
    conf = model("r.sub.kind == 'agent' && \\\n    r.sub.knd == 'x' \\\n  && q")
    assert [fault.split(": ")[0] for fault in faults(texts(conf, "p, r1, true, allow,"))] == [
        "model.conf:10:11",
        "model.conf:11:6",
    ]


def test_what_a_rule_leaves_out_by_a_wildcard_is_not_checked_against_choices() -> None:
    for matcher in (
        "(p.kind == '*' || r.sub.kind == p.kind)",
        "(r.sub.kind == p.kind || p.kind == '*')",
    ):
        conf = model(matcher, columns="id, kind, eft")
        assert faults(texts(conf, "p, r1, *, allow\np, r2, agent, deny")) == []
        found = faults(texts(conf, "p, r1, *, allow\np, r2, agnet, deny"))
        assert [fault.split(": ")[0] for fault in found] == ["policy.csv:2:8"]


@pytest.mark.parametrize(
    "condition",
    [
        "false",
        "true && false",
        "1 > 2",
        "'a' == 'b'",
        "r.act.name == 'GET' && r.act.name == 'POST'",
        "r.act.name in ('GET', 'HEAD') && r.act.name == 'POST'",
        "r.act.read_only && !r.act.read_only",
        "keyMatch(r.obj.path, '/a/*') && keyMatch2(r.obj.path, '/b/:id')",
        "keyMatch('/x', '/a/*')",
        "p.id == 'other'",
        "p.id + 'x' == 'r1'",
    ],
)
def test_a_rule_that_can_never_match_is_a_fault(condition: str) -> None:
    found = faults(texts(model("eval(p.rule)"), f"p, r1, {field(condition)}, allow,"))
    assert found == ["policy.csv:1:1: this rule can never match"]


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_eval_column_is_a_fault(text: str) -> None:
    assert (
        "the expression is empty"
        in faults(texts(model("eval(p.rule)"), f"p, r1, {field(text)}, allow,"))[0]
    )


def test_an_eval_rule_cannot_evaluate_another_column() -> None:
    assert (
        "inside an evaluated rule"
        in faults(texts(model("eval(p.rule)"), "p, r1, eval(p.rule), allow,"))[0]
    )


def test_an_unanchored_regex_is_a_warning() -> None:
    warnings = rule_bundle("regexMatch(r.obj.path, '/admin')").warnings
    assert [(one.severity, one.line, "anchor it" in one.message) for one in warnings] == [
        ("warning", 1, True)
    ]
    assert rule_bundle("regexMatch(r.obj.path, '^/admin$')").warnings == ()
    assert rule_bundle("regexMatch(r.obj.path, '^(/a|/b)$')").warnings == ()
