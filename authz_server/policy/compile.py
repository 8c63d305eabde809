"""Turn a bound condition into a Python function.

The function is built from `ast` nodes, never from text: no character of a policy is ever parsed as
Python. It reads fixed slots of the attribute records and reaches no name but those in
`runtime.NAMES`. Constants are its default arguments, so that rules which differ only in their
constants share one code object (`shape` below is what they share).
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, Final, cast

from authz_server.core.attributes import (
    ActionAttributes,
    ChainAttributes,
    EnvironmentAttributes,
    ObjectAttributes,
    PartyAttributes,
)
from authz_server.policy.bind import Binder, texts
from authz_server.policy.functions import Beginning, Exactly, time_test
from authz_server.policy.patterns import PathPattern
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


@dataclass(frozen=True, slots=True)
class Piece:
    """One condition of a rule, ready to be joined with others; `shape` numbers a known shape."""

    shape: int
    constants: tuple[object, ...]


class Compiler:
    """Compiles the conditions of one section; holds the code objects they share."""

    def __init__(self, binder: Binder[Any]) -> None:
        self._binder = binder
        self._shapes: list[tuple[Shape, int]] = []  # with the number of their constants
        self._numbers: dict[Shape, int] = {}
        self._codes: dict[tuple[int, ...], CodeType] = {}
        self._names = dict(NAMES)
        self._texts: dict[object, object] = {}

    @property
    def code_count(self) -> int:
        """How many different code objects the conditions needed."""
        return len(self._codes)

    def compile(self, condition: Term) -> Matcher:
        """Return a function of the five records that tells whether `condition` holds."""
        return self.join([self.piece(condition)])

    def piece(self, condition: Term) -> Piece:
        """Return `condition` as part of a rule."""
        constants: list[object] = []
        shape = _Shaper(self._binder, constants).shape(condition)
        number = self._numbers.setdefault(shape, len(self._shapes))
        if number == len(self._shapes):
            self._shapes.append((shape, len(constants)))
        return Piece(number, tuple(map(self._shared, constants)))

    def join(self, pieces: Sequence[Piece]) -> Matcher:
        """Return a function of the five records that tells whether all of `pieces` hold."""
        key = tuple([piece.shape for piece in pieces])
        code = self._codes.get(key)
        if code is None:
            code = self._codes[key] = _code([self._shapes[number] for number in key])
        constants = tuple([value for piece in pieces for value in piece.constants])
        return cast(Matcher, FunctionType(code, self._names, "rule", constants or None))

    def _shared(self, value: object) -> object:
        """Return one object for equal texts: rows repeat methods, kinds and path segments."""
        return self._texts.setdefault(value, value) if isinstance(value, str) else value


class _Shaper:
    """Describes a condition as nested tuples, its constants moved to a list."""

    def __init__(self, binder: Binder[Any], constants: list[object]) -> None:
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
            case Apply():
                return self._apply(term)
            case Between(constants=constants):
                return ("test", self._keep(time_test(texts(constants))), ("slot", "env", "now"))
            case HasRole(definition=definition, arguments=arguments, identity=identity):
                roles = self._binder.roles(definition)
                now: Shape = (("slot", "env", "now"),) if roles.live else ()
                test = self._keep(self._binder.role_test(definition, identity=identity))
                return ("test", test, *now, *map(self.shape, arguments))
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
        values = self.shape(collection)
        if isinstance(collection, MapValue):
            values = ("call", "read_list", *values[2:])
        return ("call", "contains", values, self.shape(item))

    def _apply(self, term: Apply) -> Shape:
        compiled, constants = self._binder.compiled, texts(term.constants)
        value = self.shape(term.value)
        match compiled.plan(term.function, constants):
            case Exactly(text=text):
                return ("==", ("call", "text", value), self._keep(text))
            case Beginning(text=text):
                return ("begins", value, self._keep(text))
            case PathPattern() as pattern:
                return self._path(pattern, value)
            case None:
                function = self._keep(compiled.function(term.function, constants))
                return ("apply", function, value, term.function.returns_text)

    def _path(self, pattern: PathPattern, value: Shape) -> Shape:
        """Return a comparison of the value's segments, one by one."""
        segments = pattern.segments
        rest = segments[-1].rest
        fixed = list(enumerate(segments[:-1] if rest else segments))
        # The last literal first: patterns of one policy tend to begin alike.
        literals = [(at, one.prefix) for at, one in reversed(fixed) if one.variable is None]
        return (
            "path",
            value,
            "segments_from" if rest else "segments",
            len(segments),
            tuple((at, self._keep(text)) for at, text in literals),
            tuple(at for at, one in fixed if one.variable is not None),
        )


def _code(shapes: Sequence[tuple[Shape, int]]) -> CodeType:
    count = sum(constants for _, constants in shapes)
    names = [*RECORDS, *(f"k{index}" for index in range(count))]
    arguments = ast.arguments(
        posonlyargs=[],
        args=[ast.arg(arg=name) for name in names],
        kwonlyargs=[],
        kw_defaults=[],
        defaults=[],
    )
    bodies, first = [], 0
    for shape, constants in shapes:
        bodies.append(_Nodes(first).node(shape))
        first += constants
    body = bodies[0] if len(bodies) == 1 else ast.BoolOp(ast.And(), bodies)
    tree = ast.Expression(ast.Lambda(args=arguments, body=body if bodies else ast.Constant(True)))
    module = compile(ast.fix_missing_locations(tree), "<policy>", "eval")
    return next(value for value in module.co_consts if isinstance(value, CodeType))


class _Nodes:
    """Writes shapes as `ast`, their constants numbered from `first`."""

    def __init__(self, first: int) -> None:
        self._first = first

    def node(self, shape: Shape) -> ast.expr:  # noqa: PLR0912 -- one case per kind of shape
        match shape:
            case ("constant", int(index)):
                return _name(f"k{self._first + index}")
            case ("is", None | bool() as value):
                return ast.Constant(value)
            case ("slot", str(record), str(field)):
                return ast.Attribute(_name(record), field, ast.Load())
            case ("and", *items):
                return ast.BoolOp(ast.And(), self._nodes(items))
            case ("or", *items):
                return ast.BoolOp(ast.Or(), self._nodes(items))
            case ("not", item):
                return ast.UnaryOp(ast.Not(), self._node(item))
            case ("same", item, None | bool() as value):
                return _compare(self._node(item), ast.Is(), ast.Constant(value))
            case ("==", left, right):
                return _compare(self._node(left), ast.Eq(), self._node(right))
            case ("in", left, right):
                return _compare(self._node(left), ast.In(), self._node(right))
            case ("order", str(operator), left, right):
                return self._order(operator, left, right)
            case ("call", str(function), *arguments):
                return ast.Call(_name(function), self._nodes(arguments), [])
            case ("test", function, *arguments):
                return ast.Call(self._node(function), self._nodes(arguments), [])
            case ("apply", function, value, bool(returns_text)):
                return self._apply(function, value, returns_text=returns_text)
            case ("begins", value, beginning):
                return self._begins(value, beginning)
            case ("path", value, str(split), int(count), tuple(literals), tuple(variables)):
                return self._path(value, split, count, (literals, variables))
            case _:
                raise AssertionError(shape)

    def _node(self, shape: object) -> ast.expr:
        assert isinstance(shape, tuple)
        return self.node(shape)

    def _nodes(self, shapes: Sequence[object]) -> list[ast.expr]:
        return [self._node(shape) for shape in shapes]

    def _apply(self, function: object, value: object, *, returns_text: bool) -> ast.expr:
        """Return `(t := text(value)) is not None and function(t)`; a text function gives None."""
        present = _held("t", "text", [self._node(value)])
        call = ast.Call(self._node(function), [_name("t")], [])
        if returns_text:
            return ast.IfExp(present, call, ast.Constant(None))
        return ast.BoolOp(ast.And(), [present, call])

    def _begins(self, value: object, beginning: object) -> ast.expr:
        """Return `(t := text(value)) is not None and t.startswith(beginning)`."""
        present = _held("t", "text", [self._node(value)])
        method = ast.Attribute(_name("t"), "startswith", ast.Load())
        return ast.BoolOp(ast.And(), [present, ast.Call(method, [self._node(beginning)], [])])

    def _path(self, value: object, split: str, count: int, segments: Shape) -> ast.expr:
        """Return `(s := segments(value, count)) is not None and s[4] == … and s[2] != ""`."""
        literals, variables = segments
        assert isinstance(literals, tuple)
        assert isinstance(variables, tuple)
        tests: list[ast.expr] = [
            _held("s", split, [self._node(value), ast.Constant(count)]),
            *(_compare(_segment(at), ast.Eq(), self._node(text)) for at, text in literals),
            *(_compare(_segment(at), ast.NotEq(), ast.Constant("")) for at in variables),
        ]
        return tests[0] if len(tests) == 1 else ast.BoolOp(ast.And(), tests)

    def _order(self, operator: str, left: object, right: object) -> ast.expr:
        present = _compare(self._node(left), ast.IsNot(), ast.Constant(None))
        ordered = _compare(self._node(left), _ORDERS[operator](), self._node(right))
        return ast.BoolOp(ast.And(), [present, ordered])


def _held(name: str, function: str, arguments: list[ast.expr]) -> ast.Compare:
    """Return `(name := function(arguments)) is not None`."""
    call = ast.Call(_name(function), arguments, [])
    held = ast.NamedExpr(ast.Name(name, ast.Store()), call)
    return _compare(held, ast.IsNot(), ast.Constant(None))


def _segment(at: int) -> ast.expr:
    return ast.Subscript(_name("s"), ast.Constant(at), ast.Load())


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _compare(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> ast.Compare:
    return ast.Compare(left, [operator], [right])
