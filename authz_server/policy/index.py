"""Find the rules that can match, by what is constant in them.

A *guard* is a condition that every request matching a rule must meet and that cannot fail: an
attribute equal to one of some constants, or a path segment equal to a literal. The index is a tree:
each inner node looks at one attribute (or segment) and leads to the rules guarded by that value and
to those without a guard there. It narrows the choice and never decides: a candidate's matcher still
checks everything.

INVARIANT: a rule is left out only if one of its guards does not hold, so that its condition is
false. Guards cannot fail and the rest of a condition counts only where they hold, so which errors
a request meets does not depend on the shape of this tree.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

from authz_server.core.attributes import AttributeType
from authz_server.policy.bind import texts
from authz_server.policy.compile import RECORDS
from authz_server.policy.terms import (
    Apply,
    Constant,
    Equal,
    Every,
    Negation,
    OneOf,
    Scalar,
    Slot,
    Term,
    can_fail,
)

T = TypeVar("T")
Records = tuple[object, ...]
LEAF_RULES: Final = 4  # fewer rules than this are not worth another look-up
WORTH_IT: Final = 0.8  # a look-up that leaves more of the rules than this is not made
SPREAD_MAX: Final = 16  # a rule under more values than this is treated as unguarded there


class Probe(NamedTuple):
    """What a node looks at: a field of a record, or segment `segment` of a text field."""

    record: int
    field: str
    segment: int = -1


Guards = Mapping[Probe, frozenset[Scalar]]


def split_condition(condition: Term) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """Return the conjuncts that cannot fail and those that can, each in order."""
    items = condition.items if isinstance(condition, Every) else (condition,)
    safe = tuple(item for item in items if not can_fail(item))
    return safe, tuple(item for item in items if can_fail(item))


def guards_of(condition: Term) -> Guards | None:
    """Return the guards of `condition`; None if they contradict each other (it never matches)."""
    found: dict[Probe, frozenset[Scalar]] = {}
    items = condition.items if isinstance(condition, Every) else (condition,)
    for item in items:
        for probe, values in _guards(item):
            found[probe] = found[probe] & values if probe in found else values
            if not found[probe]:
                return None
    return found


def _guards(item: Term) -> list[tuple[Probe, frozenset[Scalar]]]:
    match item:
        case Equal(left=Slot() as slot, right=Constant(value=value)):
            return [(_probe(slot), frozenset({value}))]
        case Equal(left=Constant(value=value), right=Slot() as slot):
            return [(_probe(slot), frozenset({value}))]
        case OneOf(item=Slot() as slot, options=options):
            values = [option.value for option in options if isinstance(option, Constant)]
            return [(_probe(slot), frozenset(values))] if len(values) == len(options) else []
        case Slot() if item.spec.type is AttributeType.BOOL:
            return [(_probe(item), frozenset({True}))]
        case Negation(operand=Slot() as slot) if slot.spec.type is AttributeType.BOOL:
            return [(_probe(slot), frozenset({False}))]
        case Apply(function=function, value=Slot() as slot, constants=constants):
            if function.literals is None:
                return []
            probe = _probe(slot)
            return [
                (Probe(probe.record, probe.field, segment), frozenset({text}))
                for segment, text in function.literals(texts(constants))
            ]
        case _:
            return []


def _probe(slot: Slot) -> Probe:
    return Probe(RECORDS.index(slot.record), slot.field)


@dataclass(frozen=True, slots=True)
class Node(Generic[T]):
    """A leaf holds `rules`; an inner node looks at `probe`."""

    rules: tuple[T, ...] = ()
    probe: Probe | None = None
    children: Mapping[Scalar, "Node[T]"] = field(default_factory=dict)
    others: "Node[T] | None" = None

    def find(self, records: Records) -> list[T]:
        """Return every rule whose guards may hold for `records`, in no particular order."""
        found: list[T] = []
        waiting = [self]
        paths: dict[tuple[int, str], list[str]] = {}
        while waiting:
            node = waiting.pop()
            probe = node.probe
            if probe is None:
                found += node.rules
                continue
            value = getattr(records[probe.record], probe.field)
            if probe.segment >= 0:
                value = _segment(value, probe, paths)
            child = node.children.get(value)
            if child is not None:
                waiting.append(child)
            if node.others is not None:
                waiting.append(node.others)
        return found


def _segment(
    value: str | None, probe: Probe, paths: dict[tuple[int, str], list[str]]
) -> str | None:
    if value is None:
        return None
    place = (probe.record, probe.field)
    split = paths.get(place)
    if split is None:
        split = paths[place] = value.split("/")
    return split[probe.segment] if probe.segment < len(split) else None


def build(rules: Sequence[tuple[T, Guards]], used: frozenset[Probe] = frozenset()) -> Node[T]:
    """Return the tree over `rules`, each given with its guards; `used` probes lie above it."""
    probe = _best_probe([guards for _, guards in rules], used)
    if probe is None:
        return Node(rules=tuple(rule for rule, _ in rules))
    children: dict[Scalar, list[tuple[T, Guards]]] = {}
    others: list[tuple[T, Guards]] = []
    for rule, guards in rules:
        values = guards.get(probe, frozenset())
        if not 0 < len(values) <= SPREAD_MAX:
            others.append((rule, guards))
            continue
        for value in values:
            children.setdefault(value, []).append((rule, guards))
    return Node(
        probe=probe,
        children={value: build(part, used | {probe}) for value, part in children.items()},
        others=build(others, used | {probe}) if others else None,
    )


def _best_probe(guards: Sequence[Guards], used: frozenset[Probe]) -> Probe | None:
    """Return the probe that leaves the fewest rules on average, None if none is worth it."""
    if len(guards) <= LEAF_RULES:
        return None
    counts: dict[Probe, Counter[Scalar]] = {}
    guarded: Counter[Probe] = Counter()
    for one in guards:
        for probe, values in one.items():
            if probe not in used and len(values) <= SPREAD_MAX:
                counts.setdefault(probe, Counter()).update(values)
                guarded[probe] += 1
    best, least = None, len(guards) * WORTH_IT
    for probe in sorted(counts):
        by_value = counts[probe]
        left = len(guards) - guarded[probe]
        left_and_found = left + sum(n * n for n in by_value.values()) / by_value.total()
        if left_and_found < least:
            best, least = probe, left_and_found
    return best
