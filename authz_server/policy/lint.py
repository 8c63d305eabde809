"""Warnings about what loads and is sound, and yet does not do what it seems to.

A rule that another one hides, a role that no rule asks for, a column that no matcher reads. None of
them widens access by itself; each is usually a slip of the pen in something that should have.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from authz_server.core.decision import Verdict
from authz_server.core.errors import Fault
from authz_server.core.suggestion import did_you_mean
from authz_server.policy.argument_lint import Protocols
from authz_server.policy.argument_lint import warning as argument_warning
from authz_server.policy.model import Effect, Model, RoleDefinition, Section
from authz_server.policy.rows import Row
from authz_server.policy.source import FaultLog

WARNINGS_MAX: Final = 100  # of one bundle; a generated policy repeats its slips
SCAN_MAX: Final = 64  # rules compared with one rule for each of its conditions
# A comparison with a near name takes 20 µs: half a second at the very worst.
NEAR_ROLES_MAX: Final = 500
MISSPELT_MAX: Final = 50
_RESERVED: Final = frozenset({"id", "eft", "obligation"})
_ORDERING: Final[Mapping[Effect, frozenset[str]]] = {
    Effect.PRIORITY: frozenset({"priority"}),
    Effect.SUBJECT_PRIORITY: frozenset({"sub", "dom"}),
}
_DOES: Final = {Verdict.ALLOW: "allows", Verdict.ESCALATE: "escalates", Verdict.DENY: "denies"}
_STRICT: Final = (Verdict.ALLOW, Verdict.ESCALATE, Verdict.DENY)


class DecidingRule(Protocol):
    """What the linter needs to know of a rule."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def effect(self) -> Verdict:
        """What it decides."""

    @property
    def obligation(self) -> str | None:
        """Who has to approve."""

    @property
    def order(self) -> int:
        """Its place among all rules."""


@dataclass(frozen=True, slots=True)
class LintedRule:
    """One rule, its row, and its conditions as numbers: equal conditions have equal numbers.

    `arguments` are those it reads; if it reads any, `protocols` are those it can judge.
    """

    rule: DecidingRule
    row: Row
    conditions: frozenset[int]
    arguments: frozenset[str]
    protocols: Protocols


@dataclass(frozen=True, slots=True)
class TestedRole:
    """A role that some rule asks for, and where it does first; None: one the request names.

    `column` is None where the matcher names the role.
    """

    definition: str
    role: str | None
    row: Row
    column: int | None

    def warning(self, message: str) -> Fault:
        """Return a warning at its place."""
        if self.column is None:
            return self.row.line_fault(message, "warning").fault
        return self.row.fault(self.column, message, "warning").fault


@dataclass(frozen=True, slots=True, kw_only=True)
class LintedSection:
    """One policy type after its rules were compiled. `read` are the columns that were looked at."""

    section: Section
    rules: Sequence[LintedRule]
    read: frozenset[int]
    tested: Sequence[TestedRole]


def lint(
    model: Model,
    sections: Sequence[LintedSection],
    links: Mapping[str, Sequence[Row]],
    log: FaultLog,
) -> None:
    """Add warnings to `log`; `links` are the role rows by definition. Call only without faults."""
    found = _warnings(model, sections, links)
    for _, warning in zip(range(WARNINGS_MAX), found, strict=False):
        log.add(warning)


def _warnings(
    model: Model, sections: Sequence[LintedSection], links: Mapping[str, Sequence[Row]]
) -> Iterator[Fault]:
    tested = [role for section in sections for role in section.tested]
    for section in sections:
        yield from _unread_columns(section)
    for definition in model.roles.values():
        asked = [one for one in tested if one.definition == definition.name]
        patterns = definition.name in model.matching
        yield from _unused_roles(definition, asked, links[definition.name], patterns=patterns)
    for section in sections:
        yield from _undeclared_arguments(section, model.arguments)
    for section in sections:
        yield from _hidden_rules(section)


def _unread_columns(section: LintedSection) -> Iterator[Fault]:
    effect = section.section.effect
    known = _RESERVED | _ORDERING.get(effect, frozenset())
    for name, index in section.section.columns.items():
        if index not in section.read and name not in known:
            message = f"no matcher reads column `{name}` of `{section.section.policy_root}`"
            yield section.section.matcher.fault(0, message, "warning")


def _undeclared_arguments(section: LintedSection, declared: frozenset[str]) -> Iterator[Fault]:
    for one in section.rules:
        for name in sorted(one.arguments - declared):
            if message := argument_warning(name, one.protocols, declares=bool(declared)):
                message += did_you_mean(name, declared)
                yield one.row.line_fault(message, "warning").fault


# --- roles --------------------------------------------------------------------------------------


def _unused_roles(
    definition: RoleDefinition, asked: Sequence[TestedRole], rows: Sequence[Row], *, patterns: bool
) -> Iterator[Fault]:
    if rows and not asked:
        message = f"no rule asks for a role of `{definition.name}`: its rows mean nothing"
        yield definition.at.fault(0, message, "warning")
        return
    roles = {one.role for one in asked}
    if patterns or None in roles:
        return
    members = {row.values[0] for row in rows}
    granted: dict[str, Row] = {}
    for row in rows:
        granted.setdefault(row.values[1], row)
    for role, row in granted.items():
        if role not in roles and role not in members:
            message = f"no rule asks for role `{role}`, nor for one above it"
            yield row.fault(1, message, "warning").fault
    yield from _misspelt_roles(asked, granted, members)


def _misspelt_roles(
    asked: Iterable[TestedRole], granted: Iterable[str], members: set[str]
) -> Iterator[Fault]:
    """Warn of roles that nobody has and that are nearly called like one that somebody has."""
    known = set(granted)
    if len(known) > NEAR_ROLES_MAX:
        return
    strange = (
        (one, one.role)
        for one in asked
        if one.role not in known
        and one.role not in members
        and not {"/", "@"} & set(one.role or "")
    )
    for one, role in islice(strange, MISSPELT_MAX):
        if hint := did_you_mean(role or "", known):
            yield one.warning(f"no `{one.definition}` row gives role `{role}`{hint}")


# --- rules --------------------------------------------------------------------------------------


def _hidden_rules(section: LintedSection) -> Iterator[Fault]:
    """Warn of rules that decide nothing, since another one does whenever they match.

    A rule is hidden only by one whose conditions are all among its own. Each rule is filed under
    the rarest of its conditions, so that few are compared.
    """
    counts = Counter(condition for one in section.rules for condition in one.conditions)
    filed: dict[int | None, list[LintedRule]] = {}
    for one in section.rules:
        rarest = min(one.conditions, key=counts.__getitem__, default=None)
        filed.setdefault(rarest, []).append(one)
    for one in section.rules:
        for condition in (None, *sorted(one.conditions)):
            for other in filed.get(condition, ())[:SCAN_MAX]:
                if message := _hides(other, one, section.section.effect):
                    yield one.row.line_fault(message, "warning").fault
                    break
            else:
                continue
            break


def _hides(other: LintedRule, one: LintedRule, effect: Effect) -> str | None:
    by, rule = other.rule, one.rule
    if by is rule or not other.conditions <= one.conditions:
        return None
    whenever = f"rule `{by.id}` {_DOES[by.effect]} whenever this one matches"
    if effect.first_match:
        return f"never decides: {whenever}, and comes first" if by.order < rule.order else None
    if by.effect is not rule.effect:
        stricter = _STRICT.index(by.effect) > _STRICT.index(rule.effect)
        return f"never decides: {whenever}" if stricter else None
    later = by.order < rule.order or other.conditions < one.conditions
    return f"adds nothing: {whenever}" if later and by.obligation == rule.obligation else None
