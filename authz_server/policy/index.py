"""Find the rules that can match, by what is constant in them.

A *guard* is a condition that every request matching a rule must meet and that cannot fail: an
attribute equal to one of some constants, a segment of a path or the end of a host name equal to a
literal, a set that holds a constant, a role that the caller has. The index is a tree: each inner
node looks at one attribute and leads to the rules guarded by what it finds there and to those
without a guard there. It narrows the choice and never decides: a candidate's matcher still checks
everything.

INVARIANT: a rule is left out only if one of its guards does not hold, so that its condition is
false. Guards cannot fail and the rest of a condition counts only where they hold, so which errors
a request meets does not depend on the shape of this tree.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Generic, NamedTuple, TypeVar, cast

from authz_server.core.attributes import AttributeType
from authz_server.policy.bind import texts
from authz_server.policy.compile import RECORDS
from authz_server.policy.roles import RoleGraph, Roles
from authz_server.policy.terms import (
    Apply,
    Constant,
    Contains,
    Equal,
    HasRole,
    Negation,
    OneOf,
    Slot,
    Term,
)

T = TypeVar("T")
Records = tuple[object, ...]
Key = object  # a scalar, or (role, domain)
LEAF_RULES: Final = 4  # fewer rules than this are not worth another look-up
WORTH_IT: Final = 0.8  # a look-up that leaves more of the rules than this is not made
SPREAD_MAX: Final = 16  # a rule under more values than this is treated as unguarded there


class Probe(NamedTuple):
    """What a node looks at in one field of a record.

    `way` is empty for the value itself, `/` or `.` for part `at` of a text split there, `in` for
    what a collection holds, else the name of the role definition whose roles the value has, within
    the domain that `domain` (record, field) holds.
    """

    record: int
    field: str
    way: str = ""
    at: int = 0
    domain: tuple[int, str] | None = None


Guard = tuple[Probe, frozenset[Key]]
Guards = Mapping[Probe, frozenset[Key]]


def joined(guards: Iterable[Guard]) -> Guards | None:
    """Return all of `guards` by probe; None if two contradict each other (it never matches)."""
    found: dict[Probe, frozenset[Key]] = {}
    for probe, values in guards:
        known = found.get(probe)
        if known is None:
            found[probe] = values
        elif probe.way in _SINGLE:
            found[probe] = known & values
            if not found[probe]:
                return None
    return found


_SINGLE: Final = ("", "/", ".")  # ways that find one value, not several


def guards_of(item: Term, roles: Mapping[str, Roles]) -> tuple[Guard, ...]:
    """Return the guards that one condition is."""
    match item:
        case Equal(left=Slot() as slot, right=Constant(value=value)):
            return ((_probe(slot), frozenset({value})),)
        case Equal(left=Constant(value=value), right=Slot() as slot):
            return ((_probe(slot), frozenset({value})),)
        case OneOf(item=Slot() as slot, options=options):
            values = [option.value for option in options if isinstance(option, Constant)]
            return ((_probe(slot), frozenset(values)),) if len(values) == len(options) else ()
        case Slot() if item.spec.type is AttributeType.BOOL:
            return ((_probe(item), frozenset({True})),)
        case Negation(operand=Slot() as slot) if slot.spec.type is AttributeType.BOOL:
            return ((_probe(slot), frozenset({False})),)
        case Contains(item=Constant(value=value), collection=Slot() as slot):
            return ((_probe(slot, "in"), frozenset({value})),)
        case Apply(function=function, value=Slot() as slot, constants=constants):
            places = function.literals(texts(constants)) if function.literals else ()
            return tuple(
                [(_probe(slot, separator, at), frozenset({text})) for separator, at, text in places]
            )
        case HasRole(definition=definition, arguments=arguments):
            return _role_guard(definition, arguments, roles[definition])
        case _:
            return ()


def _probe(slot: Slot, way: str = "", at: int = 0) -> Probe:
    return _shared_probe(slot.record, slot.field, way, at)


@lru_cache(maxsize=4_096)  # one object for each, so that comparing them is comparing identities
def _shared_probe(record: str, name: str, way: str, at: int) -> Probe:
    return Probe(RECORDS.index(record), name, way, at)


def _role_guard(definition: str, arguments: Sequence[Term], roles: Roles) -> tuple[Guard, ...]:
    member, role, *domain = arguments
    if not (
        isinstance(roles, RoleGraph) and isinstance(member, Slot) and isinstance(role, Constant)
    ):
        return ()
    probe = _probe(member, definition)
    if not domain:
        return ((probe, frozenset({role.value})),)
    if not isinstance(domain[0], Slot):
        return ()
    place = _probe(domain[0])
    return ((probe._replace(domain=(place.record, place.field)), frozenset({role.value})),)


@dataclass(frozen=True, slots=True)
class Node(Generic[T]):
    """A leaf holds `rules`; an inner node looks at `probe`, for a role test with `roles`.

    A child that is a leaf is only the tuple of its rules: most rules of a large policy are alone.
    """

    rules: tuple[T, ...] = ()
    probe: Probe | None = None
    children: Mapping[Key, "Node[T] | tuple[T, ...]"] = field(default_factory=dict)
    others: "Node[T] | tuple[T, ...]" = ()
    roles: RoleGraph | None = None

    def find(self, records: Records) -> list[T]:
        """Return every rule whose guards may hold for `records`, in no particular order."""
        found: list[T] = []
        waiting: list[Node[T] | tuple[T, ...]] = [self]
        splits: dict[tuple[int, str, str], list[str]] = {}
        while waiting:
            node = waiting.pop()
            if isinstance(node, tuple):
                found += node
                continue
            found += node.rules
            probe = node.probe
            if probe is None:
                continue
            waiting.append(node.others)
            value = getattr(records[probe.record], probe.field)
            way = probe.way
            if way:
                if way not in _SINGLE:
                    waiting += node.several(value, records)
                    continue
                value = _part(value, probe, splits)
            child = node.children.get(value)
            if child is not None:
                waiting.append(child)
        return found

    def several(self, value: object, records: Records) -> "list[Node[T] | tuple[T, ...]]":
        """Return the children for all that a collection holds, or for all roles of a member."""
        children = self.children
        held: Iterable[object]
        if self.roles is None:
            held = set(cast(Collection[object], value))
        else:
            held = self._roles_of(value, records, self.roles)
        return [children[key] for key in held if key in children]

    def _roles_of(self, member: object, records: Records, roles: RoleGraph) -> set[object]:
        assert self.probe is not None
        if self.probe.domain is None:
            return set(roles.held(member, ()))
        record, name = self.probe.domain
        held = roles.held(member, (getattr(records[record], name),))
        return {role[0] for role in held if isinstance(role, tuple)}


def _part(
    value: str | None, probe: Probe, splits: dict[tuple[int, str, str], list[str]]
) -> str | None:
    if value is None:
        return None
    place = (probe.record, probe.field, probe.way)
    split = splits.get(place)
    if split is None:
        split = splits[place] = value.split(probe.way)
    at = probe.at
    return split[at] if -len(split) <= at < len(split) else None


def build(rules: Sequence[tuple[T, Guards]], roles: Mapping[str, Roles]) -> Node[T]:
    """Return the tree over `rules`, each given with its guards; `roles` are by definition."""
    tree = _tree(rules, roles, frozenset())
    return Node(rules=tree) if isinstance(tree, tuple) else tree


def _tree(
    rules: Sequence[tuple[T, Guards]], roles: Mapping[str, Roles], used: frozenset[Probe]
) -> Node[T] | tuple[T, ...]:
    probe = _best_probe([guards for _, guards in rules], used)
    if probe is None:
        return tuple([rule for rule, _ in rules])
    children: dict[Key, list[tuple[T, Guards]]] = {}
    others: list[tuple[T, Guards]] = []
    for guarded in rules:
        values = guarded[1].get(probe)
        if values is None or len(values) > SPREAD_MAX:
            others.append(guarded)
            continue
        for value in values:
            children.setdefault(value, []).append(guarded)
    used |= {probe}
    return Node(
        probe=probe,
        children={value: _tree(part, roles, used) for value, part in children.items()},
        others=_tree(others, roles, used),
        roles=cast(RoleGraph | None, roles.get(probe.way)),
    )


def _best_probe(guards: Sequence[Guards], used: frozenset[Probe]) -> Probe | None:
    """Return the probe that leaves the fewest rules on average, None if none is worth it."""
    if len(guards) <= LEAF_RULES:
        return None
    counts: dict[Probe, dict[Key, int]] = {}
    guarded: Counter[Probe] = Counter()
    for one in guards:
        for probe, values in one.items():
            if probe in used or len(values) > SPREAD_MAX:
                continue
            by_value = counts.setdefault(probe, {})
            for value in values:
                by_value[value] = by_value.get(value, 0) + 1
            guarded[probe] += 1
    best, least = None, len(guards) * WORTH_IT
    for probe, by_value in counts.items():
        left = len(guards) - guarded[probe]
        left_and_found = left + sum(n * n for n in by_value.values()) / sum(by_value.values())
        if left_and_found < least:
            best, least = probe, left_and_found
    return best
