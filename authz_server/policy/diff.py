"""What differs between two revisions of a policy bundle, rule by rule.

Rules are compared by what they say. An id that a rule was given joins both revisions of it; where
rules have no ids, their place in the file means nothing and only the definition counts.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from authz_server.policy.definitions import Definition
from authz_server.policy.replay import LoadedPolicy, effect_of
from authz_server.policy.rules import Rule


class Change(StrEnum):
    """What became of a rule."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleChange:
    """One rule that differs. The side where it does not exist is None."""

    change: Change
    id: str
    old: Definition | None
    new: Definition | None
    place: str  # file:line, in NEW if it is there


@dataclass(frozen=True, slots=True, kw_only=True)
class FactChange:
    """One property of the whole bundle that differs."""

    name: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDiff:
    """Everything in which two revisions of one bundle differ."""

    facts: tuple[FactChange, ...]
    rules: tuple[RuleChange, ...]
    roles_added: tuple[tuple[str, ...], ...]
    roles_removed: tuple[tuple[str, ...], ...]

    def __bool__(self) -> bool:
        return bool(self.facts or self.rules or self.roles_added or self.roles_removed)


def diff_bundles(old: LoadedPolicy, new: LoadedPolicy) -> BundleDiff:
    """Return what changes from `old` to `new`. Comments, spelling and order in a file do not."""
    return BundleDiff(
        facts=tuple(_facts(old, new)),
        rules=tuple(sorted(_rules(old, new), key=lambda one: (one.change, one.place, one.id))),
        roles_added=tuple(sorted(new.roles - old.roles)),
        roles_removed=tuple(sorted(old.roles - new.roles)),
    )


def _facts(old: LoadedPolicy, new: LoadedPolicy) -> Iterator[FactChange]:
    pairs = {
        "effect": (effect_of(old.bundle), effect_of(new.bundle)),
        "domain": (old.bundle.domain, new.bundle.domain),
        "parties": (_parties(old), _parties(new)),
    }
    for name, (before, after) in pairs.items():
        if before != after:
            yield FactChange(name=name, old=before, new=after)
    if any(effect.first_match for effect in new.bundle.effects):
        yield from _order(old, new)


def _parties(policy: LoadedPolicy) -> str:
    return ", ".join(sorted(policy.bundle.manifest.parties))


def _order(old: LoadedPolicy, new: LoadedPolicy) -> Iterator[FactChange]:
    """Yield the first place where the rules of both come in another order."""
    before, after = _keys(old), _keys(new)
    common = [(one, other) for one, other in _paired(before, after) if one != other]
    if common:
        yield FactChange(
            name="order of rules",
            old=before[common[0][0]].id,
            new=after[common[0][1]].id,
        )


def _paired(
    before: Mapping[object, Rule], after: Mapping[object, Rule]
) -> Iterator[tuple[object, object]]:
    return zip(
        [key for key in before if key in after],
        [key for key in after if key in before],
        strict=True,
    )


def _rules(old: LoadedPolicy, new: LoadedPolicy) -> Iterator[RuleChange]:
    before, after = _keys(old), _keys(new)
    for key, rule in before.items():
        if key not in after:
            yield _change(Change.REMOVED, rule, old.definitions[rule.id], None)
    for key, rule in after.items():
        definition = new.definitions[rule.id]
        if key not in before:
            yield _change(Change.ADDED, rule, None, definition)
            continue
        earlier = old.definitions[before[key].id]
        if _said(earlier) != _said(definition):
            yield _change(Change.CHANGED, rule, earlier, definition)


def _keys(policy: LoadedPolicy) -> Mapping[object, Rule]:
    """Return the rules by what identifies them in both revisions, in order."""
    found: dict[object, Rule] = {}
    copies: Counter[object] = Counter()
    for rule in policy.bundle.rules:
        if rule.id != f"{rule.file}:{rule.line}":
            found[rule.id] = rule
            continue
        said = _said(policy.definitions[rule.id])
        copies[said] += 1
        found[said, copies[said]] = rule
    return found


def _said(definition: Definition) -> tuple[object, ...]:
    # Role rows are compared by themselves: one new member does not change every rule.
    return definition.kind, definition.effect, definition.obligation, definition.condition


def _change(
    change: Change, rule: Rule, old: Definition | None, new: Definition | None
) -> RuleChange:
    place = f"{rule.file}:{rule.line}"
    return RuleChange(change=change, id=rule.id, old=old, new=new, place=place)
