"""What compiled matchers call: reading, comparing and adding values whose type a request decides.

SECURITY: a value of the wrong type, an ambiguous one or an oversize one raises, and the whole
decision is a denial (`POLICY_ERROR`). Returning False instead would let a request switch a deny
rule off by sending `"5000"` where the rule expects 5000. A missing value (None) is no error: it
equals only `nil` and fails every order and every pattern.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from authz_server.core.attributes import AMBIGUOUS
from authz_server.core.errors import AuthzError
from authz_server.core.limits import POLICY_STRING_BYTES_MAX


class EvaluationError(AuthzError):
    """A matcher cannot be evaluated for this request."""


def read(values: Mapping[str, object], key: str) -> object:
    """Return `values[key]`, None if missing.

    Raises `EvaluationError` if it is ambiguous or a list: that would be unequal to any text, and a
    deny rule would be switched off by sending the text in a list.
    """
    value = values.get(key)
    if value is AMBIGUOUS or isinstance(value, tuple):
        raise EvaluationError("the value is ambiguous or has no scalar form")
    return value


def read_list(values: Mapping[str, object], key: str) -> object:
    """Return `values[key]` for `contains`, which takes nothing but a list."""
    return values.get(key)


def element(values: tuple[str, ...], index: int) -> str | None:
    """Return `values[index]`, None beyond the end."""
    return values[index] if index < len(values) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def equal(left: object, right: object) -> bool:
    """Return whether both are the same value of the same type; a missing value equals nothing.

    `True == 1` holds in Python and must not here. Two missing values are not equal: an unlabelled
    caller does not share the team of an unlabelled resource.
    """
    if left is None or right is None:
        return False
    if _is_number(left) and _is_number(right):
        return left == right
    if isinstance(left, str) and isinstance(right, str):
        return left == right
    return type(left) is type(right) and left == right


_ORDERS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def compare(order: str, left: object, right: object) -> bool:
    """Return `left order right` for two numbers or two texts; False if one is missing."""
    if left is None or right is None:
        return False
    texts = isinstance(left, str) and isinstance(right, str)
    if not texts and not (_is_number(left) and _is_number(right)):
        raise EvaluationError("values of different types have no order")
    return _ORDERS[order](left, right)


def contains(collection: object, item: object) -> bool:
    """Return whether `item` is one of a collection whose type the request decides."""
    if collection is None:
        return False
    if not isinstance(collection, tuple | frozenset):
        raise EvaluationError("the right side of `in` is no collection")
    return any(equal(item, member) for member in collection)


def truth(value: object) -> bool:
    """Return a boolean as it is and a missing value as False."""
    if value is None or value is False:
        return False
    if value is True:
        return True
    raise EvaluationError("a condition is not a boolean")


def text(value: object) -> str | None:
    """Return the text that a function may see; None if missing. Raises on any other type."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise EvaluationError("a function was given a value that is not text")
    size = len(value)
    if size > POLICY_STRING_BYTES_MAX or (
        size * 4 > POLICY_STRING_BYTES_MAX
        and not value.isascii()
        and len(value.encode("utf-8", "surrogatepass")) > POLICY_STRING_BYTES_MAX
    ):
        raise EvaluationError("a function was given a text over 4 KiB")
    return value


def segments(value: object, count: int) -> list[str] | None:
    """Return the segments of a text that has `count` of them; None if missing or not so many."""
    path = text(value)
    if path is None or path.count("/") != count - 1:
        return None
    return path.split("/")


def segments_from(value: object, count: int) -> list[str] | None:
    """Return the segments of a text that has `count` of them or more."""
    path = text(value)
    if path is None or path.count("/") < count - 1:
        return None
    return path.split("/")


def add(left: object, right: object) -> object:
    """Return the sum of two numbers or the concatenation of two texts, bounded."""
    if isinstance(left, str) and isinstance(right, str):
        if len(left) + len(right) > POLICY_STRING_BYTES_MAX:
            raise EvaluationError("a concatenation is over 4 KiB")
        return left + right
    return _arithmetic(operator.add, left, right)


def _arithmetic(operation: Callable[[Any, Any], float], left: object, right: object) -> float:
    if not (_is_number(left) and _is_number(right)):
        raise EvaluationError("arithmetic on a value that is missing or no number")
    return operation(left, right)


def subtract(left: object, right: object) -> float:
    """Return `left - right`."""
    return _arithmetic(operator.sub, left, right)


def multiply(left: object, right: object) -> float:
    """Return `left * right`."""
    return _arithmetic(operator.mul, left, right)


def divide(left: object, right: object) -> float:
    """Return `left / right`. Raises `ZeroDivisionError`, which denies like any other error."""
    return _arithmetic(operator.truediv, left, right)


def remainder(left: object, right: object) -> float:
    """Return `left % right`."""
    return _arithmetic(operator.mod, left, right)


ARITHMETIC: Final[Mapping[str, Callable[[object, object], object]]] = {
    "+": add,
    "-": subtract,
    "*": multiply,
    "/": divide,
    "%": remainder,
}

# The only names a compiled matcher can reach besides its arguments.
NAMES: Final[Mapping[str, object]] = {
    "__builtins__": {},
    "read": read,
    "read_list": read_list,
    "element": element,
    "equal": equal,
    "compare": compare,
    "contains": contains,
    "truth": truth,
    "text": text,
    "segments": segments,
    "segments_from": segments_from,
    **ARITHMETIC,
}
