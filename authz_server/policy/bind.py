"""Put one rule's columns into the matcher and fold what is constant.

The result holds no column: it is `Constant(True)` for a rule that always matches, and a fault for
one that never can. Parts that folding leaves behind are not checked further: in
`p.kind == "*" || r.sub.kind == p.kind` the second half does not exist for a rule whose kind is `*`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Generic, TypeVar

from authz_server.core.errors import Fault, InvalidValueError
from authz_server.core.suggestion import did_you_mean
from authz_server.policy.check import check_condition
from authz_server.policy.compiled import Compiled
from authz_server.policy.functions import time_test
from authz_server.policy.lint import TestedRole
from authz_server.policy.model import RoleDefinition, Section
from authz_server.policy.roles import Roles
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


P = TypeVar("P")
Conjuncts = tuple[Term, ...]
_CACHED_MAX: Final = 4_096  # different values of one operand's columns; more are bound row by row


@dataclass(frozen=True, slots=True)
class _Operand:
    """One operand of a matcher: the columns it reads, and those among them that hold its text."""

    term: Term
    columns: tuple[int, ...]
    text_columns: tuple[int, ...]

    @classmethod
    def of(cls, term: Term) -> "_Operand":
        columns, text_columns = _columns(term)
        return cls(term, tuple(sorted(columns)), tuple(sorted(text_columns)))


class Binder(Generic[P]):
    """Binds the rows of one section.

    Rows share most of what they say, so each operand of the matcher is bound, and prepared for
    what comes after, once for each different value of the columns it reads, as long as nothing is
    wrong with it. `prepare` is given the conditions an operand comes to, none if it always holds.
    """

    def __init__(
        self,
        section: Section,
        definitions: Mapping[str, RoleDefinition],
        roles: Mapping[str, Roles],
        log: FaultLog,
        prepare: Callable[[Conjuncts], P],
    ) -> None:
        self._prepare = prepare
        self._section = section
        self._definitions = definitions
        self._roles = roles
        self._log = log
        self._reports = 0
        self.errors = 0  # reported so far, also those that the log had already
        matcher = check_condition(section.matcher, section, definitions, log)
        operands = matcher.items if isinstance(matcher, Every) else (matcher,)
        self._operands = [_Operand.of(operand) for operand in operands]
        self._bound: list[dict[tuple[str, ...], P | None]] = [{} for _ in operands]
        self._rules: dict[str, tuple[Term, list[int]]] = {}
        self.tested: dict[tuple[str, str | None], TestedRole] = {}
        self._role_tests: dict[tuple[str, bool], Callable[..., bool]] = {}
        self.compiled = Compiled()

    def bind(self, row: Row) -> list[P] | None:
        """Return what `row` demands, one prepared part for each operand of the matcher.

        None: the rule can never match, or is at fault, which `errors` tells and the log explains.
        """
        found: list[P] | None = []
        for operand, known in zip(self._operands, self._bound, strict=True):
            key = [row.values[column] for column in operand.columns]
            for column in operand.text_columns:
                key += [row.values[other] for other in self.rule_text(row, column)[1]]
            part = self._part(operand.term, row, tuple(key), known)
            if part is None:
                found = None  # the other operands may still be at fault
            elif found is not None:
                found.append(part)
        return found

    def _part(
        self,
        operand: Term,
        row: Row,
        key: tuple[str, ...],
        known: dict[tuple[str, ...], P | None],
    ) -> P | None:
        if key in known:
            return known[key]
        before, errors = self._reports, self.errors
        conjuncts = _conjuncts(_Binding(self, row, self._section.matcher).bind(operand))
        part = None if conjuncts is None or self.errors > errors else self._prepare(conjuncts)
        if self._reports == before and len(known) < _CACHED_MAX:
            known[key] = part
        return part

    def report(self, fault: Fault) -> None:
        """Keep a fault and go on, so that all of a row's are found."""
        self._reports += 1
        self.errors += fault.severity == "error"
        self._log.add(fault)

    def rule_text(self, row: Row, column: int) -> tuple[Term, list[int]]:
        """Return the checked expression in one column, and the columns that it reads itself.

        Equal texts are checked once.
        """
        text = row.values[column]
        known = self._rules.get(text)
        if known is not None:
            return known
        log = FaultLog()
        fragment = row.fragment(column)
        term = check_condition(fragment, self._section, self._definitions, log, rule=True)
        for fault in (*log.faults, *log.warnings):
            self.report(fault)
        if log.faults:
            return Broken(), []
        self._rules[text] = term, sorted(_columns(term)[0])
        return self._rules[text]

    @property
    def read_columns(self) -> frozenset[int]:
        """The columns that the matcher and the rules bound so far look at."""
        read = [operand.columns for operand in self._operands]
        return frozenset(chain(*read, *(columns for _, columns in self._rules.values())))

    def role_term(self, term: HasRole, arguments: tuple[Term, ...], row: Row) -> HasRole:
        """Return a role test over bound arguments.

        Refuses one without role rows: `!g(r.sub.id, "banned")` would hold for all.
        """
        name, role = term.definition, arguments[1]
        asked = str(role.value) if isinstance(role, Constant) else None
        if (name, asked) not in self.tested:
            column = role.column if isinstance(role, Constant) else None
            self.tested[name, asked] = TestedRole(name, asked, row, column)
        if self._roles[name].empty and not self._log.faults:
            at = self._definitions[name].at
            self.report(at.fault(0, f"a rule uses `{name}`, but there is no `{name}` row"))
        return HasRole(name, arguments, term.identity, self._roles[name].live)

    def roles(self, definition: str) -> Roles:
        """Return the roles that a test of `definition` looks at."""
        return self._roles[definition]

    def role_test(self, definition: str, *, identity: bool) -> Callable[..., bool]:
        """Return the one function that all such role tests call."""
        key = (definition, identity)
        if key not in self._role_tests:
            self._role_tests[key] = self._roles[definition].test(identity=identity)
        return self._role_tests[key]


@dataclass(frozen=True, slots=True)
class _Binding:
    """One row being bound; `source` is the text whose terms are visited (for faults)."""

    binder: Binder[Any]
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
            case HasRole(arguments=arguments):
                return self.binder.role_term(term, tuple(map(self.bind, arguments)), self.row)
            case RuleText(column=column):
                return self._rule_text(column)
            case _:
                return term

    def _rule_text(self, column: Column) -> Term:
        text, _ = self.binder.rule_text(self.row, column.index)
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
            self.binder.compiled.check(term.function, texts(constants))
        except InvalidValueError as error:
            self._report(constants[0], f"{term.function.name}: {error}")
            return Broken()
        advice = term.function.advice and term.function.advice(texts(constants))
        if advice:
            self._report(constants[0], f"{term.function.name}: {advice}", "warning")
        if not isinstance(value, Constant):
            return Apply(term.function, value, constants, term.at)
        assert isinstance(value.value, str)
        compiled = self.binder.compiled.function(term.function, texts(constants))
        return Constant(compiled(value.value), term.at, value.column)

    def _between(self, term: Between) -> Term:
        constants = tuple(map(self.bind, term.constants))
        try:
            time_test(texts(constants))
        except InvalidValueError as error:
            self._report(constants[0], f"timeMatch: {error}")
            return Broken()
        return Between(constants, term.at)


def _columns(term: Term) -> tuple[set[int], set[int]]:
    """Return the columns whose values `term` reads, and those among them that hold its text."""
    if isinstance(term, Column):
        return {term.index}, set()
    if isinstance(term, RuleText):
        return {term.column.index}, {term.column.index}
    found = [_columns(part) for part in parts(term)]
    return set[int]().union(*(one for one, _ in found)), set[int]().union(
        *(two for _, two in found)
    )


def _conjuncts(bound: Term) -> Conjuncts | None:
    """Return a bound operand as conditions that must all hold; None if they never do."""
    if isinstance(bound, Constant):
        return () if bound.value else None
    return bound.items if isinstance(bound, Every) else (bound,)


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
