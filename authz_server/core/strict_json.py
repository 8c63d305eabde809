"""JSON that every reader reads the same way.

The body a policy judged must be the body the upstream acts on, and the claims we verify must be the
claims their issuer signed. Where two parsers may differ we refuse: duplicate keys, a byte order
mark, lone surrogates, NaN, and numbers that a double does not hold (RFC 8259 §4, §6, §8; RFC 7493).
The C scanner of `json` does the work, and hooks refuse what it would let through. The hooks that
cost most run only where a count over the bytes says that there may be something to refuse.
"""

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Final, NoReturn

from authz_server.core import limits
from authz_server.core.errors import InvalidValueError

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]

_CONTAINERS = frozenset({list, dict})
_BOM = b"\xef\xbb\xbf"
_INTEGER_DIGITS_MAX = 17  # 2**53-1 has 16 digits, and a sign
_NUMBER_CHARS_MAX = 64  # a double's shortest form has at most 24
# At most 15 significant digits survive a double and back (IEEE 754 binary64, C's DBL_DIG).
_EXACT_CHARS_MAX = 16  # 15 digits and the point
_BUILT_MAX: Final = 4  # times as many members as are admitted may be built, to be counted then
_BLANKS: Final = b" \t\n\r"  # RFC 8259 §2
_DIGITS_ALIKE: Final = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_DIGITS: Final = b"0" * 16  # 2**53-1 has as many; every shorter integer is smaller
_SURROGATE: Final = re.compile(rb"\\u[dD]")
# SECURITY: the closing quote is optional and the quantifiers possessive, so that an unterminated
# string is consumed once and text without an end costs linear, not quadratic, time.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


def exact(text: str) -> float:
    """Return a JSON number that is not spelled as an integer; `parse_float` of `loads`.

    Raises `InvalidValueError` if a double does not hold it.
    """
    number = float(text)
    if len(text) > _EXACT_CHARS_MAX or "e" in text or "E" in text:
        _check_exact(text, number)
    return number


def exact_or_whole(text: str) -> float:
    """Return the same as `exact`, a whole number as an integer: JSON has one kind of number."""
    number = float(text)
    if len(text) > _EXACT_CHARS_MAX or "e" in text or "E" in text:
        _check_exact(text, number)
    if number.is_integer() and -limits.JSON_INTEGER_MAX <= number <= limits.JSON_INTEGER_MAX:
        return int(number)
    return number


def loads(
    data: bytes,
    *,
    depth_max: int,
    members_max: int,
    parse_float: Callable[[str], float] = exact,
) -> JsonValue:
    """Return the value that `data` spells, provided that every JSON reader would agree on it.

    `depth_max` bounds nesting (a scalar has depth 0, `[]` has 1), `members_max` the array elements
    and object members of the whole text. The caller bounds the length of `data`. `parse_float`,
    `exact` or `exact_or_whole`, reads numbers with a fraction or an exponent. Time is linear.

    Raises `InvalidValueError` for anything else; its text never quotes the input.
    """
    text = _decode(data)
    openings = data.count(b"[") + data.count(b"{")
    commas = data.count(b",")
    # Refuse before too much is built: each comma outside a string separates two members. Prose has
    # commas too, and taking the strings out costs more than building what is a little too large.
    if commas > _BUILT_MAX * members_max and _STRING.sub(b"", data).count(b",") > members_max:
        raise InvalidValueError("JSON has too many members")
    value = _scan(data, text, parse_float)
    if openings > depth_max or openings + commas > members_max:
        _check_shape(value, depth_max, members_max)
    if b"\\" in data and _SURROGATE.search(data):
        _check_surrogates(value)
    return value


def _decode(data: bytes) -> str:
    if data.startswith(_BOM):
        raise InvalidValueError("JSON starts with a byte order mark")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidValueError("JSON is not valid UTF-8") from error


def _scan(data: bytes, text: str, parse_float: Callable[[str], float]) -> JsonValue:
    # Longer runs of digits outside integers are as if they were inside: the slower way is as right.
    squeezed = data.translate(_DIGITS_ALIKE, _BLANKS)
    counted = _MemberCount()
    decoder = json.JSONDecoder(
        object_hook=counted.add,
        parse_int=_integer if _LONG_DIGITS in squeezed else None,
        parse_float=parse_float,
        parse_constant=_constant,
    )
    value = _decoded(decoder, text)
    if not _no_name_stands_twice(squeezed, counted.members):
        _decoded(_PAIRS, text)
    return value


def _decoded(decoder: json.JSONDecoder, text: str) -> JsonValue:
    try:
        value: JsonValue = decoder.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidValueError(f"not JSON at character {error.pos}") from error
    except RecursionError as error:
        raise InvalidValueError("JSON is nested too deep") from error
    return value


class _MemberCount:
    """Counts the members of the objects that a decoder builds, each name once."""

    __slots__ = ("members",)

    def __init__(self) -> None:
        self.members = 0

    def add(self, members: dict[str, JsonValue]) -> dict[str, JsonValue]:
        self.members += len(members)
        return members


def _no_name_stands_twice(squeezed: bytes, members: int) -> bool:
    """Tell whether JSON without blanks, whose objects have `members` in all, repeats no name.

    SECURITY: True must be certain; False only costs time. Without blanks a colon follows the
    closing quote of every name, so the text has no more names than `":`. If it has no more members
    either, each name made one. An escaped quote before a colon ends no name, unless the backslash
    before it is itself escaped.
    """
    names_max = squeezed.count(b'":')
    if names_max == members:
        return True
    return b'\\\\":' not in squeezed and names_max - squeezed.count(b'\\":') == members


def _object(pairs: list[tuple[str, JsonValue]]) -> None:
    if len(dict(pairs)) != len(pairs):
        # RFC 8259 §4: with duplicate names, what a receiver does is unpredictable.
        raise InvalidValueError("JSON object has a duplicate key")


def _integer(digits: str) -> int:
    # SECURITY: the length goes first, int() is quadratic in it.
    if len(digits) <= _INTEGER_DIGITS_MAX:
        number = int(digits)
        if -limits.JSON_INTEGER_MAX <= number <= limits.JSON_INTEGER_MAX:
            return number
    raise InvalidValueError("JSON integer is outside +-(2^53-1)")


def _check_exact(text: str, number: float) -> None:
    if repr(number) != text and not _is_exact(text, number):
        raise InvalidValueError("JSON number is not one a double holds")


def _is_exact(text: str, number: float) -> bool:
    """Tell whether the shortest form of `number` has the same value as `text`."""
    if len(text) > _NUMBER_CHARS_MAX or number in {float("inf"), float("-inf")}:
        return False
    if number == 0.0:  # underflow, unless every digit of the mantissa is zero
        return not re.search("[1-9]", re.split("[eE]", text)[0])
    return Decimal(text) == Decimal(repr(number))


def _constant(_name: str) -> NoReturn:
    raise InvalidValueError("JSON has no NaN or Infinity")


def _check_shape(value: JsonValue, depth_max: int, members_max: int) -> None:
    """Walk level by level and stop at the first bound exceeded."""
    level: list[list[JsonValue] | dict[str, JsonValue]]
    level = [value] if isinstance(value, list | dict) else []
    depth = members = 0
    while level:
        depth += 1
        if depth > depth_max:
            raise InvalidValueError("JSON is nested too deep")
        below: list[list[JsonValue] | dict[str, JsonValue]] = []
        for container in level:
            members += len(container)
            if members > members_max:
                raise InvalidValueError("JSON has too many members")
            items = container.values() if type(container) is dict else container
            below += [item for item in items if type(item) in _CONTAINERS]  # type: ignore[misc]
        level = below


def _check_surrogates(value: JsonValue) -> None:
    # An unpaired `\ud800` decodes to a str that has no UTF-8 form (RFC 8259 §8.2), which is how
    # we find it. Runs after the shape is known, so the encoder's recursion is bounded.
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidValueError("JSON string has a lone surrogate") from error
    except RecursionError as error:
        raise InvalidValueError("JSON is nested too deep") from error


# Finds names that stand twice. Everything else about the text has been checked by then.
_PAIRS: Final = json.JSONDecoder(object_pairs_hook=_object)
