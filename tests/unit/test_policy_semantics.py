"""What a bundle says: effects, errors, missing values, roles, parties. Interface section 3."""

import pytest

from authz_server.core.attributes import AMBIGUOUS, ActionAttributes, Attributes, Role
from authz_server.core.decision import Evaluation, Verdict
from authz_server.core.errors import Reason
from tests.policy_samples import (
    ALLOW_OVERRIDE,
    PRIORITY,
    attributes,
    bundle,
    field,
    holds,
    model,
    party,
    rule_bundle,
)


def outcome(evaluation: Evaluation) -> tuple[str, str, tuple[str, ...]]:
    return evaluation.verdict.value, evaluation.reason.value, evaluation.rules


# --- effects ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["true"], ("allow", "OK", ("r1",))),
        (["r.sub.id == 'x'"], ("deny", "NO_MATCHING_RULE", ())),
        (["true", "true"], ("allow", "OK", ("r1", "r2"))),
        (["true", "deny: true"], ("deny", "DENIED_BY_RULE", ("r2",))),
        (["deny: true", "true", "deny: true"], ("deny", "DENIED_BY_RULE", ("r1", "r3"))),
        (["true", "escalate: true"], ("escalate", "ESCALATED_BY_RULE", ("r2",))),
        (["escalate: true", "deny: true", "true"], ("deny", "DENIED_BY_RULE", ("r2",))),
        (["deny: r.sub.id == 'x'", "true"], ("allow", "OK", ("r2",))),
    ],
)
def test_allow_and_deny(rules: list[str], expected: tuple[str, str, tuple[str, ...]]) -> None:
    assert outcome(rule_bundle(*rules).evaluate(attributes())) == expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["true"], ("allow", "OK", ("r1",))),
        (["true", "escalate: true"], ("escalate", "ESCALATED_BY_RULE", ("r2",))),
        (["r.sub.id == 'x'"], ("deny", "NO_MATCHING_RULE", ())),
    ],
)
def test_allow_override(rules: list[str], expected: tuple[str, str, tuple[str, ...]]) -> None:
    assert outcome(rule_bundle(*rules, effect=ALLOW_OVERRIDE).evaluate(attributes())) == expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["true", "deny: true"], ("allow", "OK", ("r1",))),
        (["deny: true", "true"], ("deny", "DENIED_BY_RULE", ("r1",))),
        (["escalate: true", "deny: true"], ("escalate", "ESCALATED_BY_RULE", ("r1",))),
        (["r.sub.id == 'x'", "deny: true"], ("deny", "DENIED_BY_RULE", ("r2",))),
        (["deny: r.sub.id == 'x'"], ("deny", "NO_MATCHING_RULE", ())),
        (["true", "r.obj.args.x > 1"], ("allow", "OK", ("r1",))),
    ],
)
def test_priority_takes_the_first_match(
    rules: list[str], expected: tuple[str, str, tuple[str, ...]]
) -> None:
    assert outcome(rule_bundle(*rules, effect=PRIORITY).evaluate(attributes())) == expected


def test_explicit_priorities_order_the_rules() -> None:
    conf = model("true", columns="priority, id, eft", effect=PRIORITY)
    rows = "p, 10, late, deny\np, 2, first, allow\np, -1, x, deny\np, 2, second, deny"
    assert bundle(conf, rows).evaluate(attributes()).rules == ("x",)
    rows = "p, 10, late, deny\np, 2, first, allow\np, 2, second, deny"
    assert bundle(conf, rows).evaluate(attributes()).rules == ("first",)


def test_the_obligation_is_the_group_whatever_the_order_of_rules() -> None:
    conf = model("true", columns="id, eft, obligation")
    for rows in (
        "p, a, escalate, sre\np, b, escalate, finance",
        "p, b, escalate, finance\np, a, escalate, sre",
    ):
        evaluation = bundle(conf, rows).evaluate(attributes())
        assert (evaluation.obligation, sorted(evaluation.rules)) == ("finance", ["a", "b"])
    assert bundle(conf, "p, a, allow,").evaluate(attributes()).obligation is None


# --- errors -------------------------------------------------------------------------------------

WRONG = "r.obj.args.amount > 1000"


@pytest.mark.parametrize("amount", ["5000", True, AMBIGUOUS, ("1",)])
def test_a_value_that_cannot_be_judged_denies_beside_a_matching_allow(amount: object) -> None:
    request = attributes(obj={"args": {"amount": amount}})
    for effect in (None, ALLOW_OVERRIDE, PRIORITY):
        options = {"effect": effect} if effect else {}
        evaluation = rule_bundle("true", WRONG, **options).evaluate(request)
        assert outcome(evaluation) == ("deny", "POLICY_ERROR", ("r2",))
    assert outcome(rule_bundle("true", f"deny: {WRONG}").evaluate(request)) == (
        "deny",
        "POLICY_ERROR",
        ("r2",),
    )


@pytest.mark.parametrize(
    "condition",
    [
        "r.obj.args.x == 'a'",
        "r.obj.args.x",
        "r.obj.args.x in ('a', 'b')",
        "'a' in r.obj.args.x",
        "keyMatch(r.obj.args.x, '/a/*')",
    ],
)
def test_reading_an_ambiguous_value_is_an_error(condition: str) -> None:
    evaluation = rule_bundle(condition).evaluate(attributes(obj={"args": {"x": AMBIGUOUS}}))
    assert outcome(evaluation) == ("deny", "POLICY_ERROR", ("r1",))


@pytest.mark.parametrize(
    ("condition", "value"),
    [
        ("'a' in r.obj.args.x", "abc"),
        ("r.obj.args.x", "true"),
        ("r.obj.args.x", 1),
        ("keyMatch(r.obj.args.x, '/a/*')", 5),
        ("r.obj.args.x + 1 == 2", None),
        ("r.obj.args.x + 1 == 2", "1"),
        ("1 / r.obj.args.x == 2", 0),
        ("1 % r.obj.args.x == 2", 0),
        ("r.obj.args.x + 'a' == 'b'", "a" * 4096),
        ("regexMatch(r.obj.args.x, '^a')", "a" * 4097),
        ("regexMatch(r.obj.args.x, '^a')", "\u00fc" * 2049),
    ],
)
def test_a_value_a_rule_cannot_take_is_an_error(condition: str, value: object) -> None:
    evaluation = rule_bundle(condition).evaluate(attributes(obj={"args": {"x": value}}))
    assert outcome(evaluation) == ("deny", "POLICY_ERROR", ("r1",))


def test_text_up_to_four_kibibytes_is_seen_by_functions() -> None:
    for text in ("a" * 4096, "\u00fc" * 2048):
        assert not holds("keyMatch(r.obj.path, '/x*')", attributes(obj={"path": text}))


def test_only_candidates_can_fail() -> None:
    """A rule whose infallible conditions do not hold is no candidate, wherever they stand."""
    request = attributes(obj={"args": {"amount": "5000"}})
    for condition in (
        f"{WRONG} && r.act.name == 'POST'",
        f"r.act.name == 'POST' && {WRONG}",
        f"{WRONG} && !r.act.read_only",
        f"{WRONG} && r.chain.depth > 7",
    ):
        rules = rule_bundle("true", condition)
        assert outcome(rules.evaluate(request)) == ("allow", "OK", ("r1",))


@pytest.mark.parametrize("rules", [1, 40])
def test_which_rules_fail_does_not_depend_on_the_index(rules: int) -> None:
    conditions = [f"r.obj.resource == 'r{n}' && {WRONG}" for n in range(rules)]
    loaded = rule_bundle("true", *conditions)
    request = attributes(obj={"args": {"amount": "5000"}, "resource": "r0"})
    assert outcome(loaded.evaluate(request)) == ("deny", "POLICY_ERROR", ("r2",))
    request = attributes(obj={"args": {"amount": "5000"}, "resource": "other"})
    assert outcome(loaded.evaluate(request)) == ("allow", "OK", ("r1",))


def test_attributes_of_a_wrong_shape_deny() -> None:
    broken = object.__new__(Attributes)
    assert rule_bundle("true").evaluate(broken).reason is Reason.POLICY_ERROR
    no_name = ActionAttributes(protocol="http", name=[], read_only=True)  # type: ignore[arg-type]
    request = attributes()
    object.__setattr__(request, "act", no_name)
    many = [f"r.act.name == 'm{n}'" for n in range(20)]
    assert rule_bundle(*many).evaluate(request).reason is Reason.POLICY_ERROR


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "condition",
    [
        "r.sub.owner == 'a'",
        "r.sub.owner < 'a'",
        "r.sub.owner >= 'a'",
        "r.chain.age_s < 10",
        "r.chain.age_s >= 0",
        "r.obj.args.absent > 0",
        "r.obj.args.absent == 0",
        "r.obj.args.absent",
        "r.obj.args.absent in ('a', 'b')",
        "'a' in r.obj.args.absent",
        "r.sub.owner in r.chain.scope",
        "keyMatch(r.sub.owner, '*')",
        "regexMatch(r.obj.args.absent, '.*')",
        "ipMatch(r.env.sni, '0.0.0.0/0')",
        # Two missing values are not the same value.
        "r.sub.owner == r.sub.purpose",
        "r.sub.labels.team == r.obj.labels.team",
        "r.sub.owner in (r.sub.purpose)",
    ],
)
def test_a_missing_value_holds_nothing(condition: str) -> None:
    assert not holds(condition)
    assert holds(f"!({condition})")


def test_a_missing_value_is_nil() -> None:
    assert holds("r.sub.owner == nil && r.sub.id != nil && r.obj.args.absent == None")


@pytest.mark.parametrize(
    ("condition", "value", "expected"),
    [
        ("r.obj.args.x == 1", True, False),
        ("r.obj.args.x == 0", False, False),
        ("r.obj.args.x in (1, 2)", True, False),
        ("r.obj.args.x == 1", 1.0, True),
        ("r.obj.args.x == 1", "1", False),
        ("r.obj.args.x == '1'", 1, False),
        ("r.obj.args.x == true", 1, False),
        ("r.obj.args.x == true", True, True),
        ("r.obj.args.x != true", "true", True),
        ("r.obj.args.x", False, False),
        ("r.obj.args.x in ('a', 'b')", "b", True),
        ("'b' in r.obj.args.x", ("a", "b"), True),
        ("r.obj.args.x == r.obj.args.x", True, True),
        ("r.obj.args.x == r.act.name", "GET", True),
        ("r.obj.args.x == r.act.name", 1, False),
        ("r.obj.args.x <= 5", 5.0, True),
        ("r.obj.args.x == 'r.sub && !p.id'", "r.sub && !p.id", True),
    ],
)
def test_values_are_compared_with_their_type(condition: str, value: object, expected: bool) -> None:
    assert holds(condition, attributes(obj={"args": {"x": value}})) is expected


# --- roles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("'evil' in r.obj.args.to", "deny"),
        ("'good' in r.obj.args.to", "allow"),
        ("'absent' in r.obj.args.missing", "deny"),
        ("'evil' not in r.obj.args.to", "allow"),
        ("2 in r.obj.args.numbers", "allow"),
        ("'2' in r.obj.args.numbers", "deny"),
        ("true in r.obj.args.numbers", "deny"),
        ("r.obj.args.to == nil", "deny"),
    ],
)
def test_a_list_is_searched(condition: str, expected: str) -> None:
    request = attributes(obj={"args": {"to": ("good", "fine"), "numbers": (1, 2)}})
    assert rule_bundle(condition).evaluate(request).verdict == expected


@pytest.mark.parametrize(
    "condition", ["r.obj.args.to == 'evil'", "r.obj.args.to in ('evil', 'x')", "r.obj.args.to"]
)
def test_a_list_does_not_switch_a_deny_rule_off(condition: str) -> None:
    """`{"to": ["evil"]}` may be as good as `{"to": "evil"}` to whoever serves it."""
    denying = rule_bundle("true", f"deny: {condition}")
    request = attributes(obj={"args": {"to": ("evil",)}})
    assert denying.evaluate(request).reason is Reason.POLICY_ERROR


def roles(*links: str, matcher: str = "g(r.sub.id, p.role)", definition: str = "g = _, _") -> str:
    conf = model(matcher, columns="id, role, eft", roles=definition)
    loaded = bundle(conf, "p, r1, admin, allow\n" + "\n".join(links))

    def member(name: str) -> bool:
        return loaded.evaluate(attributes(sub={"id": name})).verdict is Verdict.ALLOW

    return "".join(name for name in "abcdefgh" if member(name))


def test_roles_reach_through_any_depth() -> None:
    assert roles("g, a, admin", "g, b, lead", "g, lead, admin", "g, d, e") == "ab"
    deep = [f"g, n{n}, n{n + 1}" for n in range(100)]
    assert roles("g, a, n0", *deep, "g, n100, admin") == "a"


def test_cycles_of_roles_end() -> None:
    assert roles("g, a, x", "g, x, y", "g, y, x", "g, y, admin", "g, admin, x") == "a"


def test_being_called_like_a_role_is_not_having_it() -> None:
    conf = model("g(r.sub.id, p.role)", columns="id, role, eft", roles="g = _, _")
    rows = "p, r1, admin, allow\np, r2, zoe, allow\ng, a, lead\ng, lead, admin"
    loaded = bundle(conf, rows)
    for name, expected in (("a", ("r1",)), ("admin", ()), ("lead", ()), ("zoe", ("r2",))):
        assert loaded.evaluate(attributes(sub={"id": name})).rules == expected


def test_a_role_carried_in_a_label_has_itself() -> None:
    conf = model("g(r.sub.labels.role, p.role)", columns="id, role, eft", roles="g = _, _")
    loaded = bundle(conf, "p, r1, support, allow\ng, lead, support")
    for label, allowed in (("lead", True), ("support", True), ("other", False)):
        request = attributes(sub={"labels": {"role": label}})
        assert (loaded.evaluate(request).verdict is Verdict.ALLOW) is allowed
    assert loaded.evaluate(attributes(sub={"labels": {"role": 7}})).reason is Reason.POLICY_ERROR


def test_roles_in_domains_do_not_leak() -> None:
    conf = model(
        "g(r.sub.id, p.role, r.obj.resource)", columns="id, role, eft", roles="g = _, _, _"
    )
    loaded = bundle(
        conf, "p, r1, admin, allow\ng, a, lead, d1\ng, lead, admin, d1\ng, lead, admin, d2"
    )
    for domain, allowed in (("d1", True), ("d2", False), (None, False)):
        request = attributes(sub={"id": "a"}, obj={"resource": domain})
        assert (loaded.evaluate(request).verdict is Verdict.ALLOW) is allowed


def test_resource_roles_are_a_second_graph() -> None:
    conf = model(
        "g(r.sub.id, p.role) && g2(r.obj.resource, p.group)",
        columns="id, role, group, eft",
        roles="g = _, _\ng2 = _, _",
    )
    loaded = bundle(conf, "p, r1, admin, books, allow\ng, a, admin\ng2, b17, books")
    request = attributes(sub={"id": "a"}, obj={"resource": "b17"})
    assert loaded.evaluate(request).rules == ("r1",)


# --- parties ------------------------------------------------------------------------------------

ALICE = party(id="alice", kind="human", role="subject", labels={"department": "support"})
MALLORY = party(id="mallory", kind="human", role="subject")
ACTOR = party(id="spiffe://example.org/agent/a", role="actor")
TOOL = party(id="spiffe://example.org/tool/t", kind="tool", role="actor")
RULES = (
    "r.sub.kind == 'agent'",
    "r.sub.labels.department == 'support'",
    "deny: r.sub.kind == 'tool'",
    "escalate: r.sub.role == 'actor' && r.sub.path == '/agent/e'",
)


@pytest.mark.parametrize(
    ("parties", "actors", "subject", "expected"),
    [
        ("[caller]", (TOOL,), MALLORY, ("allow", "OK", ("r1",))),
        ("[caller, subject]", (TOOL,), ALICE, ("allow", "OK", ("r1", "r2"))),
        ("[caller, subject]", (), MALLORY, ("deny", "NO_MATCHING_RULE", ())),
        ("[caller, actors, subject]", (ACTOR,), ALICE, ("allow", "OK", ("r1", "r2"))),
        ("[caller, actors, subject]", (ACTOR, TOOL), MALLORY, ("deny", "DENIED_BY_RULE", ("r3",))),
        (
            "[caller, actors]",
            (ACTOR, party(path="/agent/e", role="actor")),
            MALLORY,
            ("escalate", "ESCALATED_BY_RULE", ("r4",)),
        ),
        ("[caller, actors, subject]", (), None, ("allow", "OK", ("r1",))),
    ],
)
def test_the_strictest_verdict_of_all_parties_stands(
    parties: str,
    actors: tuple[object, ...],
    subject: object,
    expected: tuple[str, str, tuple[str, ...]],
) -> None:
    rows = []
    for number, text in enumerate(RULES, 1):
        effect, _, condition = text.rpartition(": ")
        group = "sre" if effect == "escalate" else ""
        rows.append(f"p, r{number}, {field(condition)}, {effect or 'allow'}, {group}")
    manifest = f"name: a\ndomain: data\nparties: {parties}\n"
    loaded = bundle(model("eval(p.rule)"), "\n".join(rows), bundle_yaml=manifest)
    request = attributes(actors=actors, subject=subject)  # type: ignore[arg-type]
    assert outcome(loaded.evaluate(request)) == expected
    assert Role.CALLER in loaded.manifest.parties
