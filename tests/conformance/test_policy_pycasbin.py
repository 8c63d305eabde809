"""The compiled engine against pycasbin: the same models, rows and requests, the same verdict.

Generated within what pycasbin gets right: values of the right type, no missing value in an order or
a function, anchored patterns, rules that at least one row has. What differs on purpose is in
`tests/unit/test_policy_attacks.py`, with pycasbin doing the unsafe thing.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import casbin
from hypothesis import event, given
from hypothesis import strategies as st

from authz_server.core.attributes import Attributes
from authz_server.core.decision import Verdict
from authz_server.core.errors import ConfigurationError
from authz_server.policy.bundle import PolicyBundle, load_bundle_files
from tests.policy_samples import (
    ALLOW_AND_DENY,
    ALLOW_OVERRIDE,
    PRIORITY,
    attributes,
    field,
    model,
    party,
    texts,
)

KINDS = ("agent", "service", "human")
PATHS = ("/v1/a", "/v1/a/b", "/v1/b", "/v1/b/c/d", "/v2", "/")
NAMES = ("alice", "bob", "carol", "dave", "eve")
ROLES = ("reader", "writer", "admin")
COLUMNS = "kind, act, path, role, rule, priority, eft"
KIND = "r.sub.kind == p.kind"
ACT = "r.act.name == p.act"
ANY_KIND = '(p.kind == "*" || r.sub.kind == p.kind)'
ANY_ACT = '(r.act.name == p.act || p.act == "*")'
PATH = "keyMatch2(r.obj.path, p.path)"
ROLE = "g(r.sub.labels.name, p.role)"
RULE = "eval(p.rule)"

ATOMS = (
    'r.sub.kind == "agent"',
    "r.sub.kind != 'human'",
    'r.sub.kind in ("agent", "service")',
    "r.act.name == 'GET'",
    "r.chain.depth > 1",
    "r.chain.depth + 1 <= 3",
    "r.chain.depth * 2 - 1 == 3",
    "r.chain.depth % 2 == 0",
    "r.chain.present",
    "r.act.read_only == True",
    "'crm.read' in r.chain.scope",
    "r.sub.owner == None",
    "r.obj.args.amount >= 100",
    "r.obj.args.amount / 2 < 75.5",
    "r.obj.args.note == 'a b'",
    "r.obj.args.note + '?' == 'x?'",
    "r.sub.path > '/agent/b'",
    "keyMatch(r.obj.path, '/v1/*')",
    "keyMatch2(r.obj.path, '/v1/:x')",
    "keyMatch2(r.obj.path, '/v1/*/d')",
    "keyMatch3(r.obj.path, '/v1/{x}/{y}')",
    "keyMatch4(r.obj.path, '/v1/{x}/{x}')",
    "keyMatch5(r.obj.path, '/v1/*')",
    "regexMatch(r.obj.path, '^/v[12](/[a-c])*$')",
    "regexMatch(r.act.name, '^(GET|PUT)$')",
    "globMatch(r.obj.path, '/v1/*')",
    "ipMatch(r.env.source_ip, '10.0.0.0/8')",
    "p.kind == 'agent'",
    "p.act != r.act.name",
    "True",
    "False",
)


def conditions() -> st.SearchStrategy[str]:
    return st.recursive(
        st.sampled_from(ATOMS),
        lambda inner: st.one_of(
            st.builds("({} && {})".format, inner, inner),
            st.builds("({} || {})".format, inner, inner),
            st.builds("({} and not ({}))".format, inner, inner),
            st.builds("!({})".format, inner),
        ),
        max_leaves=5,
    )


@dataclass(frozen=True)
class Sample:
    """One model with its rows: the same for both engines."""

    matcher: str
    effect: str
    rows: tuple[tuple[str, ...], ...]
    links: tuple[tuple[str, str], ...]

    def pycasbin(self) -> Any:
        conf = model(self.matcher, columns=COLUMNS, effect=self.effect, roles="g = _, _")
        enforcer = casbin.Enforcer(casbin.Enforcer.new_model(text=conf))
        enforcer.model["p"]["p"].policy.extend([list(row) for row in self.rows])
        enforcer.model["g"]["g"].policy.extend([list(link) for link in self.links])
        enforcer.model.sort_policies_by_priority()
        enforcer.build_role_links()
        return enforcer

    def compiled(self) -> PolicyBundle | None:
        """Return the bundle without the rules it calls impossible; None when none is left."""
        conf = model(self.matcher, columns=COLUMNS, effect=self.effect, roles="g = _, _")
        rows = [",".join(["p", *map(field, row)]) for row in self.rows]
        links = "\n".join(f"g, {member}, {role}" for member, role in self.links)
        try:
            return load_bundle_files(texts(conf, "\n".join(rows), roles_csv=links))
        except ConfigurationError as error:
            faults = error.faults
        assert {fault.message for fault in faults} == {"this rule can never match"}
        never = {fault.line for fault in faults}
        kept = [row for line, row in enumerate(rows, 1) if line not in never]
        event("a rule can never match")
        return load_bundle_files(texts(conf, "\n".join(kept), roles_csv=links)) if kept else None


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    parts = [
        draw(st.sampled_from([KIND, ANY_KIND, "True"])),
        draw(st.sampled_from([ACT, ANY_ACT, "True"])),
        draw(st.sampled_from([PATH, "True"])),
        draw(st.sampled_from([ROLE, "True"])),
        draw(st.sampled_from([RULE, f"!({RULE})", f"({RULE} || r.chain.depth == 1)"])),
    ]
    matcher = " && ".join(draw(st.permutations(parts)))
    effect = draw(st.sampled_from([ALLOW_AND_DENY, ALLOW_OVERRIDE, PRIORITY]))
    effects = ["allow"] if effect == ALLOW_OVERRIDE else ["allow", "deny"]
    wild_kind = ["*"] if ANY_KIND in parts or KIND not in parts else []
    row = st.tuples(
        st.sampled_from([*KINDS, *wild_kind]),
        st.sampled_from(["GET", "PUT", "*"]),
        st.sampled_from(["/v1/:id", "/v1/*", "/v1/a", "/:v/b/*", "/v1/*/d", "*"]),
        st.sampled_from([*ROLES, *NAMES]),
        conditions(),
        st.sampled_from(["1", "2", "3", "10"]),
        st.sampled_from(effects),
    )
    links = st.lists(
        st.tuples(st.sampled_from([*NAMES, *ROLES]), st.sampled_from(ROLES)), min_size=1, max_size=6
    )
    rows = draw(st.lists(row, min_size=1, max_size=7))
    return Sample(matcher, effect, tuple(rows), tuple(draw(links)))


def requests() -> st.SearchStrategy[Attributes]:
    return st.builds(
        lambda kind, name, act, path, depth, amount, note, scope: attributes(
            sub={"kind": kind, "path": f"/agent/{name[0]}", "labels": {"name": name}},
            chain={"depth": depth, "present": depth > 0, "scope": scope},
            act={"name": act, "read_only": act == "GET"},
            obj={"path": path, "args": {"amount": amount, "note": note}},
        ),
        st.sampled_from(KINDS),
        st.sampled_from([*NAMES, *ROLES]),
        st.sampled_from(["GET", "PUT", "DELETE"]),
        st.sampled_from(PATHS),
        st.integers(0, 3),
        st.integers(0, 200) | st.sampled_from([99.5, 100.0]),
        st.sampled_from(["a b", "x", ""]),
        st.sampled_from([frozenset(), frozenset({"crm.read"})]),
    )


def ask(enforcer: Any, request: Attributes) -> bool:
    """Ask pycasbin with the very records that the compiled matchers read."""
    records = (request.caller, request.chain, request.act, request.obj, request.env)
    return bool(enforcer.enforce(*records))


@given(samples(), st.lists(requests(), min_size=1, max_size=8))
def test_both_say_the_same(sample: Sample, asked: list[Attributes]) -> None:
    oracle, compiled = sample.pycasbin(), sample.compiled()
    for request in asked:
        expected = ask(oracle, request)
        event(f"pycasbin allows: {expected}")
        if compiled is None:
            assert not expected
            continue
        evaluation = compiled.evaluate(request)
        assert evaluation.reason != "POLICY_ERROR"
        assert (evaluation.verdict is Verdict.ALLOW) == expected, evaluation


def test_the_oracle_reads_the_same_records() -> None:
    """The comparison would be empty if pycasbin saw no attribute."""
    sample = Sample("r.sub.kind == p.kind", ALLOW_AND_DENY, (("agent", *[""] * 5, "allow"),), ())
    enforcer = sample.pycasbin()
    assert ask(enforcer, attributes())
    request = attributes()
    assert not enforcer.enforce(
        party(kind="tool"), request.chain, request.act, request.obj, SimpleNamespace()
    )
