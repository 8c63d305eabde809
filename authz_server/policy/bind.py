"""Put one rule's columns into the matcher and fold what is constant.

The result holds no column: it is `Constant(True)` for a rule that always matches, and a fault for
one that never can. Parts that folding leaves behind are not checked further: in
`p.kind == "*" || r.sub.kind == p.kind` the second half does not exist for a rule whose kind is `*`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from authz_server.core.errors import Fault, InvalidValueError
from authz_server.core.suggestion import did_you_mean
from authz_server.policy.check import check_condition
from authz_server.policy.functions import Function, compile_constants, time_test
from authz_server.policy.model import Model
from authz_server.policy.patterns import TextMap, TextTest
from authz_server.policy.roles import RoleGraph
from authz_server.policy.rows import Row
from authz_server.policy.runtime import ARITHMETIC, EvaluationError, compare, equal
from authz_server.policy.source import FaultLog, Fragment
from authz_server.policy.terms import (
    Apply,
    Arithmetic,
    Between,
    Broken,
    Column,
    Constant,
    Contains,
    Either,
    Equal,
    Every,
    HasRole,
    Negation,
    OneOf,
    Order,
    RuleText,
    Slot,
    Term,
    Truth,
    parts,
)

TRUE: Final = Constant(value=True, at=0)
FALSE: Final = Constant(value=False, at=0)


@dataclass(slots=True)
class Compiled:
    """Compiled function arguments, shared by every rule that gives the same ones."""

    functions: dict[tuple[str, tuple[str, ...]], TextTest | TextMap] = field(default_factory=dict)

    def function(self, function: Function, constants: tuple[str, ...]) -> TextTest | TextMap:
        """Return `function` for these constants. Raises `InvalidValueError`."""
        key = (function.name, constants)
        if key not in self.functions:
            self.functions[key] = compile_constants(function, constants)
        return self.functions[key]


class Binder:
    """Binds the rows of one bundle."""

    def __init__(self, model: Model, roles: Mapping[str, RoleGraph], log: FaultLog) -> None:
        self._model = model
        self._roles = roles
        self._log = log
        self._matcher = check_condition(model.matcher, model, log)
        self._rules: dict[str, Term] = {}
        self._rule_columns = sorted(_rule_columns(self._matcher))
        self.compiled = Compiled()

    def bind(self, row: Row) -> Term:
        """Return the matcher with the columns of `row`; faults go to the log."""
        for column in self._rule_columns:
            self.rule_text(row, column)  # also where folding would leave the column out
        return _Binding(self, row, self._model.matcher).bind(self._matcher)

    def report(self, fault: Fault) -> None:
        """Keep a fault and go on, so that all of a row's are found."""
        self._log.add(fault)

    def rule_text(self, row: Row, column: int) -> Term:
        """Return the checked expression in one column; equal texts are checked once."""
        text = row.values[column]
        known = self._rules.get(text)
        if known is not None:
            return known
        log = FaultLog()
        term = check_condition(row.fragment(column), self._model, log, rule=True)
        for fault in (*log.faults, *log.warnings):
            self._log.add(fault)
        if log.faults:
            return Broken()
        self._rules[text] = term
        return term

    def check_role_rows(self, name: str) -> None:
        """Refuse a role test without role rows: `!g(r.sub.id, "banned")` would hold for all."""
        if not self._roles[name].roles:
            at = self._model.roles[name].at
            self._log.add(at.fault(0, f"a rule uses `{name}`, but there is no `{name}` row"))

    def role_test(self, term: HasRole) -> object:
        """Return the test that `term` calls."""
        return self._roles[term.definition].test(identity=term.identity)


@dataclass(frozen=True, slots=True)
class _Binding:
    """One row being bound; `source` is the text whose terms are visited (for faults)."""

    binder: Binder
    row: Row
    source: Fragment

    def _report(self, place: Term, message: str, severity: str = "error") -> None:
        """Report a fault at the literal, or at the row's field if it came from a column."""
        assert isinstance(place, Constant)
        if place.column is not None:
            self.binder.report(self.row.fault(place.column, message, severity).fault)
        else:
            self.binder.report(self.source.fault(place.at, message, severity))

    def bind(self, term: Term) -> Term:  # noqa: PLR0912 -- one case per kind of term
        match term:
            case Column(index=index):
                return Constant(self.row.values[index], 0, index)
            case Every(items=items):
                return self._every(items)
            case Either(items=items):
                return self._either(items)
            case Negation(operand=operand):
                bound = self.bind(operand)
                return _truth(not bound.value) if isinstance(bound, Constant) else Negation(bound)
            case Truth(operand=operand):
                return Truth(self.bind(operand))
            case Equal(left=left, right=right):
                return self._equal(self.bind(left), self.bind(right))
            case Order():
                return self._order(term)
            case OneOf(item=item, options=options):
                return self._one_of(self.bind(item), tuple(map(self.bind, options)))
            case Contains(item=item, collection=collection):
                return Contains(self.bind(item), self.bind(collection))
            case Arithmetic():
                return self._arithmetic(term)
            case Apply():
                return self._apply(term)
            case Between():
                return self._between(term)
            case HasRole(definition=definition, arguments=arguments, identity=identity):
                self.binder.check_role_rows(definition)
                return HasRole(definition, tuple(map(self.bind, arguments)), identity)
            case RuleText(column=column):
                return self._rule_text(column)
            case _:
                return term

    def _rule_text(self, column: Column) -> Term:
        text = self.binder.rule_text(self.row, column.index)
        return _Binding(self.binder, self.row, self.row.fragment(column.index)).bind(text)

    def _every(self, items: Sequence[Term]) -> Term:
        bound: list[Term] = []
        for item in items:
            term = self.bind(item)
            if isinstance(term, Constant):
                if not term.value:
                    return FALSE
            elif isinstance(term, Every):
                bound.extend(term.items)
            else:
                bound.append(term)
        return _joined(bound, Every, TRUE)

    def _either(self, items: Sequence[Term]) -> Term:
        bound: list[Term] = []
        for item in items:
            term = self.bind(item)
            if not isinstance(term, Constant):
                bound.append(term)
            elif term.value:
                return TRUE
        return _joined(bound, Either, FALSE)

    def _equal(self, left: Term, right: Term) -> Term:
        if isinstance(left, Constant) and isinstance(right, Constant):
            both_nil = left.value is None and right.value is None
            return _truth(both_nil or equal(left.value, right.value))
        self._check_choice(left, right)
        self._check_choice(right, left)
        return Equal(left, right)

    def _check_choice(self, slot: Term, constant: Term) -> None:
        """Refuse a constant that the attribute can never have."""
        if not (isinstance(slot, Slot) and isinstance(constant, Constant)):
            return
        choices, value = slot.spec.choices, constant.value
        if choices and isinstance(value, str) and value not in choices:
            hint = did_you_mean(value, choices) or f" (one of {', '.join(sorted(choices))})"
            if value == "*":
                hint = "; `==` knows no wildcard"
            self._report(constant, f"can never match: `{value}` is no value of `{slot}`{hint}")

    def _order(self, term: Order) -> Term:
        left, right = self.bind(term.left), self.bind(term.right)
        if isinstance(left, Constant) and isinstance(right, Constant):
            return _truth(compare(term.operator, left.value, right.value))
        return Order(term.operator, left, right)

    def _arithmetic(self, term: Arithmetic) -> Term:
        left, right = self.bind(term.left), self.bind(term.right)
        if not (isinstance(left, Constant) and isinstance(right, Constant)):
            return Arithmetic(term.operator, left, right, term.type, term.at)
        try:
            value = ARITHMETIC[term.operator](left.value, right.value)
        except (EvaluationError, ArithmeticError) as error:
            self.binder.report(self.source.fault(term.at, f"cannot be computed: {error}"))
            return Broken()
        assert isinstance(value, str | int | float)
        return Constant(value, term.at, left.column if right.column is None else right.column)

    def _one_of(self, item: Term, options: tuple[Term, ...]) -> Term:
        for option in options:
            self._check_choice(item, option)
        constants = [option for option in options if isinstance(option, Constant)]
        if not isinstance(item, Constant) or len(constants) < len(options):
            return OneOf(item, options)
        return _truth(any(equal(item.value, option.value) for option in constants))

    def _apply(self, term: Apply) -> Term:
        value = self.bind(term.value)
        constants = tuple(map(self.bind, term.constants))
        try:
            compiled = self.binder.compiled.function(term.function, texts(constants))
        except InvalidValueError as error:
            self._report(constants[0], f"{term.function.name}: {error}")
            return Broken()
        advice = term.function.advice and term.function.advice(texts(constants))
        if advice:
            self._report(constants[0], f"{term.function.name}: {advice}", "warning")
        if not isinstance(value, Constant):
            return Apply(term.function, value, constants, term.at)
        assert isinstance(value.value, str)
        return Constant(compiled(value.value), term.at, value.column)

    def _between(self, term: Between) -> Term:
        constants = tuple(map(self.bind, term.constants))
        try:
            time_test(texts(constants))
        except InvalidValueError as error:
            self._report(constants[0], f"timeMatch: {error}")
            return Broken()
        return Between(constants, term.at)


def _rule_columns(term: Term) -> set[int]:
    if isinstance(term, RuleText):
        return {term.column.index}
    return set[int]().union(*map(_rule_columns, parts(term)))


def texts(constants: Sequence[Term]) -> tuple[str, ...]:
    """Return the texts of constant arguments."""
    found = []
    for constant in constants:
        if not isinstance(constant, Constant) or not isinstance(constant.value, str):
            raise EvaluationError("a constant argument is no text")
        found.append(constant.value)
    return tuple(found)


def _joined(items: list[Term], kind: type[Every] | type[Either], empty: Constant) -> Term:
    if not items:
        return empty
    return items[0] if len(items) == 1 else kind(tuple(items))


def _truth(value: bool) -> Constant:
    return TRUE if value else FALSE
