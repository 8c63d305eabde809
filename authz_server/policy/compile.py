"""Turn a bound condition into a Python function.

The function is built from `ast` nodes, never from text: no character of a policy is ever parsed as
Python. It reads fixed slots of the attribute records and reaches no name but those in
`runtime.NAMES`. Constants are its default arguments, so that rules which differ only in their
constants share one code object (`shape` below is what they share).
"""

import ast
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Final, cast

from authz_server.core.attributes import (
    ActionAttributes,
    ChainAttributes,
    EnvironmentAttributes,
    ObjectAttributes,
    PartyAttributes,
)
from authz_server.policy.bind import Binder, texts
from authz_server.policy.functions import time_test
from authz_server.policy.runtime import NAMES
from authz_server.policy.terms import (
    Apply,
    Arithmetic,
    Between,
    Constant,
    Contains,
    Either,
    Element,
    Equal,
    Every,
    HasRole,
    MapValue,
    Negation,
    OneOf,
    Order,
    Slot,
    Term,
    Truth,
    Type,
    type_of,
)

Matcher = Callable[
    [
        PartyAttributes,
        ChainAttributes,
        ActionAttributes,
        ObjectAttributes,
        EnvironmentAttributes,
    ],
    bool,
]
Shape = tuple[object, ...]

RECORDS: Final = ("sub", "chain", "act", "obj", "env")
_ORDERS: Final = {"<": ast.Lt, "<=": ast.LtE, ">": ast.Gt, ">=": ast.GtE}


class Compiler:
    """Compiles the conditions of one bundle; holds the code objects they share."""

    def __init__(self, binder: Binder) -> None:
        self._binder = binder
        self._codes: dict[Shape, CodeType] = {}
        self._names = dict(NAMES)

    @property
    def code_count(self) -> int:
        """How many different code objects the conditions needed."""
        return len(self._codes)

    def compile(self, condition: Term) -> Matcher:
        """Return a function of the five records that tells whether `condition` holds."""
        constants: list[object] = []
        shape = _Shaper(self._binder, constants).shape(condition)
        key = (len(constants), shape)
        code = self._codes.get(key)
        if code is None:
            code = self._codes[key] = _code(shape, len(constants))
        return cast(Matcher, FunctionType(code, self._names, "rule", tuple(constants)))


class _Shaper:
    """Describes a condition as nested tuples, its constants moved to a list."""

    def __init__(self, binder: Binder, constants: list[object]) -> None:
        self._binder = binder
        self._constants = constants

    def _keep(self, value: object) -> Shape:
        self._constants.append(value)
        return ("constant", len(self._constants) - 1)

    def shape(self, term: Term) -> Shape:  # noqa: PLR0912 -- one case per kind of term
        match term:
            case Constant(value=value):
                singleton = value is None or isinstance(value, bool)
                return ("is", value) if singleton else self._keep(value)
            case Slot(record=record, field=field):
                return ("slot", record, field)
            case MapValue(slot=slot, key=key):
                return ("call", "read", self.shape(slot), self._keep(key))
            case Element(slot=slot, index=index):
                return ("call", "element", self.shape(slot), self._keep(index))
            case Every(items=items):
                return ("and", *map(self.shape, items))
            case Either(items=items):
                return ("or", *map(self.shape, items))
            case Negation(operand=operand):
                return ("not", self.shape(operand))
            case Truth(operand=operand):
                return ("call", "truth", self.shape(operand))
            case Equal(left=left, right=right):
                return self._equal(left, right)
            case Order():
                return self._order(term)
            case OneOf(item=item, options=options):
                return self._one_of(item, options)
            case Contains(item=item, collection=collection):
                return self._contains(item, collection)
            case Arithmetic(operator=operator, left=left, right=right):
                return ("call", operator, self.shape(left), self.shape(right))
            case Apply(function=function, value=value, constants=constants):
                compiled = self._binder.compiled.function(function, texts(constants))
                return ("apply", self._keep(compiled), self.shape(value), function.returns_text)
            case Between(constants=constants):
                return ("test", self._keep(time_test(texts(constants))), ("slot", "env", "now"))
            case HasRole(arguments=arguments):
                test = self._binder.role_test(term)
                return ("test", self._keep(test), *map(self.shape, arguments))
            case _:
                raise AssertionError(term)  # RuleText, Column and Broken do not survive binding

    def _equal(self, left: Term, right: Term) -> Shape:
        if isinstance(left, Constant):
            left, right = right, left
        first = self.shape(left)
        if isinstance(right, Constant):
            if right.value is None or isinstance(right.value, bool):
                return ("same", first, right.value)
            second = self.shape(right)
            # A text constant is unequal to whatever is not text, by Python's own rules.
            plain = isinstance(right.value, str) or type_of(left) is not Type.ANY
            return ("==", first, second) if plain else ("call", "equal", first, second)
        return ("call", "equal", first, self.shape(right))

    def _order(self, term: Order) -> Shape:
        left, right = term.left, term.right
        # A fixed number attribute against a constant needs no call, only a look at None.
        if isinstance(left, Slot) and isinstance(right, Constant):
            return ("order", term.operator, self.shape(left), self.shape(right))
        order = self._keep(term.operator)
        return ("call", "compare", order, self.shape(left), self.shape(right))

    def _one_of(self, item: Term, options: tuple[Term, ...]) -> Shape:
        values = [option.value for option in options if isinstance(option, Constant)]
        if len(values) == len(options) and all(isinstance(value, str) for value in values):
            return ("in", self.shape(item), self._keep(frozenset(values)))
        tests = [self._equal(item, option) for option in options]
        return tests[0] if len(tests) == 1 else ("or", *tests)

    def _contains(self, item: Term, collection: Term) -> Shape:
        if isinstance(collection, Slot):
            return ("in", self.shape(item), self.shape(collection))
        return ("call", "contains", self.shape(collection), self.shape(item))


def _code(shape: Shape, constants: int) -> CodeType:
    names = [*RECORDS, *(f"k{index}" for index in range(constants))]
    arguments = ast.arguments(
        posonlyargs=[],
        args=[ast.arg(arg=name) for name in names],
        kwonlyargs=[],
        kw_defaults=[],
        defaults=[],
    )
    tree = ast.Expression(ast.Lambda(args=arguments, body=_node(shape)))
    module = compile(ast.fix_missing_locations(tree), "<policy>", "eval")
    return next(value for value in module.co_consts if isinstance(value, CodeType))


def _node(shape: Shape) -> ast.expr:  # noqa: PLR0912 -- one case per kind of shape
    match shape:
        case ("constant", int(index)):
            return _name(f"k{index}")
        case ("is", None | bool() as value):
            return ast.Constant(value)
        case ("slot", str(record), str(field)):
            return ast.Attribute(_name(record), field, ast.Load())
        case ("and", *items):
            return ast.BoolOp(ast.And(), _nodes(items))
        case ("or", *items):
            return ast.BoolOp(ast.Or(), _nodes(items))
        case ("not", item):
            return ast.UnaryOp(ast.Not(), _node(_shape(item)))
        case ("same", item, None | bool() as value):
            return _compare(_node(_shape(item)), ast.Is(), ast.Constant(value))
        case ("==", left, right):
            return _compare(_node(_shape(left)), ast.Eq(), _node(_shape(right)))
        case ("in", left, right):
            return _compare(_node(_shape(left)), ast.In(), _node(_shape(right)))
        case ("order", str(operator), left, right):
            return _order_node(operator, _shape(left), _shape(right))
        case ("call", str(function), *arguments):
            return ast.Call(_name(function), _nodes(arguments), [])
        case ("test", function, *arguments):
            return ast.Call(_node(_shape(function)), _nodes(arguments), [])
        case ("apply", function, value, bool(returns_text)):
            return _apply_node(_shape(function), _shape(value), returns_text=returns_text)
        case _:
            raise AssertionError(shape)


def _apply_node(function: Shape, value: Shape, *, returns_text: bool) -> ast.expr:
    """Return `(t := text(value)) is not None and function(t)`; a text function gives None."""
    held = ast.NamedExpr(ast.Name("t", ast.Store()), ast.Call(_name("text"), [_node(value)], []))
    present = _compare(held, ast.IsNot(), ast.Constant(None))
    call = ast.Call(_node(function), [_name("t")], [])
    if returns_text:
        return ast.IfExp(present, call, ast.Constant(None))
    return ast.BoolOp(ast.And(), [present, call])


def _order_node(operator: str, left: Shape, right: Shape) -> ast.expr:
    present = _compare(_node(left), ast.IsNot(), ast.Constant(None))
    ordered = _compare(_node(left), _ORDERS[operator](), _node(right))
    return ast.BoolOp(ast.And(), [present, ordered])


def _nodes(shapes: list[object]) -> list[ast.expr]:
    return [_node(_shape(shape)) for shape in shapes]


def _shape(value: object) -> Shape:
    assert isinstance(value, tuple)
    return value


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _compare(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> ast.Compare:
    return ast.Compare(left, [operator], [right])
