"""The matcher language as a tree, and the parser that builds it.

Precedence, loosest first: `||`/`or`; `&&`/`and`; `not`; comparison and `in` (these do not chain);
`+ -`; `* / %`; unary `! -`; postfix. Where Casbin's implementations disagree the parser refuses:
`!a == b` is `(!a) == b` in Go and `!(a == b)` in pycasbin. Nothing here knows attributes or types;
that is `check.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from authz_server.core.limits import EXPRESSION_DEPTH_MAX
from authz_server.policy.lexer import Token, TokenKind, tokenize
from authz_server.policy.source import FaultFound, Fragment


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant."""

    value: str | int | float | bool | None
    at: int


@dataclass(frozen=True, slots=True)
class Path:
    """A dotted name such as `r.sub.labels.team`, with the places of its parts."""

    parts: tuple[str | int, ...]
    places: tuple[int, ...]

    @property
    def at(self) -> int:
        """Where it begins."""
        return self.places[0]

    def __str__(self) -> str:
        return str(self.parts[0]) + "".join(
            f".{part}" if isinstance(part, str) else f"[{part}]" for part in self.parts[1:]
        )


@dataclass(frozen=True, slots=True)
class TupleOf:
    """`(a, b, ...)`, only to the right of `in`."""

    items: tuple["Expression", ...]
    at: int


@dataclass(frozen=True, slots=True)
class Logic:
    """`&&` or `||` over two or more conditions; `operator` is `and` or `or`."""

    operator: str
    items: tuple["Expression", ...]
    at: int


@dataclass(frozen=True, slots=True)
class Not:
    """`!x` or `not x`."""

    operand: "Expression"
    at: int


@dataclass(frozen=True, slots=True)
class Negative:
    """`-x`."""

    operand: "Expression"
    at: int


@dataclass(frozen=True, slots=True)
class Binary:
    """A comparison, membership or arithmetic; `operator` as written, `not in` with one space."""

    operator: str
    left: "Expression"
    right: "Expression"
    at: int  # of the operator


@dataclass(frozen=True, slots=True)
class Call:
    """A function call."""

    name: str
    arguments: tuple["Expression", ...]
    at: int


Expression = Literal | Path | TupleOf | Logic | Not | Negative | Binary | Call

_CONSTANTS: Final = {
    "true": True,
    "True": True,
    "false": False,
    "False": False,
    "nil": None,
    "None": None,
}
_TOO_DEEP: Final = f"nested deeper than {EXPRESSION_DEPTH_MAX} levels"
_COMPARISONS: Final = frozenset({"==", "!=", "<", "<=", ">", ">="})


def parse(source: Fragment) -> Expression:
    """Return the expression that `source` holds. Raises `FaultFound` at the first syntax error."""
    return _Parser(source).parse()


def operands(expression: Expression) -> tuple[Expression, ...]:
    """Return the direct parts of `expression`, left to right."""
    match expression:
        case Logic(items=items) | TupleOf(items=items):
            return items
        case Call(arguments=arguments):
            return arguments
        case Binary(left=left, right=right):
            return (left, right)
        case Not(operand=operand) | Negative(operand=operand):
            return (operand,)
        case _:
            return ()


def _height(expression: Expression) -> int:
    height = 0
    level: list[Expression] = [expression]
    while level:
        height += 1
        level = [part for node in level for part in operands(node)]
    return height


class _Parser:
    """Recursive descent over the tokens of one fragment."""

    def __init__(self, source: Fragment) -> None:
        self._source = source
        self._tokens = tokenize(source)
        self._index = 0
        self._depth = 0

    def parse(self) -> Expression:
        if len(self._tokens) == 1:
            raise self._fault("the expression is empty")
        found = self._or()
        if self._token.kind is not TokenKind.END:
            raise self._fault(f"expected an operator or the end, found `{self._token.text}`")
        # A chain of `+` grows the tree to the left without nesting the parser.
        if _height(found) > EXPRESSION_DEPTH_MAX:
            raise self._fault(_TOO_DEEP, found.at)
        return found

    # --- tokens ---------------------------------------------------------------------------------

    @property
    def _token(self) -> Token:
        return self._tokens[self._index]

    def _is(self, *texts: str) -> bool:
        token = self._token
        return token.text in texts and token.kind in {TokenKind.OPERATOR, TokenKind.KEYWORD}

    def _take(self) -> Token:
        token = self._token
        self._index += 1
        return token

    def _expect(self, text: str, message: str) -> Token:
        if not self._is(text):
            raise self._fault(message)
        return self._take()

    def _fault(self, message: str, at: int | None = None) -> FaultFound:
        return FaultFound(self._source.fault(self._token.at if at is None else at, message))

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > EXPRESSION_DEPTH_MAX:
            raise self._fault(_TOO_DEEP)

    # --- conditions -----------------------------------------------------------------------------

    def _or(self) -> Expression:
        self._deeper()
        first = self._and()
        items = [first]
        at = self._token.at
        while self._is("||", "or"):
            self._take()
            items.append(self._and())
        self._depth -= 1
        return first if len(items) == 1 else Logic("or", tuple(items), at)

    def _and(self) -> Expression:
        first = self._condition()
        items = [first]
        at = self._token.at
        while self._is("&&", "and"):
            self._take()
            items.append(self._condition())
        return first if len(items) == 1 else Logic("and", tuple(items), at)

    def _condition(self) -> Expression:
        if not self._is("not"):
            return self._comparison()
        token = self._take()
        self._deeper()
        operand = self._condition()
        self._depth -= 1
        return Not(operand, token.at)

    def _comparison(self) -> Expression:
        negated = self._is("!")
        left = self._sum()
        operator = self._comparison_operator()
        if operator is None:
            return left
        if negated:
            message = f"`!a {operator.text} b` is read in two ways; write `!(a {operator.text} b)`"
            raise self._fault(message, left.at)
        if operator.text.endswith("in"):
            found = Binary(operator.text, left, self._collection(), operator.at)
        else:
            found = Binary(operator.text, left, self._sum(), operator.at)
        if (again := self._comparison_operator()) is not None:
            raise self._fault("comparisons do not chain; join two with `&&`", again.at)
        return found

    def _comparison_operator(self) -> Token | None:
        if self._is("in", *_COMPARISONS):
            return self._take()
        if not self._is("not"):
            return None
        token = self._take()
        self._expect("in", "expected `in` after `not`")
        return Token(TokenKind.KEYWORD, "not in", token.at)

    def _collection(self) -> Expression:
        """Return what stands to the right of `in`; brackets make a tuple even around one item."""
        if not self._is("("):
            return self._sum()
        at = self._take().at
        items: list[Expression] = []
        while not self._is(")"):
            items.append(self._or())
            if not self._is(")"):
                self._expect(",", "expected `,` or `)`")
        self._take()
        return TupleOf(tuple(items), at)

    # --- values ---------------------------------------------------------------------------------

    def _sum(self) -> Expression:
        return self._left_to_right(("+", "-"), self._product)

    def _product(self) -> Expression:
        return self._left_to_right(("*", "/", "%"), self._unary)

    def _left_to_right(
        self, operators: tuple[str, ...], operand: Callable[[], Expression]
    ) -> Expression:
        found = operand()
        while self._is(*operators):
            operator = self._take()
            found = Binary(operator.text, found, operand(), operator.at)
        return found

    def _unary(self) -> Expression:
        if not self._is("!", "-"):
            return self._primary()
        token = self._take()
        self._deeper()
        operand = self._unary()
        self._depth -= 1
        return Not(operand, token.at) if token.text == "!" else Negative(operand, token.at)

    def _primary(self) -> Expression:
        token = self._token
        if token.kind is TokenKind.STRING:
            return Literal(self._take().text, token.at)
        if token.kind is TokenKind.NUMBER:
            text = self._take().text
            return Literal(float(text) if "." in text else int(text), token.at)
        if token.kind is TokenKind.KEYWORD and token.text in _CONSTANTS:
            return Literal(_CONSTANTS[self._take().text], token.at)
        if token.kind is TokenKind.NAME:
            return self._name()
        if self._is("("):
            return self._group()
        what = f"`{token.text}`" if token.text else "the end"
        raise self._fault(f"expected a value, found {what}")

    def _group(self) -> Expression:
        self._take()
        inner = self._or()
        if self._is(","):
            raise self._fault("a tuple stands only to the right of `in`")
        self._expect(")", "expected `)`")
        return inner

    def _name(self) -> Expression:
        token = self._take()
        if self._is("("):
            return self._call(token)
        parts: list[str | int] = [token.text]
        places = [token.at]
        while self._is(".", "["):
            if self._take().text == ".":
                part = self._attribute_name()
                parts.append(part.text)
            else:
                part = self._index_value()
                parts.append(int(part.text) if part.kind is TokenKind.NUMBER else part.text)
                self._expect("]", "expected `]`")
            places.append(part.at)
        if self._is("("):
            raise self._fault("attributes have no methods")
        return Path(tuple(parts), tuple(places))

    def _attribute_name(self) -> Token:
        # Keywords are fine as names here: `r.obj.args.not` is an argument called "not".
        if self._token.kind not in {TokenKind.NAME, TokenKind.KEYWORD}:
            raise self._fault("expected a name after `.`")
        return self._take()

    def _index_value(self) -> Token:
        token = self._token
        if token.kind is TokenKind.STRING or (
            token.kind is TokenKind.NUMBER and token.text.isdigit()
        ):
            return self._take()
        raise self._fault("an index is a literal: `[0]` or `['name']`")

    def _call(self, name: Token) -> Expression:
        self._take()
        arguments: list[Expression] = []
        while not self._is(")"):
            arguments.append(self._or())
            if not self._is(")"):
                self._expect(",", "expected `,` or `)`")
        self._take()
        return Call(name.text, tuple(arguments), name.at)
