"""The index leaves out no rule that matches, and most of those that do not."""

from hypothesis import event, given
from hypothesis import strategies as st

from authz_server.core.attributes import Attributes
from tests.policy_samples import attributes, bundle, field, model

NAMES = ("alice", "bob", "carol", "reader", "writer")
ROLES = ("reader", "writer", "admin")
DOMAINS = ("east", "west")
CONDITIONS = (
    *(f"g(r.sub.id, '{name}')" for name in (*NAMES, "admin")),
    *(f"g2(r.sub.id, '{role}', r.obj.resource)" for role in ROLES),
    *(f"g2(r.sub.id, '{role}', 'east')" for role in ROLES),
    *(f"g3(r.sub.id, '{role}')" for role in ROLES),
    *(f"'{scope}' in r.chain.scope" for scope in ("a", "b", "c")),
    *(f"'{actor}' in r.chain.actors" for actor in NAMES[:2]),
    "globMatch(r.obj.host, '*.example.org')",
    "globMatch(r.obj.host, 'a?.example.org')",
    "globMatch(r.obj.host, '*')",
    "globMatch(r.obj.path, '/v1/*/x')",
    "globMatch(r.obj.path, '/v1/[ab]/x')",
    "keyMatch2(r.obj.path, '/v1/:a/x')",
    "keyMatch2(r.obj.path, '/v1/*')",
    "keyMatch2(r.obj.path, '*')",
    "keyMatch4(r.obj.path, '/{a}/{a}/x')",
    "keyMatch(r.obj.path, '/v1/*')",
    "keyMatch(r.obj.path, '/v1')",
    "r.act.name in ('GET', 'PUT')",
    "r.act.name == 'GET'",
    "!r.act.read_only",
    "r.sub.owner == nil",
)
LINKS = st.lists(
    st.builds("g, {}, {}".format, st.sampled_from(NAMES), st.sampled_from(ROLES))
    | st.builds(
        "g2, {}, {}, {}".format,
        st.sampled_from(NAMES),
        st.sampled_from(ROLES),
        st.sampled_from(DOMAINS),
    )
    | st.builds("g3, {}, {}, _, _".format, st.sampled_from(NAMES), st.sampled_from(ROLES)),
    max_size=12,
)
BASE = ["g, dave, admin", "g2, dave, admin, east", "g3, dave, admin, _, _"]
CONF = model(
    "eval(p.rule)",
    columns="id, rule, eft",
    roles="g = _, _\ng2 = _, _, _\ng3 = _, _, (_, _)",
)


def requests() -> st.SearchStrategy[Attributes]:
    return st.builds(
        lambda name, domain, scope, actors, host, path, act: attributes(
            sub={"id": name, "owner": None},
            chain={"scope": scope, "actors": actors},
            obj={"resource": domain, "host": host, "path": path},
            act={"name": act, "read_only": act == "GET"},
        ),
        st.sampled_from([*NAMES, "admin", "dave"]),
        st.sampled_from([*DOMAINS, None]),
        st.frozensets(st.sampled_from("abc")),
        st.lists(st.sampled_from(NAMES), max_size=3).map(tuple),
        st.sampled_from(["a.example.org", "ab.example.org", "example.org", "org", "", None]),
        st.sampled_from(["/v1/a/x", "/v1/v1/x", "/v1", "/v1/a", "/", "v1/a/x", None]),
        st.sampled_from(["GET", "PUT", "DELETE"]),
    )


@given(
    st.lists(
        st.lists(st.sampled_from(CONDITIONS), min_size=1, max_size=3), min_size=1, max_size=30
    ),
    LINKS,
    st.lists(requests(), min_size=1, max_size=5),
)
def test_every_rule_that_matches_is_a_candidate(
    rules: list[list[str]], links: list[str], asked: list[Attributes]
) -> None:
    rows = [
        f"p, r{number}, {field(' && '.join(conditions))}, allow"
        for number, conditions in enumerate(rules)
    ]
    loaded = bundle(CONF, "\n".join([*rows, *BASE, *links]))
    for request in asked:
        records = (request.caller, request.chain, request.act, request.obj, request.env)
        candidates = [rule.id for rule in loaded.candidates(records)]
        assert len(candidates) == len(set(candidates))
        matching = [rule.id for rule in loaded.rules if rule.matches(*records)]
        assert set(matching) <= set(candidates)
        event(f"left out: {len(candidates) < len(loaded.rules)}")


def test_roles_sets_hosts_and_paths_narrow_the_choice() -> None:
    for condition, request in (
        ("g(r.sub.id, 'role-{}')", attributes(sub={"id": "dave"})),
        ("g2(r.sub.id, 'role-{}', r.obj.resource)", attributes(obj={"resource": "east"})),
        ("'scope-{}' in r.chain.scope", attributes()),
        ("globMatch(r.obj.host, '*.h{}.example')", attributes(obj={"host": "a.h3.example"})),
        ("globMatch(r.obj.path, '/p{}/*')", attributes(obj={"path": "/p3/x"})),
        ("keyMatch2(r.obj.path, '/:v/p{}')", attributes(obj={"path": "/v1/p3"})),
    ):
        rows = [f"p, r{n}, {field(condition.format(n))}, allow" for n in range(200)]
        loaded = bundle(CONF, "\n".join([*rows, *BASE]))
        records = (request.caller, request.chain, request.act, request.obj, request.env)
        assert len(loaded.candidates(records)) <= 4, condition
