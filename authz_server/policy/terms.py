"""Typed terms: what a matcher means once names are resolved and types are known.

`check.py` builds them from syntax; `bind.py` puts one rule's columns in and folds constants;
`compile.py` turns what is left into a Python code object.
"""

from dataclasses import dataclass
from enum import Enum

from authz_server.core.attributes import AttributeSpec, AttributeType
from authz_server.policy.functions import Function

Scalar = str | int | float | bool | None


class Type(Enum):
    """The static type of a term; the value names it in faults."""

    TEXT = "text"
    NUMBER = "a number"
    BOOL = "a condition"
    TEXTS = "a collection"
    NIL = "nil"
    ANY = "a value of the request"  # a map's value: any scalar, known only per request
    BROKEN = "broken"  # already at fault: agrees with everything


@dataclass(frozen=True, slots=True)
class Constant:
    """A literal, or a column once bound; `column` tells which."""

    value: Scalar
    at: int
    column: int | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """`p.name`: always text."""

    index: int
    name: str
    at: int


@dataclass(frozen=True, slots=True)
class Slot:
    """One attribute: a fixed field of a fixed record."""

    record: str
    field: str
    spec: AttributeSpec

    def __str__(self) -> str:
        return f"r.{self.record}.{self.field}"


@dataclass(frozen=True, slots=True)
class MapValue:
    """One value of a map attribute."""

    slot: Slot
    key: str


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a list attribute."""

    slot: Slot
    index: int


@dataclass(frozen=True, slots=True)
class Every:
    """All conditions hold."""

    items: tuple["Term", ...]


@dataclass(frozen=True, slots=True)
class Either:
    """At least one condition holds."""

    items: tuple["Term", ...]


@dataclass(frozen=True, slots=True)
class Negation:
    """The condition does not hold."""

    operand: "Term"


@dataclass(frozen=True, slots=True)
class Truth:
    """A request's value taken as a condition."""

    operand: "Term"


@dataclass(frozen=True, slots=True)
class Equal:
    """Both are the same."""

    left: "Term"
    right: "Term"


@dataclass(frozen=True, slots=True)
class Order:
    """`<`, `<=`, `>` or `>=`."""

    operator: str
    left: "Term"
    right: "Term"


@dataclass(frozen=True, slots=True)
class OneOf:
    """The item equals one of the options."""

    item: "Term"
    options: tuple["Term", ...]


@dataclass(frozen=True, slots=True)
class Contains:
    """The collection attribute holds the item."""

    item: "Term"
    collection: "Term"


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """`+ - * / %`; `type` is what comes out."""

    operator: str
    left: "Term"
    right: "Term"
    type: Type
    at: int


@dataclass(frozen=True, slots=True)
class Apply:
    """A function of one value and constants."""

    function: Function
    value: "Term"
    constants: tuple["Term", ...]
    at: int


@dataclass(frozen=True, slots=True)
class Between:
    """timeMatch: `r.env.now` lies between two constant times."""

    constants: tuple["Term", ...]
    at: int


@dataclass(frozen=True, slots=True)
class HasRole:
    """`g(member, role)` or `g(member, role, domain)`.

    `identity`: the member is named by the identity itself, so that one who happens to be called
    like a role does not have it. `live`: the answer depends on the time or on patterns.
    """

    definition: str
    arguments: tuple["Term", ...]
    identity: bool
    live: bool = False


@dataclass(frozen=True, slots=True)
class RuleText:
    """`eval(p.name)`: the condition that this column of the rule holds."""

    column: Column


@dataclass(frozen=True, slots=True)
class Broken:
    """Stands where a fault was found, so that the rest is still checked."""


Term = (
    Constant
    | Column
    | Slot
    | MapValue
    | Element
    | Every
    | Either
    | Negation
    | Truth
    | Equal
    | Order
    | OneOf
    | Contains
    | Arithmetic
    | Apply
    | Between
    | HasRole
    | RuleText
    | Broken
)

_ATTRIBUTE_TYPES = {
    AttributeType.STRING: Type.TEXT,
    AttributeType.BOOL: Type.BOOL,
    AttributeType.INT: Type.NUMBER,
    AttributeType.SET: Type.TEXTS,
    AttributeType.LIST: Type.TEXTS,
}


def type_of(term: Term) -> Type:
    """Return the static type of `term`."""
    match term:
        case Constant(value=value):
            return _type_of_constant(value)
        case Column() | Element():
            return Type.TEXT
        case Slot(spec=spec):
            return _ATTRIBUTE_TYPES[spec.type]
        case MapValue():
            return Type.ANY
        case Arithmetic(type=kind):
            return kind
        case Apply(function=function):
            return Type.TEXT if function.returns_text else Type.BOOL
        case Broken():
            return Type.BROKEN
        case _:
            return Type.BOOL


def _type_of_constant(value: Scalar) -> Type:
    if value is None:
        return Type.NIL
    if isinstance(value, bool):
        return Type.BOOL
    return Type.TEXT if isinstance(value, str) else Type.NUMBER


def parts(term: Term) -> tuple[Term, ...]:
    """Return the direct parts of `term`, left to right."""
    match term:
        case Every(items=items) | Either(items=items):
            return items
        case Negation(operand=operand) | Truth(operand=operand):
            return (operand,)
        case Equal(left=left, right=right) | Order(left=left, right=right):
            return (left, right)
        case Arithmetic(left=left, right=right):
            return (left, right)
        case OneOf(item=item, options=options):
            return (item, *options)
        case Contains(item=item, collection=collection):
            return (item, collection)
        case Apply(value=value, constants=constants):
            return (value, *constants)
        case Between(constants=constants):
            return constants
        case HasRole(arguments=arguments):
            return arguments
        case _:
            return ()


def can_fail(term: Term) -> bool:
    """Return whether evaluating `term` can raise for a request of well-typed attributes.

    Map values may be ambiguous or of any type, functions refuse oversize text, arithmetic needs
    numbers, a walk over roles is bounded; comparing attributes with constants or one another cannot
    fail.
    """
    if isinstance(term, MapValue | Truth | Arithmetic | Apply | Broken):
        return True
    if isinstance(term, HasRole) and term.live:
        return True
    return any(map(can_fail, parts(term)))


def is_constant(term: Term) -> bool:
    """Return whether nothing of the request is read (columns count as constant)."""
    if isinstance(term, Constant | Column):
        return True
    found = parts(term)
    return not isinstance(term, Between) and bool(found) and all(map(is_constant, found))
