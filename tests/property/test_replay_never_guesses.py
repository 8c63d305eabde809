"""A replay answers as the engine would that saw the whole request, or says that it cannot."""

from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from authz_server.cli.policy_recorded import RecordedRequest
from authz_server.cli.policy_replay import Outcome, Pair, redecide
from authz_server.core.attributes import AMBIGUOUS, Attributes, Kind, PartyAttributes
from authz_server.core.decision import (
    ActionRecord,
    ChainRecord,
    Decision,
    EnvironmentRecord,
    HopRecord,
    PrincipalRecord,
    ResourceRecord,
    Verdict,
)
from authz_server.core.errors import Reason
from authz_server.core.identities import Identity, Inventory
from authz_server.core.record import Document, decision_json
from authz_server.policy.bundle import load_bundle_files
from authz_server.policy.replay import LoadedPolicy, replay
from authz_server.policy.rule_notes import RuleNotes
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

# A wrong answer needs one condition, one value and no stricter rule beside it: look five times.
SEARCH = settings(max_examples=5 * settings().max_examples)
AGENT = "spiffe://example.org/agent/b"
OTHER = "spiffe://example.org/agent/a"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONDITIONS = (
    "true",
    "r.sub.kind == 'agent'",
    "r.sub.kind == 'human' && r.act.name == 'GET'",
    "r.act.name == 'PUT'",
    "r.obj.args.amount > 100",
    "r.obj.args.amount > 100 && keyMatch2(r.obj.path, '/v1/:x')",
    "r.act.name == 'GET' && r.obj.args.tier == 'gold'",
    "r.obj.query.page == '1' && r.chain.present",
    "r.obj.labels.stage == 'production'",
    "r.sub.labels.team == 'red'",
    "r.sub.purpose == 'search' || r.act.name == 'GET'",
    "r.sub.owner == 'team-a'",
    "r.chain.age_s < 60",
    "r.chain.expires_in_s > 100 && 'crm.read' in r.chain.scope",
    "keyMatch2(r.obj.path, '/v1/:x')",
    "r.obj.args.name + 'x' == 'ax'",
    "g(r.sub.labels.team, 'editor')",
    "!(r.obj.args.flag || r.chain.present)",
)
values = st.sampled_from([None, True, 1, 101, "gold", "1", "a", AMBIGUOUS])
maps = st.dictionaries(
    st.sampled_from(["amount", "tier", "page", "name", "flag"]), values, max_size=4
)
stages = st.dictionaries(st.just("stage"), st.sampled_from(["production", "test"]))
rows = st.lists(
    st.tuples(st.sampled_from(CONDITIONS), st.sampled_from(["allow", "deny", "escalate"])),
    min_size=1,
    max_size=6,
)
effects = st.sampled_from([ALLOW_AND_DENY, ALLOW_OVERRIDE, PRIORITY])
everyone = st.sampled_from(["caller", "caller, actors, subject"])


@st.composite
def requests(draw: st.DrawFn) -> Attributes:
    """Requests as `decide` makes them: parties as inventoried, the chain as it was proved."""
    protocol = draw(st.sampled_from(["http", "mcp"]))
    agents = {
        name: party(
            id=name,
            kind="agent",
            path=name.removeprefix("spiffe://example.org"),
            owner=draw(st.sampled_from(["team-a", "team-b"])),
            purpose=draw(st.sampled_from([None, "search"])),
            labels=draw(st.dictionaries(st.just("team"), st.sampled_from(["red", "blue"]))),
            assurance="mtls" if name == AGENT else None,
        )
        for name in (AGENT, OTHER)
    }
    return attributes(
        sub={name: getattr(agents[AGENT], name) for name in agents[AGENT].__slots__},
        actors=tuple(as_actor(agents[name]) for name in (OTHER, AGENT)),
        subject=PartyAttributes(id="alice", kind="human", role="subject"),
        chain={
            "actors": (OTHER, AGENT),
            "subject": "alice",
            "subject_issuer": "https://sts",
            "txn": "t",
            "age_s": draw(st.sampled_from([10, 70])),
            "expires_in_s": draw(st.sampled_from([50, 150])),
        },
        act={"protocol": protocol, "name": draw(st.sampled_from(["GET", "PUT"]))},
        obj={
            "path": draw(st.sampled_from(["/v1/a", "/v2"])),
            "segments": (),
            "args": draw(maps) if protocol == "mcp" else {},
            "query": draw(maps) if protocol == "http" else {},
            "labels": draw(stages),
            "args_sha256": "ab" * 32,
        },
        env={"now": int(NOW.timestamp())},
    )


def as_actor(agent: PartyAttributes) -> PartyAttributes:
    return PartyAttributes(
        **{name: getattr(agent, name) for name in agent.__slots__} | {"role": "actor"}
    )


def recorded(request: Attributes, verdict: Verdict, reason: Reason) -> Document:
    """Return the document that a server would have kept of `request`."""
    chain, obj, now = request.chain, request.obj, int(NOW.timestamp())
    assert chain.age_s is not None
    assert chain.expires_in_s is not None
    hops = tuple(
        HopRecord(
            delegator="x",
            delegate=actor.id,
            proof="k",
            scope=(),
            audience=(),
            issued_at=now - chain.age_s,
            expires_at=now + chain.expires_in_s,
            owner=actor.owner,
        )
        for actor in request.actors
    )
    decision = Decision(
        verdict=verdict,
        reason=reason,
        detail="",
        time=NOW,
        revision="r",
        bundle="sample",
        principal=PrincipalRecord(
            spiffe_id=request.caller.id,
            trust_domain="example.org",
            kind=request.caller.kind,
            assurance="mtls",
        ),
        chain=ChainRecord(
            subject="alice",
            subject_issuer="https://sts",
            actors=chain.actors,
            txn="t",
            assurance=chain.assurance,
            mode="exercise",
            token_sha256=(),
            scope=tuple(chain.scope),
            purpose=chain.purpose,
            hops=hops,
        ),
        action=ActionRecord(protocol=request.act.protocol, name=request.act.name, read_only=True),
        resource=ResourceRecord(
            type=obj.type, host=obj.host, path=obj.path, args_sha256=obj.args_sha256
        ),
        environment=EnvironmentRecord(
            source_ip=request.env.source_ip, sni=None, listener=None, node=None
        ),
        owner=request.caller.owner,
    )
    return decision_json(decision, decision_id="d", duration_us=1)


def inventory_of(request: Attributes) -> Inventory:
    return Inventory.of(
        Identity(
            id=one.id,
            kind=Kind.AGENT,
            owner=one.owner,
            purpose=one.purpose,
            labels={name: str(value) for name, value in one.labels.items()},
        )
        for one in request.actors
    )


def load(given_rows: list[tuple[str, str]], effect: str, parties: str) -> LoadedPolicy:
    lines = [
        f"p, r{number}, {field(rule)}, {eft}, {'sre' if eft == 'escalate' else ''}"
        for number, (rule, eft) in enumerate(given_rows)
        if not (eft == "deny" and effect == ALLOW_OVERRIDE)
    ] or ["p, r0, true, allow,"]
    files = texts(
        model("eval(p.rule)", effect=effect, roles="g = _, _"),
        "\n".join(lines),
        roles_csv="g, red, editor\n",
        bundle_yaml=f"name: sample\ndomain: data\nparties: [{parties}]\n",
    )
    notes = RuleNotes()
    bundle = load_bundle_files(files, observe=notes)
    return LoadedPolicy.of(bundle, notes, frozenset({("g", "red", "editor")}))


def truth(policy: LoadedPolicy, request: Attributes) -> tuple[Verdict, str | None]:
    found = policy.bundle.evaluate(request)
    return found.verdict, found.obligation


@SEARCH
@given(rows, requests(), effects, everyone, st.booleans())
def test_an_answer_is_the_one_that_the_whole_request_gets(
    given_rows: list[tuple[str, str]],
    request: Attributes,
    effect: str,
    parties: str,
    knows_inventory: bool,
) -> None:
    policy = load(given_rows, effect, parties)
    found = policy.bundle.evaluate(request)
    document = recorded(request, found.verdict, found.reason)
    inventory = inventory_of(request) if knows_inventory else None
    again = replay(policy, RecordedRequest(document, inventory).attributes(policy.bundle))
    if again.answer is None:
        assert again.reads
        assert all(name.startswith(UNRECORDED[knows_inventory]) for name in again.reads)
    elif again.answer[0] is Verdict.DENY:
        assert found.verdict is Verdict.DENY
    else:
        assert again.evaluation == found


UNRECORDED = {
    True: ("r.obj.args.", "r.obj.query.", "r.obj.labels."),
    False: ("r.obj.args.", "r.obj.query.", "r.obj.labels.", "r.sub."),
}


@SEARCH
@given(rows, rows, requests(), effects, everyone)
def test_two_revisions_are_told_apart_only_where_they_differ(
    old_rows: list[tuple[str, str]],
    new_rows: list[tuple[str, str]],
    request: Attributes,
    effect: str,
    parties: str,
) -> None:
    old, new = load(old_rows, effect, parties), load(old_rows + new_rows, effect, parties)
    found = old.bundle.evaluate(request)
    document = recorded(request, found.verdict, found.reason)
    pairs = {"sample": Pair(old=old, new=new)}
    (one,) = redecide(iter([document]), pairs, inventory_of(request))
    same = truth(old, request)[0] is truth(new, request)[0]
    if one.outcome is Outcome.SAME:
        assert same
    elif one.outcome is Outcome.CHANGED:
        assert truth(old, request) != truth(new, request)
    else:
        assert one.outcome is Outcome.OPEN
        assert one.reads


@given(rows, requests(), effects, everyone)
def test_nothing_changes_where_nothing_differs(
    given_rows: list[tuple[str, str]], request: Attributes, effect: str, parties: str
) -> None:
    """Not even where it cannot be replayed: equal open rules turn out alike."""
    old, new = load(given_rows, effect, parties), load(given_rows, effect, parties)
    found = old.bundle.evaluate(request)
    document: dict[str, Any] = recorded(request, found.verdict, found.reason)
    pairs = {"sample": Pair(old=old, new=new)}
    (one,) = redecide(iter([document]), pairs, None)
    assert one.outcome is Outcome.SAME
