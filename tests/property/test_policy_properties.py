"""Properties of every bundle: order, monotony of deny, fail closed, no escape from errors."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from authz_server.core.attributes import AMBIGUOUS
from authz_server.core.decision import Verdict
from authz_server.core.errors import Reason
from authz_server.policy.bundle import PolicyBundle, load_bundle_files
from authz_server.policy.expression import parse
from authz_server.policy.index import build
from authz_server.policy.source import FaultFound, Fragment, SourceFile
from tests.policy_samples import attributes, bundle, faults, field, model, party, texts

CONDITIONS = (
    "r.sub.kind == 'agent'",
    "r.sub.kind == 'agent' && r.act.name == 'GET'",
    "r.act.name in ('GET', 'PUT') && keyMatch2(r.obj.path, '/v1/:x/*')",
    "keyMatch(r.obj.path, '/v1/*') || r.chain.present",
    "r.obj.args.amount > 100",
    "r.obj.args.amount == 100 && !r.act.read_only",
    "r.sub.labels.team == r.obj.labels.team",
    "'crm.read' in r.chain.scope && r.chain.depth <= 2",
    "regexMatch(r.obj.path, '^/v1/')",
    "ipMatch(r.env.source_ip, '10.0.0.0/8')",
    "r.obj.args.amount + 1 > 7 || r.sub.owner == nil",
    "true",
)
Row = tuple[str, str]
rows_of = st.lists(
    st.tuples(st.sampled_from(CONDITIONS), st.sampled_from(["allow", "deny", "escalate"])),
    min_size=1,
    max_size=8,
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "GET", "agent", "/v1/a/b", "10.0.0.1", AMBIGUOUS, ("a",)]),
)
CASE_KEYS = [
    "name",
    "request",
    "expect",
    "verdict",
    "sub",
    "id",
    "kind",
    "chain",
    "actors",
    "act",
    "protocol",
    "obj",
    "args",
    "env",
    "now",
    "path",
    "subject",
    "rules",
    "depth",
]
paths = st.one_of(st.none(), st.sampled_from(["/v1/a/b", "/v1/a", "/"]), st.text(max_size=30))
maps = st.dictionaries(st.sampled_from(["amount", "team", "x"]), scalars, max_size=3)


@st.composite
def requests(draw: st.DrawFn) -> Any:
    return attributes(
        sub={"kind": draw(st.sampled_from(["agent", "tool", None])), "labels": draw(maps)},
        chain={"depth": draw(st.integers(0, 4)), "present": draw(st.booleans())},
        act={"name": draw(st.sampled_from(["GET", "PUT", "x"])), "read_only": draw(st.booleans())},
        obj={"path": draw(paths), "args": draw(maps), "labels": draw(maps)},
        env={"source_ip": draw(st.one_of(st.none(), st.text(max_size=9), st.just("10.0.0.9")))},
    )


def load(rows: list[Row], **files: str) -> PolicyBundle:
    lines = [
        f"p, r{number}, {field(rule)}, {effect}, {'sre' if effect == 'escalate' else ''}"
        for number, (rule, effect) in enumerate(rows)
    ]
    return bundle(model("eval(p.rule)"), "\n".join(lines), **files)


def outcome(loaded: PolicyBundle, request: Any) -> tuple[object, ...]:
    found = loaded.evaluate(request)
    return found.verdict, found.reason, found.obligation


@given(rows_of, requests(), st.randoms())
def test_the_order_of_rows_does_not_matter(rows: list[Row], request: Any, source: Any) -> None:
    shuffled = rows.copy()
    source.shuffle(shuffled)
    assert outcome(load(shuffled), request) == outcome(load(rows), request)


@given(rows_of, requests(), st.sampled_from(CONDITIONS))
def test_another_deny_never_makes_an_allow(rows: list[Row], request: Any, rule: str) -> None:
    before = load(rows).evaluate(request).verdict
    after = load([*rows, (rule, "deny")]).evaluate(request).verdict
    if before is not Verdict.ALLOW:
        assert after is not Verdict.ALLOW
    if before is Verdict.DENY:
        assert after is Verdict.DENY


@given(rows_of, requests())
def test_nothing_is_allowed_without_an_allow_rule(rows: list[Row], request: Any) -> None:
    found = load(rows).evaluate(request)
    if found.verdict is Verdict.ALLOW:
        assert {rows[int(rule[1:])][1] for rule in found.rules} == {"allow"}
        assert found.reason is Reason.OK
    assert load([(rule, "deny") for rule, _ in rows]).evaluate(request).verdict is Verdict.DENY


@given(rows_of, requests())
def test_the_index_leaves_out_nothing_that_matters(rows: list[Row], request: Any) -> None:
    """A bundle of one rule has no index to speak of: what it says alone, it says among others."""
    whole = load(rows).evaluate(request)
    alone = [load([row]).evaluate(request) for row in rows]
    failed = {f"r{n}" for n, one in enumerate(alone) if one.reason is Reason.POLICY_ERROR}
    if failed:
        assert (whole.reason, set(whole.rules)) == (Reason.POLICY_ERROR, failed)
        return
    matching = {f"r{n}" for n, one in enumerate(alone) if one.rules}
    assert set(whole.rules) <= matching
    assert bool(whole.rules) == bool(matching)


@given(rows_of, requests(), requests())
def test_another_party_never_widens_what_is_allowed(
    rows: list[Row], request: Any, other: Any
) -> None:
    manifest = "name: a\ndomain: data\nparties: [caller, actors, subject]\n"
    judging_all = load(rows, bundle_yaml=manifest)
    order = [Verdict.ALLOW, Verdict.ESCALATE, Verdict.DENY]
    joined = attributes(actors=(other.caller,), subject=party(kind="human"))
    object.__setattr__(joined, "caller", request.caller)
    alone = load(rows).evaluate(joined).verdict
    together = judging_all.evaluate(joined).verdict
    assert order.index(together) >= order.index(alone)


@given(rows_of, requests(), st.data())
def test_evaluate_never_raises(rows: list[Row], request: Any, data: st.DataObject) -> None:
    """Whatever an attribute holds, however wrong: a verdict comes, and an error is a denial."""
    for record in (request.caller, request.chain, request.act, request.obj, request.env):
        for name in data.draw(st.sets(st.sampled_from(list(record.__slots__)), max_size=2)):
            object.__setattr__(record, name, data.draw(scalars | st.just([]) | st.just(object())))
    found = load(rows).evaluate(request)
    assert (found.verdict is Verdict.ALLOW) == (found.reason is Reason.OK)
    if found.reason is Reason.POLICY_ERROR:
        assert found.verdict is Verdict.DENY


@given(st.text(max_size=60) | st.text("rp.sub()[]!&|'\"\\ ,=<>+-*/%in0.not ", max_size=60))
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    source = SourceFile("m", text)
    try:
        parse(Fragment(source, text, ((0, 0),)))
    except FaultFound as found:
        fault = found.fault
    else:
        return
    assert 1 <= fault.line <= text.count("\n") + 1
    assert fault.column >= 1


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(0, 30))
def test_the_tree_finds_what_a_scan_finds(values: list[int], asked: int) -> None:
    conditions = [f"r.chain.depth == {value}" for value in values]
    loaded = load([(condition, "allow") for condition in conditions])
    request = attributes(chain={"depth": asked})
    expected = tuple(f"r{n}" for n, value in enumerate(values) if value == asked)
    assert loaded.evaluate(request).rules == expected
    assert build([], {}).find(()) == []


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.sampled_from(["a", "mcp", "*"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(CASE_KEYS),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_cases_file_is_read_or_refused(value: object) -> None:
    for text in (value, [value], [{"name": "a", "request": value, "expect": {"verdict": "deny"}}]):
        files = texts(model("true"), "p, r1, x, allow,") | {"cases.yaml": json.dumps(text).encode()}
        if not faults(files):
            load_bundle_files(files).failed_cases()


ROLES = "g = _, _\ng2 = _, _, _"
MATCHER = (
    "(p.kind == '*' || r.sub.kind == p.kind) && \\\n  g(r.sub.id, p.role) && eval(p.rule)  # all"
)
VALID = texts(
    model(MATCHER, columns="id, kind, role, rule, eft, obligation", roles=ROLES),
    "# rules\n"
    'p, r1, agent, admin, "r.obj.tool in (""a"", \'b\')", allow,\n'
    "p, r2, *, admin, \"regexMatch(r.obj.path, '^/(a|b)*$')\", escalate, sre\n"
    "p, r3, human, admin, \"keyMatch2(r.obj.path, '/:a/*')\", deny,\n",
    roles_csv="g, alice, admin\n",
)
JUNK = (
    "",
    "\n",
    "\r\n",
    ",",
    '"',
    "'",
    "\\",
    "#",
    "(",
    ")",
    "[x]",
    "=",
    "!",
    " && ",
    "p.",
    "r.sub.",
    "*",
    "\x00",
)


@given(st.sampled_from(sorted(VALID)), st.data())
def test_any_damage_is_read_or_refused(name: str, data: st.DataObject) -> None:
    """Nothing but `ConfigurationError` leaves the loader, and whatever loads can be asked."""
    text = VALID[name].decode()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + data.draw(st.sampled_from(JUNK) | st.text(max_size=3)) + text[end:]
    files = VALID | {name: text.encode("utf-8", "surrogatepass")}
    if not faults(files):
        load_bundle_files(files).evaluate(attributes())
