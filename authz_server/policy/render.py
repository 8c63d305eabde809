"""Write a bound condition as text again, and say which attributes it reads.

The text is canonical: equal conditions are written alike wherever they stood, however they were
spaced and quoted, so it also serves to compare the rules of two revisions.
"""

import json
from collections.abc import Iterator, Sequence

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
    Scalar,
    Slot,
    Term,
    Truth,
    parts,
)


def term_text(term: Term) -> str:  # noqa: PLR0912 -- one case per kind of term
    """Return `term` in the matcher language, its columns replaced by their values."""
    match term:
        case Constant(value=value):
            return _constant(value)
        case Slot():
            return str(term)
        case MapValue(slot=slot, key=key):
            return f"{slot}.{key}" if key.isidentifier() else f"{slot}[{_constant(key)}]"
        case Element(slot=slot, index=index):
            return f"{slot}[{index}]"
        case Every(items=items):
            return " && ".join(_grouped(item, Either) for item in items)
        case Either(items=items):
            return " || ".join(_grouped(item, Every) for item in items)
        case Negation(operand=operand):
            return _negation(operand)
        case Truth(operand=operand):
            return term_text(operand)
        case Equal(left=left, right=right):
            return f"{term_text(left)} == {term_text(right)}"
        case Order(operator=operator, left=left, right=right):
            return f"{term_text(left)} {operator} {term_text(right)}"
        case OneOf(item=item, options=options):
            return f"{term_text(item)} in ({_listed(options)})"
        case Contains(item=item, collection=collection):
            return f"{term_text(item)} in {term_text(collection)}"
        case Arithmetic(operator=operator, left=left, right=right):
            return f"({term_text(left)} {operator} {term_text(right)})"
        case Apply(function=function, value=value, constants=constants):
            return f"{function.name}({_listed((value, *constants))})"
        case Between(constants=constants):
            return f"timeMatch({_listed(constants)})"
        case HasRole(definition=definition, arguments=arguments):
            return f"{definition}({_listed(arguments)})"
        case _:
            return f"{type(term).__name__}({_listed(parts(term))})"


def reads(term: Term) -> Iterator[Slot | MapValue | Element]:
    """Yield the attributes that `term` reads, left to right; one read twice comes twice."""
    if isinstance(term, Slot | MapValue | Element):
        yield term
    for part in parts(term):
        yield from reads(part)


def _negation(operand: Term) -> str:
    match operand:
        case Equal(left=left, right=right):
            return f"{term_text(left)} != {term_text(right)}"
        case OneOf(item=item, options=options):
            return f"{term_text(item)} not in ({_listed(options)})"
        case Contains(item=item, collection=collection):
            return f"{term_text(item)} not in {term_text(collection)}"
        case Slot() | MapValue() | Apply() | Between() | HasRole():
            return f"!{term_text(operand)}"
        case Truth(operand=value):
            return f"!{term_text(value)}"
        case _:
            return f"!({term_text(operand)})"


def _grouped(item: Term, looser: type[Every] | type[Either]) -> str:
    text = term_text(item)
    return f"({text})" if isinstance(item, looser) else text


def _listed(terms: Sequence[Term]) -> str:
    return ", ".join(map(term_text, terms))


def _constant(value: Scalar) -> str:
    if value is None:
        return "nil"
    return json.dumps(value, ensure_ascii=False)
