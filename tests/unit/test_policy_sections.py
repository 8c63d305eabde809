"""Numbered sections, subject priority, rows of roles that hold for a time or name patterns."""

from datetime import UTC, datetime

import pytest

from authz_server.core.decision import Verdict
from authz_server.policy.limits import ROLE_PATTERNS_MAX, ROLE_WALK_MAX
from tests.policy_samples import (
    ALLOW_AND_DENY,
    ALLOW_OVERRIDE,
    attributes,
    bundle,
    faults,
    model,
    texts,
)

CONF = (
    "[request_definition]\nr = sub, act\nr2 = sub, chain, act\n"
    "[policy_definition]\np = id, kind, eft, obligation\np2 = id, rule, eft, obligation\n"
    f"[policy_effect]\ne = {ALLOW_AND_DENY}\n"
    "[matchers]\nm = r.sub.kind == p.kind\nm2 = eval(p2.rule)\n"
)
ROWS = (
    "p, agents, agent, allow,\np, people, human, allow,\np, tools, tool, escalate, sre\n"
    "p2, reads, r2.act.read_only, allow,\np2, deep, r2.chain.depth > 3, deny,\n"
    "p2, writes, !r2.act.read_only && r2.chain.depth > 2, escalate, finance\n"
)


@pytest.mark.parametrize(
    ("kind", "read_only", "depth", "expected"),
    [
        ("agent", True, 1, ("allow", "OK", ("agents", "reads"))),
        ("agent", False, 1, ("deny", "NO_MATCHING_RULE", ())),
        ("agent", True, 4, ("deny", "DENIED_BY_RULE", ("deep",))),
        ("service", True, 1, ("deny", "NO_MATCHING_RULE", ())),
        ("service", True, 4, ("deny", "DENIED_BY_RULE", ("deep",))),
        ("agent", False, 3, ("escalate", "ESCALATED_BY_RULE", ("writes",))),
        ("tool", True, 1, ("escalate", "ESCALATED_BY_RULE", ("tools",))),
        ("tool", False, 3, ("escalate", "ESCALATED_BY_RULE", ("tools", "writes"))),
    ],
)
def test_the_strictest_section_decides(
    kind: str, read_only: bool, depth: int, expected: tuple[str, str, tuple[str, ...]]
) -> None:
    request = attributes(sub={"kind": kind}, act={"read_only": read_only}, chain={"depth": depth})
    found = bundle(CONF, ROWS).evaluate(request)
    assert (found.verdict, found.reason, found.rules) == expected


@pytest.mark.parametrize(
    ("conf", "rows", "message"),
    [
        (CONF, ROWS.replace("p2, ", "p3, "), "policy.csv:4:1: unknown row type `p3`"),
        (CONF, ROWS.partition("p2")[0], "policy.csv:1:1: the policy holds no rule for `p2`"),
        (CONF, ROWS.replace("p2, reads", "p2, agents"), "id `agents` is given twice"),
        (CONF.replace("eval(p2", "eval(p"), ROWS, "unknown name `p`: expected `r2.` or `p2.`"),
        (CONF, ROWS.replace("r2.act", "r.act"), "unknown name `r`: expected `r2.` or `p2.`"),
        (CONF.replace("m2 =", "m3 ="), ROWS, "`m3` without `m2`"),
        (CONF.replace("p2 = id, rule", "p2 = id"), ROWS, "`p2` has no column `rule`"),
    ],
)
def test_sections_that_are_refused(conf: str, rows: str, message: str) -> None:
    found = faults(texts(conf, rows))
    assert any(message in fault for fault in found), found


def test_a_section_takes_request_and_effect_of_the_first() -> None:
    conf = CONF.replace("r2 = sub, chain, act\n", "").replace("r = sub, act", "r = sub, chain, act")
    loaded = bundle(conf, ROWS.replace("r2.", "r."))
    assert loaded.evaluate(attributes()).verdict is Verdict.ALLOW


# --- subject priority ---------------------------------------------------------------------------

SUBJECTS = model(
    "g(r.sub.labels.name, p.sub)",
    columns="id, sub, eft",
    effect="subjectPriority(p.eft) || deny",
    roles="g = _, _",
)
TREE = "g, jane, editor\ng, editor, admin\ng, admin, root\n"


def nearest(rows: str) -> tuple[str, ...]:
    request = attributes(sub={"labels": {"name": "jane"}})
    return bundle(SUBJECTS, rows + TREE).evaluate(request).rules


def test_the_nearest_subject_decides_whatever_the_order_of_rows() -> None:
    far, near = "p, far, root, allow\n", "p, near, editor, deny\n"
    assert nearest(far + near) == nearest(near + far) == ("near",)
    assert nearest(far) == ("far",)


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ("g, a, b\ng, a, c", "`a` has two roles"),
        ("g, a, b\ng, b, c\ng, c, a", "here is a cycle"),
    ],
)
def test_a_hierarchy_that_is_no_tree(links: str, message: str) -> None:
    (found,) = faults(texts(SUBJECTS, f"p, x, a, allow\n{links}"))
    assert message in found


# --- roles for a time ---------------------------------------------------------------------------

TEMPORAL = model("g(r.sub.id, p.role)", columns="id, role, eft", roles="g = _, _, (_, _)")


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("now", "allowed"),
    [
        ("2026-03-01 07:59:59", False),
        ("2026-03-01 08:00:00", False),
        ("2026-03-01 08:00:01", True),
        ("2026-03-01 17:59:59", True),
        ("2026-03-01 18:00:00", False),
    ],
)
def test_a_row_holds_between_its_times(now: str, allowed: bool) -> None:
    rows = (
        "p, r1, admin, allow\n"
        "g, alice, oncall, 2026-03-01 08:00:00, 2026-03-01 18:00:00\ng, oncall, admin, _, _\n"
    )
    request = attributes(sub={"id": "alice"}, env={"now": at(now)})
    assert (bundle(TEMPORAL, rows).evaluate(request).verdict is Verdict.ALLOW) is allowed


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("g, alice, admin", "2 fields after `g`, the model says 4 (with beginning and end)"),
        ("g, alice, admin, tomorrow, _", "write a UTC time as"),
        ("g, alice, admin, 2026-01-02 00:00:00, 2026-01-01 00:00:00", "no time lies between"),
    ],
)
def test_times_that_are_refused(link: str, message: str) -> None:
    found = faults(texts(TEMPORAL, f"p, r1, admin, allow\n{link}"))
    assert message in found[0]


# --- roles by pattern ---------------------------------------------------------------------------

PATTERNS = model(
    "g(r.sub.id, p.role)", columns="id, role, eft", roles="g = _, _", effect=ALLOW_OVERRIDE
)
MATCHING = "name: sample\ndomain: data\nrole_matching: {g: globMatch}\n"


def test_members_that_are_patterns() -> None:
    rows = "p, r1, admin, allow\ng, spiffe://td/agent/*, robots\ng, robots, admin"
    loaded = bundle(PATTERNS, rows, bundle_yaml=MATCHING)
    for name, allowed in (
        ("spiffe://td/agent/a", True),
        ("spiffe://td/agent/a/b", False),
        ("spiffe://td/agent/*", True),
        ("robots", False),
    ):
        request = attributes(sub={"id": name})
        assert (loaded.evaluate(request).verdict is Verdict.ALLOW) is allowed, name


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("role_matching: {g: keymatch}", "`keymatch` cannot match names"),
        ("role_matching: {g: regexMatch}", "`regexMatch` cannot match names"),
        ("role_matching: {g5: globMatch}", "a matching function for `g5`"),
        ("domain_matching: {g: globMatch}", "`domain_matching` for `g`, which has no domain"),
        ("role_matching: [g]", "maps role definitions to functions"),
    ],
)
def test_matching_that_is_refused(manifest: str, message: str) -> None:
    files = {"bundle_yaml": f"name: sample\ndomain: data\n{manifest}\n"}
    found = faults(texts(PATTERNS, "p, r1, admin, allow\ng, a, admin", **files))
    assert any(message in fault for fault in found), found


def test_patterns_have_a_number() -> None:
    links = [f"g, a{number}*, admin" for number in range(ROLE_PATTERNS_MAX + 1)]
    files = texts(PATTERNS, "\n".join(["p, r1, admin, allow", *links]), bundle_yaml=MATCHING)
    assert any(f"more than {ROLE_PATTERNS_MAX} patterns" in fault for fault in faults(files))


def test_a_walk_that_is_too_long_denies() -> None:
    links = [f"g, n{number}, n{number + 1}, _, _" for number in range(ROLE_WALK_MAX + 1)]
    loaded = bundle(TEMPORAL, "\n".join(["p, r1, admin, allow", *links]))
    request = attributes(sub={"id": "n0"})
    assert loaded.evaluate(request).reason == "POLICY_ERROR"
    assert loaded.evaluate(attributes(sub={"id": "else"})).reason == "NO_MATCHING_RULE"


def test_a_walk_that_tries_too_many_patterns_denies() -> None:
    links = [f"g, x{number}*, other" for number in range(150)]
    links += [f"g, n{number}, n{number + 1}" for number in range(20)]
    loaded = bundle(PATTERNS, "\n".join(["p, r1, admin, allow", *links]), bundle_yaml=MATCHING)
    assert loaded.evaluate(attributes(sub={"id": "n0"})).reason == "POLICY_ERROR"
    assert loaded.evaluate(attributes(sub={"id": "x1"})).reason == "NO_MATCHING_RULE"
