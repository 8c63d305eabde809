"""Decide again what was recorded, where the record holds what the rules read; say so where not.

A record keeps no argument values, query or labels. Attributes with such gaps raise `Unrecorded`
where a rule reads one, and the rule counts as *open*: it may match, not match, or fail. An answer
is given only where every way the open rules can turn out gives the same verdict. Two revisions are
compared the same way: where both leave the same rules open, nothing can tell their answers apart.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, combinations
from typing import Final, NamedTuple

from authz_server.core.attributes import (
    ActionAttributes,
    Attributes,
    AttributeValue,
    ChainAttributes,
    EnvironmentAttributes,
    ObjectAttributes,
    PartyAttributes,
)
from authz_server.core.decision import Evaluation, Verdict
from authz_server.core.errors import AuthzError
from authz_server.policy.bundle import PolicyBundle
from authz_server.policy.compile import Matcher
from authz_server.policy.definitions import Definition, RoleRows, definition_of
from authz_server.policy.rule_notes import RuleNote, RuleNotes
from authz_server.policy.rules import Rule
from authz_server.policy.terms import can_fail
from authz_server.policy.verdict import strictest

Records = tuple[
    PartyAttributes, ChainAttributes, ActionAttributes, ObjectAttributes, EnvironmentAttributes
]


OPEN_RULES_MAX: Final = 8  # every way these can turn out is tried: 2**8 at most


class Unrecorded(AuthzError):
    """A rule reads an attribute that the record does not hold; the message is its name."""


class UnrecordedMap(Mapping[str, AttributeValue]):
    """A map of the request that the record does not hold: reading any value raises."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get(self, key: str, default: object = None) -> AttributeValue:  # noqa: ARG002
        """Raise `Unrecorded`."""
        raise Unrecorded(f"{self._name}.{key}")

    def __getitem__(self, key: str) -> AttributeValue:
        return self.get(key)

    def __iter__(self) -> Iterator[str]:
        raise Unrecorded(self._name)

    def __len__(self) -> int:
        raise Unrecorded(self._name)


class PartialRecord:
    """A record of attributes (`r.sub`, `r.chain`, …) of which some are not recorded.

    It stands where an attribute dataclass does: what is known is read as there, the rest raises.
    """

    def __init__(self, token: str, **known: object) -> None:
        self._token = token
        self._known = known

    def __getattr__(self, name: str) -> object:
        try:
            return self._known[name]
        except KeyError:
            raise Unrecorded(f"r.{self._token}.{name}") from None


class State(StrEnum):
    """What is known of one rule for one party."""

    MATCHED = "matched"
    FAILED = "failed"
    OPEN = "open"  # depends on what was not recorded
    UNMATCHED = "unmatched"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPolicy:
    """A bundle, the notes of its rules, and what defines each, for comparing."""

    bundle: PolicyBundle
    notes: RuleNotes
    roles: RoleRows
    definitions: Mapping[str, Definition]

    @classmethod
    def of(cls, bundle: PolicyBundle, notes: RuleNotes, roles: RoleRows) -> "LoadedPolicy":
        """Return the policy; `roles` are its role rows."""
        return cls(
            bundle=bundle,
            notes=notes,
            roles=roles,
            definitions={note.rule.id: definition_of(note, roles) for note in notes},
        )


class _Judged(NamedTuple):
    """The rules of one party by state, each in order; `reads` is what the open ones ask for."""

    matched: tuple[Rule, ...]
    failed: tuple[Rule, ...]
    open: tuple[Rule, ...]
    reads: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a policy says of one record. `evaluation` is None where that is not settled.

    `reads` names the attributes that would have to be known. `signature` is equal for two policies
    exactly when the same rules match, fail and are open, party by party.
    """

    evaluation: Evaluation | None
    reads: frozenset[str]
    signature: tuple[object, ...]

    @property
    def answer(self) -> tuple[Verdict, str | None] | None:
        """Verdict and approver group, what the caller notices of an evaluation."""
        found = self.evaluation
        return None if found is None else (found.verdict, found.obligation)


def replay(policy: LoadedPolicy, attributes: Attributes) -> Replayed:
    """Return what `policy` says of recorded `attributes` (parts may be `PartialRecord`)."""
    bundle = policy.bundle
    judged = [
        _judge_party(
            policy, (party, attributes.chain, attributes.act, attributes.obj, attributes.env)
        )
        for party in bundle.parties(attributes)
    ]
    return Replayed(
        evaluation=_combined(bundle, judged),
        reads=frozenset().union(*(one.reads for one in judged)),
        signature=(
            effect_of(bundle),
            *(
                tuple(
                    tuple(policy.definitions[rule.id] for rule in rules)
                    for rules in (one.matched, one.failed, one.open)
                )
                for one in judged
            ),
        ),
    )


def effect_of(bundle: PolicyBundle) -> str:
    """Return how the bundle makes one verdict of many rules, as the model writes it."""
    return "; ".join(effect.value for effect in bundle.effects)


# --- one party ----------------------------------------------------------------------------------


def _judge_party(policy: LoadedPolicy, records: Records) -> _Judged:
    by_state: dict[State, list[Rule]] = {state: [] for state in State}
    reads: set[str] = set()
    for rule in _candidates(policy.bundle, records):
        state, asked = _state(policy.notes[rule.id], records)
        by_state[state].append(rule)
        reads |= asked
    in_order = {
        state: tuple(sorted(rules, key=lambda rule: rule.order))
        for state, rules in by_state.items()
    }
    return _Judged(
        in_order[State.MATCHED], in_order[State.FAILED], in_order[State.OPEN], frozenset(reads)
    )


def _candidates(bundle: PolicyBundle, records: Records) -> tuple[Rule, ...]:
    try:
        return tuple(bundle.candidates(records))
    except Unrecorded:
        # The index looks at an attribute that is not there: every rule stands for itself.
        return bundle.rules


def _state(note: RuleNote, records: Records) -> tuple[State, frozenset[str]]:
    """Return what is known of one rule, and the attributes that keep it open."""
    try:
        matches = note.rule.matches(*records)
    except Unrecorded:
        return _state_by_conjuncts(note, records)
    except Exception:  # noqa: BLE001 -- as the engine does: whatever a matcher raises denies
        return State.FAILED, _NOTHING
    return (State.MATCHED if matches else State.UNMATCHED), _NOTHING


_NOTHING: Final[frozenset[str]] = frozenset()


def _state_by_conjuncts(note: RuleNote, records: Records) -> tuple[State, frozenset[str]]:
    """Look past a conjunct that cannot be read: a later one may settle that the rule is false.

    INVARIANT: the first conjunct that is not true decides. An open one before a false one leaves
    false or, if it can fail, an error.
    """
    reads: set[str] = set()
    may_fail = False
    for term in note.conjuncts:
        matcher: Matcher = note.compiler.compile(term)
        try:
            holds = matcher(*records)
        except Unrecorded as missing:
            reads.add(str(missing))
            may_fail |= can_fail(term)
            continue
        except Exception:  # noqa: BLE001 -- as above
            break
        if not holds:
            if not may_fail:
                return State.UNMATCHED, _NOTHING
            break
    return State.OPEN, frozenset(reads)


# --- all parties --------------------------------------------------------------------------------


def _combined(bundle: PolicyBundle, judged: list[_Judged]) -> Evaluation | None:
    """Return the strictest evaluation, or None where it is not settled.

    One party's settled denial settles the whole; anything else needs all of them.
    """
    evaluations = [_settled(bundle, one) for one in judged]
    found = [one for one in evaluations if one is not None]
    denied = any(one.verdict is Verdict.DENY for one in found)
    if len(found) < len(evaluations) and not denied:
        return None
    return strictest(found, bundle.order) if len(found) > 1 else found[0]


def _settled(bundle: PolicyBundle, judged: _Judged) -> Evaluation | None:
    """Return the evaluation if its verdict is the same however the open rules turn out.

    Each of them may match, not match or fail, and a failure denies: so only a denial is ever
    settled while one is open.
    """
    evaluation = bundle.judge_rules(judged.matched, judged.failed)
    if not judged.open:
        return evaluation
    if evaluation.verdict is not Verdict.DENY:
        return None
    # More deny rules, or an error more, leave a denial what it is.
    others = [rule for rule in judged.open if rule.effect is not Verdict.DENY]
    if judged.failed or not others:
        return evaluation
    if len(judged.open) > OPEN_RULES_MAX:
        return None
    denied = (
        bundle.judge_rules((*judged.matched, *matching), ()).verdict is Verdict.DENY
        for matching in _subsets(judged.open)
    )
    return evaluation if all(denied) else None


def _subsets(rules: tuple[Rule, ...]) -> Iterator[tuple[Rule, ...]]:
    return chain.from_iterable(combinations(rules, size) for size in range(1, len(rules) + 1))
