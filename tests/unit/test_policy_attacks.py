"""Attacks on a policy, each with what pycasbin does and what happens here: refused, or denied.

The ids are those of the project's catalogue of attacks, class `policy`.
"""

import sys
import warnings
from types import SimpleNamespace

import casbin
import pytest
from casbin.persist.adapter import load_policy_line

from authz_server.core.decision import Verdict
from tests.policy_samples import (
    ALLOW_AND_DENY,
    attributes,
    bundle,
    condition_faults,
    faults,
    holds,
    model,
    rule_bundle,
    texts,
)

CASBIN = (
    "[request_definition]\nr = sub, act, obj\n[policy_definition]\np = {columns}\n{roles}"
    f"[policy_effect]\ne = {ALLOW_AND_DENY}\n"
    "[matchers]\nm = {matcher}\n"
)


def pycasbin_allows(
    matcher: str,
    *rows: str | list[str],
    columns: str = "rule, eft",
    roles: str = "",
    sub: object = None,
    obj: object = None,
) -> bool:
    """Return what pycasbin decides for the same model and rows."""
    text = CASBIN.format(columns=columns, matcher=matcher, roles=roles)
    enforcer = casbin.Enforcer(casbin.Enforcer.new_model(text=text))
    for row in rows:
        if isinstance(row, list):  # as from a database, without the CSV reader
            enforcer.model["p"]["p"].policy.append(row)
        else:
            load_policy_line(row, enforcer.model)
    enforcer.build_role_links()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(enforcer.enforce(sub or SimpleNamespace(), SimpleNamespace(name="GET"), obj))


def test_policy_01_an_empty_policy_is_refused() -> None:
    matcher = "regexMatch(r.obj, p.rule)"
    assert pycasbin_allows(matcher, obj="/admin")
    for empty in ("", "# p, r1, true, allow,\n", "\n\n"):
        assert faults(texts(model("eval(p.rule)"), empty)) == [
            "policy.csv:1:1: the file holds no rule; remove it if that is meant"
        ]


def test_policy_06_a_matcher_continued_without_a_backslash_is_refused() -> None:
    matcher = "r.sub.kind == 'agent'\n&& r.act.name == 'POST'"
    assert pycasbin_allows(matcher, "p, x, allow", sub=SimpleNamespace(kind="agent"))
    (fault,) = faults(texts(model(matcher), "p, r1, true, allow,"))
    assert fault.startswith("model.conf:10:1: stray line")


def test_policy_15_an_unbalanced_bracket_is_refused() -> None:
    line = "p, alice, data(1, read, allow"
    enforcer = casbin.Enforcer(
        casbin.Enforcer.new_model(
            text=CASBIN.format(columns="sub, obj, act, eft", matcher="true", roles="")
        )
    )
    load_policy_line(line, enforcer.model)
    assert enforcer.get_policy() == [["alice", "data(1, read, allow"]]
    conf = model("true", columns="sub, obj, act, eft")
    assert faults(texts(conf, line)) == [
        "policy.csv:1:15: unbalanced bracket; a field that holds a comma must be quoted"
    ]


@pytest.mark.parametrize("text", ["spiffe://td/r.x", "spiffe://td/p.x", "a!b", "a&&b", "a||b"])
def test_policy_17_literals_are_never_rewritten(text: str) -> None:
    sub = SimpleNamespace(id=text)
    row = f'p, r.sub.id != "{text}", allow'
    assert pycasbin_allows("eval(p.rule)", row, sub=sub)
    named = attributes(sub={"id": text})
    assert not holds(f'r.sub.id != "{text}"', named)
    assert holds(f'r.sub.id == "{text}"', named)


def test_policy_17_as_recorded_names_an_attribute_that_does_not_exist() -> None:
    assert condition_faults('r.sub.v != "spiffe://td/r.x"') == ["7: r.sub has no attribute `v`"]


@pytest.mark.parametrize("name", ["items", "keys", "get", "pop", "values", "copy"])
def test_policy_20_a_map_has_values_and_no_methods(name: str) -> None:
    assert pycasbin_allows(f"r.sub.{name} != 'banned'", "p, x, allow", sub={name: "banned"})
    request = attributes(obj={"args": {name: "banned"}})
    assert not holds(f"r.obj.args.{name} != 'banned'", request)
    assert condition_faults(f"r.obj.args.{name}() == 'banned'") != []


def test_policy_22_a_substring_is_no_membership() -> None:
    sub = SimpleNamespace(roles="not-admin-really")
    assert pycasbin_allows('"admin" in r.sub.roles', "p, x, allow", sub=sub)
    (fault,) = condition_faults('"admin" in r.sub.path')
    assert "a substring is no membership" in fault
    request = attributes(obj={"args": {"roles": "not-admin-really"}})
    evaluation = rule_bundle('"admin" in r.obj.args.roles').evaluate(request)
    assert (evaluation.verdict, evaluation.reason) == ("deny", "POLICY_ERROR")


def test_policy_26_a_glob_matches_the_whole_text() -> None:
    for pattern, text in (("*b", "evil"), ("*.pdf", "xpdf")):
        assert pycasbin_allows(f"globMatch(r.obj, '{pattern}')", "p, x, allow", obj=text)
        assert not holds(f"globMatch(r.obj.path, '{pattern}')", attributes(obj={"path": text}))


def test_policy_27_a_star_before_the_end_is_refused() -> None:
    assert pycasbin_allows("keyMatch(r.obj, '/a/*/b')", "p, x, allow", obj="/a/xx/ADMIN")
    (fault,) = condition_faults("keyMatch(r.obj.path, '/a/*/b')")
    assert "keyMatch ignores all after `*`" in fault


def test_policy_28_a_catastrophic_regex_is_refused() -> None:
    (fault,) = condition_faults("regexMatch(r.obj.path, '^(a+)+$')")
    assert "a repetition of nothing but a repetition" in fault
    # What cannot be seen from outside is matched in one step per character all the same.
    hostile = attributes(obj={"path": "a" * 4000 + "!"})
    for pattern in ("^(a|aa)+$", "^(a*b?)*$", "^(a|a)*$", "(.*a){20}$"):
        assert not holds(f"regexMatch(r.obj.path, '{pattern}')", hostile)


def test_policy_30_unknown_subjects_leave_nothing_behind() -> None:
    conf = model("g(r.sub.id, p.role)", columns="role, eft", roles="g = _, _")
    loaded = bundle(conf, "p, admin, allow\ng, alice, admin\n")
    request = attributes(sub={"id": "spiffe://example.org/agent/0"})
    loaded.evaluate(request)
    before = sys.getallocatedblocks()
    for number in range(5_000):
        request = attributes(sub={"id": f"spiffe://example.org/agent/{number}"})
        assert loaded.evaluate(request).verdict is Verdict.DENY
    assert sys.getallocatedblocks() - before < 1_000  # pycasbin keeps several for each subject


def test_policy_31_the_oracle_is_not_the_vulnerable_one() -> None:
    """The engine does not use simpleeval at all; the tests' oracle must not be an old one."""
    import importlib.metadata

    version = tuple(map(int, importlib.metadata.version("simpleeval").split(".")[:3]))
    assert version >= (1, 0, 8)
    import authz_server.policy.bundle  # noqa: F401

    room = [name for name in sys.modules if name.startswith("authz_server.policy")]
    assert not any(hasattr(sys.modules[name], "simpleeval") for name in room)


# --- further findings about pycasbin ------------------------------------------------------------


def test_an_eval_rule_cannot_escape_its_brackets() -> None:
    row = ["t1", "True) or (True", "allow"]
    matcher = "p.tenant == r.obj && eval(p.rule)"
    assert pycasbin_allows(matcher, row, columns="tenant, rule, eft", obj="t2")
    conf = model("p.tenant == r.obj.resource && eval(p.rule)", columns="tenant, rule, eft")
    assert faults(texts(conf, 'p, t1, "True) or (True", allow')) == [
        "policy.csv:1:13: expected an operator or the end, found `)`"
    ]


def test_a_damaged_effect_is_refused() -> None:
    for effect in ("Deny", "den", "deny # no"):
        assert pycasbin_allows("eval(p.rule)", "p, True, allow", f"p, True, {effect}")
        policy = f"p, r1, true, allow,\np, r2, true, {effect},"
        (fault,) = faults(texts(model("eval(p.rule)"), policy))
        assert fault.startswith("policy.csv:2:14: unknown effect")


def test_a_deny_only_effect_is_refused() -> None:
    conf = model("true", effect="!some(where (p.eft == deny))")
    (fault,) = faults(texts(conf, "p, r1, true, allow,"))
    assert "allows whatever no rule denies" in fault


def test_a_regex_denies_what_it_finds_anywhere() -> None:
    """pycasbin anchors at the beginning, Go's Casbin nowhere: a deny rule must not escape."""
    rows = (["True", "allow"], ["regexMatch(r.obj, 'admin')", "deny"])
    assert pycasbin_allows("eval(p.rule)", *rows, obj="/v1/admin")
    loaded = rule_bundle("true", "deny: regexMatch(r.obj.path, 'admin')")
    assert loaded.evaluate(attributes(obj={"path": "/v1/admin"})).verdict is Verdict.DENY
