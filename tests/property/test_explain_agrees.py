"""What `explain` says of each operand comes to what the compiled rule says of the whole."""

from typing import Any

from hypothesis import given, reject
from hypothesis import strategies as st

from authz_server.core.attributes import AMBIGUOUS, Attributes
from authz_server.core.decision import Evaluation
from authz_server.core.errors import ConfigurationError
from authz_server.policy.bundle import PolicyBundle, load_bundle_files
from authz_server.policy.explain import Outcome, PartyExplanation, explain
from authz_server.policy.model import Effect
from authz_server.policy.rule_notes import RuleNotes
from authz_server.policy.verdict import judge, policy_error, strictest
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

ATOMS = (
    "r.sub.kind == 'agent'",
    "r.act.name in ('GET', 'PUT')",
    "keyMatch2(r.obj.path, '/v1/:x/*')",
    "keyMatch(r.obj.path, '/v1/*')",
    "r.chain.present",
    "r.obj.args.amount > 100",
    "r.obj.args.amount + 1 > 7",
    "r.obj.args.flag",
    "r.sub.labels.team == r.obj.labels.team",
    "'crm.read' in r.chain.scope",
    "r.chain.depth <= 2",
    "r.chain.actors[0] == 'a'",
    "regexMatch(r.obj.args.name, '^a')",
    "ipMatch(r.env.source_ip, '10.0.0.0/8')",
    "timeMatch('2026-01-01 00:00:00', '_')",
    "g(r.sub.id, 'admin')",
    "g(r.sub.labels.team, 'reader')",
    "1 / r.obj.args.amount > 0.1",
    "r.sub.owner == nil",
)
ROLES = "g, alice, admin\ng, admin, reader\ng, red, reader\n"
scalars = st.sampled_from([None, True, False, 0, 7, 101, 2.5, "a", "red", AMBIGUOUS, ("a",)])
maps = st.dictionaries(st.sampled_from(["amount", "flag", "team", "name"]), scalars, max_size=4)
conditions = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        inner.map(lambda one: f"!({one})"),
        st.lists(inner, min_size=2, max_size=4).map(lambda many: f"({' && '.join(many)})"),
        st.lists(inner, min_size=2, max_size=4).map(lambda many: f"({' || '.join(many)})"),
    ),
    max_leaves=6,
)
rows = st.lists(
    st.tuples(
        st.sampled_from(["agent", "*"]), conditions, st.sampled_from(["allow", "deny", "escalate"])
    ),
    min_size=1,
    max_size=12,
)


@st.composite
def requests(draw: st.DrawFn) -> Attributes:
    one = {
        "id": draw(st.sampled_from(["alice", "admin", "bob"])),
        "kind": draw(st.sampled_from(["agent", "human", None])),
        "labels": draw(maps),
    }
    paths = st.sampled_from([None, "/v1/a/b", "/v1/a", "/"])
    return attributes(
        sub=one,
        actors=(party(**one), party(kind=draw(st.sampled_from(["agent", "tool"])))),
        subject=party(kind="human", labels=draw(maps)),
        chain={"depth": draw(st.integers(0, 4)), "present": draw(st.booleans())},
        act={"name": draw(st.sampled_from(["GET", "PUT", "x"]))},
        obj={"path": draw(paths), "args": draw(maps), "labels": draw(maps)},
        env={"source_ip": draw(st.sampled_from([None, "10.0.0.9", "x"]))},
    )


def load(
    given_rows: list[tuple[str, str, str]], effect: str, parties: str
) -> tuple[PolicyBundle, RuleNotes]:
    lines = [
        f"p, r{number}, {kind}, {field(rule)}, {eft}, {'sre' if eft == 'escalate' else ''}"
        for number, (kind, rule, eft) in enumerate(given_rows)
        if not (eft == "deny" and effect == ALLOW_OVERRIDE)
    ] or ["p, r0, *, true, allow,"]
    conf = model(
        "(p.kind == '*' || r.sub.kind == p.kind) && eval(p.rule)",
        columns="id, kind, rule, eft, obligation",
        effect=effect,
        roles="g = _, _",
    )
    manifest = f"name: sample\ndomain: data\nparties: [{parties}]\n"
    files = texts(conf, "\n".join(lines), roles_csv=ROLES, bundle_yaml=manifest)
    notes = RuleNotes()
    try:
        return load_bundle_files(files, observe=notes), notes
    except ConfigurationError as error:
        # A condition that contradicts itself does not load, which is another test's business.
        if not all("can never match" in str(fault) for fault in error.faults):
            raise
        reject()


def told(effect: Effect, explained: PartyExplanation) -> Evaluation:
    """Return the verdict that the operands shown come to, without asking the engine."""
    matched = [one.rule for one in explained.rules if one.outcome is Outcome.TRUE]
    failed = [one.rule for one in explained.rules if one.outcome is Outcome.ERROR]
    return policy_error(failed) if failed else judge(effect, matched)


@given(
    rows,
    requests(),
    st.sampled_from([ALLOW_AND_DENY, ALLOW_OVERRIDE, PRIORITY]),
    st.sampled_from(["caller", "caller, actors, subject"]),
)
def test_operands_come_to_what_the_engine_says(
    given_rows: list[tuple[str, str, str]], request: Attributes, effect: str, parties: str
) -> None:
    bundle, notes = load(given_rows, effect, parties)
    explanation = explain(bundle, notes, request, near=100)
    assert explanation.evaluation == bundle.evaluate(request)
    assert all(one.others == 0 for one in explanation.parties)
    evaluations = [told(bundle.effect, one) for one in explanation.parties]
    assert [one.evaluation for one in explanation.parties] == evaluations
    assert explanation.evaluation == strictest(evaluations, bundle.order)
    decided = {one.rule.id for each in explanation.parties for one in each.rules if one.decided}
    assert decided >= set(explanation.evaluation.rules)


@given(rows, requests())
def test_each_rule_comes_to_what_it_says_when_run(
    given_rows: list[tuple[str, str, str]], request: Attributes
) -> None:
    bundle, notes = load(given_rows, ALLOW_AND_DENY, "caller")
    (explained,) = explain(bundle, notes, request, near=100).parties
    records = (request.caller, request.chain, request.act, request.obj, request.env)
    for one in explained.rules:
        if one.candidate:
            assert one.outcome is run(one.rule.matches, records)
        assert one.missed or one.outcome is Outcome.TRUE


def run(matches: Any, records: tuple[object, ...]) -> Outcome:
    try:
        return Outcome.TRUE if matches(*records) else Outcome.FALSE
    except Exception:  # noqa: BLE001 -- as the engine does
        return Outcome.ERROR


@given(rows, requests())
def test_every_value_an_operand_reads_is_shown(
    given_rows: list[tuple[str, str, str]], request: Attributes
) -> None:
    bundle, notes = load(given_rows, ALLOW_AND_DENY, "caller")
    (explained,) = explain(bundle, notes, request, near=100).parties
    records = {
        "sub": request.caller, "chain": request.chain, "act": request.act, "obj": request.obj,
        "env": request.env,
    }  # fmt: skip
    for operand in (operand for one in explained.rules for operand in one.operands):
        if operand.parts:
            assert set(operand.values) == {name for part in operand.parts for name in part.values}
        for name, value in operand.values.items():
            _, record, attribute, *key = name.removesuffix("[0]").split(".")
            held = getattr(records[record], attribute)
            if key:
                held = held.get(key[0])
            assert value == (held[0] if name.endswith("[0]") else held)
