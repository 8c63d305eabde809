"""From the rows of a bundle to compiled, indexed rules."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from authz_server.core.decision import Verdict
from authz_server.core.errors import InvalidValueError
from authz_server.core.suggestion import did_you_mean
from authz_server.policy.bind import FALSE, Binder
from authz_server.policy.compile import Compiler, Matcher
from authz_server.policy.index import Guards, Node, build, guards_of, split_condition
from authz_server.policy.limits import ROWS_MAX, RULE_ID_CHARS_MAX
from authz_server.policy.model import Effect, Model
from authz_server.policy.roles import RoleGraph
from authz_server.policy.rows import Row, read_rows
from authz_server.policy.source import FaultLog, SourceFile
from authz_server.policy.table import PolicyTable, read_table
from authz_server.policy.terms import Every, Term


@dataclass(frozen=True, slots=True)
class Rule:
    """One compiled rule. `order` is its place among all rules, by priority and then by file."""

    id: str
    effect: Verdict
    obligation: str | None
    file: str
    line: int
    order: int
    matches: Matcher


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
    """Return the rules in file order and their index; meaningless when `log` holds faults."""
    rows, links = _sorted_rows(files, role_files, model, log)
    binder = Binder(model, _role_graphs(model, links, files, log), log)
    builder = _RuleBuilder(model, binder, log, observe)
    if not log.faults:
        _order_by_priority(rows, model, log)
    if log.faults and _matcher_is_broken(model, log):
        return (), Node()
    for row in rows:
        with log.collecting():
            builder.add(row)
    return tuple(builder.rules), build(builder.guarded)


def _matcher_is_broken(model: Model, log: FaultLog) -> bool:
    return any(fault.file == model.matcher.file.name for fault in log.faults)


def _sorted_rows(
    files: Sequence[SourceFile | PolicyTable],
    role_files: Sequence[SourceFile],
    model: Model,
    log: FaultLog,
) -> tuple[list[Row], dict[str, list[Row]]]:
    rules: list[Row] = []
    links: dict[str, list[Row]] = {name: [] for name in model.roles}
    for file in (*files, *role_files):
        count = 0
        read = read_table(file, log) if isinstance(file, PolicyTable) else read_rows(file, log)
        for found in read:
            count += 1
            with log.collecting():
                row = _check_kind(found, model, roles_only=file in role_files)
                (rules if row.kind == "p" else links[row.kind]).append(row)
        if not count and not any(fault.file == file.name for fault in log.faults):
            log.add(file.fault(0, file.empty))
    if not rules and not log.faults:
        log.add(files[0].fault(0, "the policy holds no rule"))
    if len(rules) + sum(map(len, links.values())) > ROWS_MAX:
        log.add(files[0].fault(0, f"more than {ROWS_MAX} rows"))
    return rules, links


def _check_kind(row: Row, model: Model, *, roles_only: bool) -> Row:
    """Return the row without surplus columns; refuse one of unknown type or wrong length."""
    known = list(model.roles) if roles_only else ["p", *model.roles]
    if row.kind not in known:
        hint = "" if model.roles else "; the model defines no roles"
        expected = " or ".join(f"`{kind}`" for kind in known) or "none"
        raise row.line_fault(f"unknown row type `{row.kind}`, expected {expected}{hint}")
    count = len(model.columns) if row.kind == "p" else model.roles[row.kind].arity
    row = row.without_surplus(count)
    if len(row.values) != count:
        names = f" ({', '.join(model.columns)})" if row.kind == "p" else ""
        raise row.line_fault(
            f"{len(row.values)} fields after `{row.kind}`, the model says {count}{names}"
        )
    if row.kind != "p" and not all(row.values):
        raise row.line_fault("an empty name in a role row")
    return row


def _role_graphs(
    model: Model,
    links: Mapping[str, Sequence[Row]],
    files: Sequence[SourceFile | PolicyTable],
    log: FaultLog,
) -> dict[str, RoleGraph]:
    graphs: dict[str, RoleGraph] = {}
    for name in model.roles:
        try:
            graphs[name] = RoleGraph.build(row.values for row in links[name])
        except InvalidValueError as error:
            log.add(files[0].fault(0, f"`{name}`: {error}"))
    return graphs


def _order_by_priority(rows: list[Row], model: Model, log: FaultLog) -> None:
    """Sort by an explicit `priority` column, smallest first, as Casbin does."""
    column = model.columns.get("priority")
    if model.effect is not Effect.PRIORITY or column is None:
        return
    for row in rows:
        if not re.fullmatch(r"-?[0-9]{1,9}", row.values[column]):
            message = f"priority `{row.values[column]}` is not a whole number"
            log.add(row.fault(column, message).fault)
    if not log.faults:
        rows.sort(key=lambda row: int(row.values[column]))


class _RuleBuilder:
    """Compiles rows one by one and keeps what makes them unique."""

    def __init__(self, model: Model, binder: Binder, log: FaultLog, observe: RuleObserver) -> None:
        self._observe = observe
        self._model = model
        self._binder = binder
        self._compiler = Compiler(binder)
        self._log = log
        self._ids: dict[str, Row] = {}
        self.rules: list[Rule] = []
        self.guarded: list[tuple[Rule, Guards]] = []

    def add(self, row: Row) -> None:
        """Compile `row`. Every fault of its reserved columns and one of its condition are found."""
        before = len(self._log.faults)
        rule_id, effect, obligation = f"{row.file.name}:{row.line}", Verdict.ALLOW, None
        with self._log.collecting():
            rule_id = self._id(row)
        with self._log.collecting():
            effect = self._effect(row)
            obligation = self._obligation(row, effect)
        condition = self._binder.bind(row)
        if len(self._log.faults) > before:
            return
        guards = guards_of(condition)
        if condition == FALSE or guards is None:
            raise row.line_fault("this rule can never match")
        safe, fallible = split_condition(condition)
        ordered = (*safe, *fallible)
        rule = Rule(
            id=rule_id,
            effect=effect,
            obligation=obligation,
            file=row.file.name,
            line=row.line,
            order=len(self.rules),
            matches=self._compiler.compile(ordered[0] if len(ordered) == 1 else Every(ordered)),
        )
        self.rules.append(rule)
        self.guarded.append((rule, guards))
        self._observe(rule, row, ordered, self._compiler)

    def _value(self, row: Row, name: str) -> tuple[int, str] | None:
        column = self._model.columns.get(name)
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
        other = self._ids.setdefault(rule_id, row)
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
        if effect is Verdict.DENY and self._model.effect is Effect.ALLOW_OVERRIDE:
            raise row.fault(column, "the model's effect ignores deny rules: this one does nothing")
        if effect is Verdict.ESCALATE and "obligation" not in self._model.columns:
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
