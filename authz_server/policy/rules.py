"""From the rows of a bundle to compiled, indexed rules."""

import re
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from authz_server.core.decision import Verdict
from authz_server.core.errors import Fault, InvalidValueError
from authz_server.core.suggestion import did_you_mean
from authz_server.policy.argument_lint import Protocols, arguments_read, protocols_admitted
from authz_server.policy.bind import TRUE, Binder
from authz_server.policy.compile import Compiler, Matcher, Piece
from authz_server.policy.index import Guard, Guards, Node, build, guards_of, joined
from authz_server.policy.limits import ROWS_MAX, RULE_ID_CHARS_MAX
from authz_server.policy.lint import LintedRule, LintedSection, lint
from authz_server.policy.model import PLAIN, Effect, Model, RoleDefinition, Section
from authz_server.policy.order import put_in_order
from authz_server.policy.role_walk import RoleWalk
from authz_server.policy.roles import RoleGraph, Roles
from authz_server.policy.rows import Row, read_rows
from authz_server.policy.source import FaultFound, FaultLog, SourceFile
from authz_server.policy.table import PolicyTable, read_table
from authz_server.policy.terms import Term, can_fail


@dataclass(frozen=True, slots=True)
class Rule:
    """One compiled rule.

    `section` counts the policy types of the model from 0; `order` is its place among all rules, by
    section, priority and file.
    """

    id: str
    effect: Verdict
    obligation: str | None
    file: str
    line: int
    order: int
    matches: Matcher
    section: int = 0


class RuleObserver(Protocol):
    """Is told of every rule what the rule itself does not keep, because no decision needs it."""

    def __call__(
        self, rule: Rule, row: Row, conjuncts: tuple[Term, ...], compiler: Compiler
    ) -> None:
        """Take `rule`, the row it stands in, and its condition: all of `conjuncts`, in order.

        `compiler` compiles any part of them to what the rule itself evaluates.
        """


def unobserved(rule: Rule, row: Row, conjuncts: tuple[Term, ...], compiler: Compiler) -> None:
    """Keep nothing: what serving does."""


_EFFECTS: Final = {verdict.value: verdict for verdict in Verdict}
_ID = re.compile(r"[!-~]+")


def load_rules(
    files: Sequence[SourceFile | PolicyTable],
    role_files: Sequence[SourceFile],
    model: Model,
    log: FaultLog,
    observe: RuleObserver = unobserved,
) -> tuple[tuple[Rule, ...], Node[Rule]]:
    """Return the rules, section by section in their order, and the index over all of them.

    Meaningless when `log` holds faults.
    """
    rows, links = _sorted_rows(files, role_files, model, log)
    roles = {name: _roles(one, links[name], model, log) for name, one in model.roles.items()}
    whole = _Whole(model=model, roles=roles, log=log, observe=observe)
    guarded: list[tuple[Rule, Guards]] = []
    linted: list[LintedSection] = []
    for number, section in enumerate(model.sections):
        builder = _RuleBuilder(number, section, whole)
        if not log.faults:
            put_in_order(rows[section.policy_root], section, links, log)
        if log.faults and _matcher_is_broken(section, log):
            continue
        for row in rows[section.policy_root]:
            with log.collecting():
                builder.add(row)
        guarded += builder.guarded
        linted.append(builder.linted())
    if not log.faults:
        lint(model, linted, links, log)
    return tuple(whole.rules), build(guarded, roles)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """What the sections of one bundle share; `rules` and `ids` grow with each row."""

    model: Model
    roles: Mapping[str, Roles]
    log: FaultLog
    observe: RuleObserver
    rules: list[Rule] = field(default_factory=list)
    ids: dict[str, Row] = field(default_factory=dict)


def check_matching(model: Model, file: str, log: FaultLog) -> None:
    """Refuse in the manifest `file` a matching function for what the model does not define."""
    for name, one in model.matching.items():
        definition = model.roles.get(name)
        if definition is None:
            hint = did_you_mean(name, model.roles)
            message = f"a matching function for `{name}`, which the model does not define{hint}"
        elif one.domains is not None and definition.arity < 3:
            message = f"`domain_matching` for `{name}`, which has no domain"
        else:
            continue
        log.add(Fault(file=file, message=message))


def _matcher_is_broken(section: Section, log: FaultLog) -> bool:
    return any(fault.file == section.matcher.file.name for fault in log.faults)


def _sorted_rows(
    files: Sequence[SourceFile | PolicyTable],
    role_files: Sequence[SourceFile],
    model: Model,
    log: FaultLog,
) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    rules: dict[str, list[Row]] = {one.policy_root: [] for one in model.sections}
    links: dict[str, list[Row]] = {name: [] for name in model.roles}
    for file in (*files, *role_files):
        count = 0
        read = read_table(file, log) if isinstance(file, PolicyTable) else read_rows(file, log)
        for found in read:
            count += 1
            with log.collecting():
                row = _check_kind(found, model, roles_only=file in role_files)
                (rules if row.kind in rules else links)[row.kind].append(row)
        if not count and not any(fault.file == file.name for fault in log.faults):
            log.add(file.fault(0, file.empty))
    for root, found_rows in rules.items():
        if not found_rows and not log.faults:
            which = "" if len(rules) == 1 else f" for `{root}`"
            log.add(files[0].fault(0, f"the policy holds no rule{which}"))
    if sum(map(len, (*rules.values(), *links.values()))) > ROWS_MAX:
        log.add(files[0].fault(0, f"more than {ROWS_MAX} rows"))
    return rules, links


def _check_kind(row: Row, model: Model, *, roles_only: bool) -> Row:
    """Return the row without surplus columns; refuse one of unknown type or wrong length."""
    section = None if roles_only else model.section(row.kind)
    definition = model.roles.get(row.kind)
    if section is not None:
        count, names = len(section.columns), f" ({', '.join(section.columns)})"
    elif definition is not None:
        count, names = definition.width, " (with beginning and end)" if definition.temporal else ""
    else:
        raise _unknown_kind(row, model, roles_only=roles_only)
    row = row.without_surplus(count)
    if len(row.values) != count:
        raise row.line_fault(
            f"{len(row.values)} fields after `{row.kind}`, the model says {count}{names}"
        )
    if definition is not None and not all(row.values):
        raise row.line_fault("an empty name in a role row")
    return row


def _unknown_kind(row: Row, model: Model, *, roles_only: bool) -> FaultFound:
    known = [*([] if roles_only else (one.policy_root for one in model.sections)), *model.roles]
    hint = "" if model.roles else "; the model defines no roles"
    expected = " or ".join(f"`{kind}`" for kind in known) or "none"
    return row.line_fault(f"unknown row type `{row.kind}`, expected {expected}{hint}")


def _roles(
    definition: RoleDefinition,
    rows: Sequence[Row],
    model: Model,
    log: FaultLog,
) -> Roles:
    """Return the roles of one definition; what is wrong with its rows goes to the log."""
    patterns = model.matching.get(definition.name, PLAIN)
    if definition.temporal or patterns != PLAIN:
        walk = RoleWalk(definition, patterns)
        for row in rows:
            try:
                walk.add(row.values)
            except InvalidValueError as error:
                log.add(row.line_fault(f"`{definition.name}`: {error}").fault)
        return walk
    try:
        return RoleGraph.build(row.values for row in rows)
    except InvalidValueError as error:
        log.add(rows[0].line_fault(f"`{definition.name}`: {error}").fault)
        return RoleGraph({}, frozenset(row.values[1] for row in rows))


@dataclass(frozen=True, slots=True)
class _Part:
    """What one operand of the matcher comes to: conditions that cannot fail, and those that can."""

    safe: tuple[tuple[Term, Piece], ...]
    fallible: tuple[tuple[Term, Piece], ...]
    guards: tuple[Guard, ...]
    conditions: tuple[int, ...]  # their numbers: equal ones have equal numbers
    arguments: frozenset[str]
    protocols: Protocols


class _RuleBuilder:
    """Compiles the rows of one section one by one and keeps what makes them unique."""

    def __init__(self, number: int, section: Section, whole: _Whole) -> None:
        self._number = number
        self._section = section
        self._whole = whole
        self._log = whole.log
        roles = whole.roles
        # Weak, because the binder is ours: a cycle would keep every row and term of a load until
        # the collector comes and visits them all in one piece, with every request waiting.
        prepare = weakref.WeakMethod(self._prepare)

        def prepared(conjuncts: tuple[Term, ...]) -> _Part:
            method = prepare()
            assert method is not None, "the binder is used by its builder only"
            return method(conjuncts)

        self._binder = Binder(section, whole.model.roles, roles, self._log, prepared)
        self._compiler = Compiler(self._binder)
        self._numbers: dict[Piece, int] = {}
        self._linted: list[LintedRule] = []
        self.guarded: list[tuple[Rule, Guards]] = []

    def _prepare(self, conjuncts: tuple[Term, ...]) -> _Part:
        pieces = [(term, self._compiler.piece(term)) for term in conjuncts]
        fallible: list[tuple[Term, Piece]] = []
        safe: list[tuple[Term, Piece]] = []
        for pair in pieces:
            (fallible if can_fail(pair[0]) else safe).append(pair)
        guards = [guard for term in conjuncts for guard in guards_of(term, self._whole.roles)]
        numbers = [self._numbers.setdefault(piece, len(self._numbers)) for _, piece in pieces]
        return _Part(
            tuple(safe),
            tuple(fallible),
            tuple(guards),
            tuple(numbers),
            arguments_read(conjuncts),
            protocols_admitted(conjuncts),
        )

    def linted(self) -> LintedSection:
        """Return what the linter needs to know of the rules added."""
        return LintedSection(
            section=self._section,
            rules=self._linted,
            read=self._binder.read_columns,
            tested=tuple(self._binder.tested.values()),
        )

    def add(self, row: Row) -> None:
        """Compile `row`. Every fault of its reserved columns and one of its condition are found."""
        before = len(self._log.faults) + self._binder.errors
        rule_id, effect, obligation = "", Verdict.ALLOW, None
        with self._log.collecting():
            rule_id = self._id(row)
        with self._log.collecting():
            effect = self._effect(row)
            obligation = self._obligation(row, effect)
        parts = self._binder.bind(row)
        if len(self._log.faults) + self._binder.errors > before:
            return
        guards = None if parts is None else joined(one for part in parts for one in part.guards)
        if parts is None or guards is None:
            raise row.line_fault("this rule can never match")
        pairs = [pair for part in parts for pair in part.safe]
        pairs += [pair for part in parts for pair in part.fallible]
        pieces = [piece for _, piece in pairs]
        rule = Rule(
            id=rule_id,
            effect=effect,
            obligation=obligation,
            file=row.file.name,
            line=row.line,
            order=len(self._whole.rules),
            matches=self._compiler.join(pieces),
            section=self._number,
        )
        self._whole.rules.append(rule)
        self.guarded.append((rule, guards))
        conditions = frozenset([number for part in parts for number in part.conditions])
        arguments = frozenset().union(*(part.arguments for part in parts))
        protocols = frozenset[str]()
        if arguments:
            protocols = frozenset.intersection(*(part.protocols for part in parts))
        self._linted.append(LintedRule(rule, row, conditions, arguments, protocols))
        if self._whole.observe is not unobserved:
            terms = tuple(term for term, _ in pairs) or (TRUE,)
            self._whole.observe(rule, row, terms, self._compiler)

    def _value(self, row: Row, name: str) -> tuple[int, str] | None:
        column = self._section.columns.get(name)
        return None if column is None else (column, row.values[column])

    def _id(self, row: Row) -> str:
        found = self._value(row, "id")
        if found is None:
            return f"{row.file.name}:{row.line}"
        column, rule_id = found
        if not rule_id:
            raise row.fault(column, "the rule has no id")
        if len(rule_id) > RULE_ID_CHARS_MAX or not _ID.fullmatch(rule_id):
            message = f"an id is 1 to {RULE_ID_CHARS_MAX} printable ASCII characters, no blank"
            raise row.fault(column, message)
        other = self._whole.ids.setdefault(rule_id, row)
        if other is not row:
            where = f"{other.file.name}:{other.line}"
            raise row.fault(column, f"id `{rule_id}` is given twice, first at {where}")
        return rule_id

    def _effect(self, row: Row) -> Verdict:
        found = self._value(row, "eft")
        if found is None:
            return Verdict.ALLOW
        column, text = found
        if text not in _EFFECTS:
            hint = did_you_mean(text.lower(), _EFFECTS)
            raise row.fault(column, f"unknown effect `{text}`; write allow, deny or escalate{hint}")
        effect = _EFFECTS[text]
        if effect is Verdict.DENY and self._section.effect is Effect.ALLOW_OVERRIDE:
            raise row.fault(column, "the model's effect ignores deny rules: this one does nothing")
        if effect is Verdict.ESCALATE and "obligation" not in self._section.columns:
            raise row.fault(column, "escalate needs an `obligation` column for the approver group")
        return effect

    def _obligation(self, row: Row, effect: Verdict) -> str | None:
        found = self._value(row, "obligation")
        if found is None:
            return None
        column, text = found
        if effect is Verdict.ESCALATE:
            if not text:
                raise row.fault(column, "escalate needs an obligation: the approver group")
            return text
        if text:
            message = f"an obligation means nothing for `{effect}`"
            self._log.add(row.fault(column, message, "warning").fault)
        return None


def rule_ids(rules: Iterable[Rule]) -> tuple[str, ...]:
    """Return the ids of `rules` in the order of their files."""
    return tuple(rule.id for rule in sorted(rules, key=lambda rule: rule.order))
