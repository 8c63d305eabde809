"""Canonical JSON (RFC 8785) as fast as CPython's own encoder writes JSON.

The encoder of `json`, told to sort, to leave out blanks and to escape nothing it need not, already
writes the canonical form, except for three things:

- Names are sorted by code point, not by UTF-16 code unit (RFC 8785 §3.2.3). Both orders compare
  the first character that differs. They disagree only where one of the two is above U+FFFF, since
  its first code unit, U+D800 to U+DBFF, then sorts before U+E000 to U+FFFF. So a text without
  characters above U+FFFF is in order.
- A number that Python writes with an exponent or with a final `.0` has another form in ECMAScript
  (§3.2.2.3). All other numbers have the same: both take the shortest digits that are read back as
  the same double, and neither uses an exponent from 1e-4 up to 1e16. Those numbers are `_is_odd`.
- A lone surrogate has no UTF-8 form; the encoder writes it, and turning the text to bytes fails.

So the text is written once and searched for what could be wrong with it. Only if something is, it
is written again from a copy in which names are in order and odd numbers spelt out.
"""

import json
import re
from typing import Final

from authz_server.core.errors import InvalidValueError
from authz_server.core.strict_json import JsonValue

_SORTING: Final = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, sort_keys=True, separators=(",", ":")
)
_PLAIN: Final = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, sort_keys=False, separators=(",", ":")
)
# What an odd number cannot be written without; other texts may have it too. Two expressions, since
# one with an alternative has no fixed beginning to search for and takes ten times as long.
_WHOLE: Final = re.compile(rb"\.0(?:[,\]}]|\Z)")
_EXPONENT: Final = re.compile(rb"e[-+][0-9]")
# Stands around a spelt-out number until its quotes are taken off: no text with a form has it.
_MARK: Final = "\udfff"
_NEVER_ODD: Final = frozenset({str, int, bool, type(None)})
_EXACT_INTEGER_MAX: Final = 2.0**53


def dumps(value: JsonValue) -> bytes:
    """Return the RFC 8785 form of a value read by `strict_json.loads`.

    Other values may have integers beyond 2^53-1 or numbers that are not finite; they are not
    checked for. Raises `InvalidValueError` for a lone surrogate.
    """
    text = _SORTING.encode(value)
    try:
        data = text.encode("utf-8")
        if _in_order(text) and not (_may_be_odd(data) and _has_odd(value)):
            return data
        text = _PLAIN.encode(_copy(value))
        return text.replace(f'"{_MARK}', "").replace(f'{_MARK}"', "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidValueError("JSON string has a lone surrogate") from error


def _in_order(text: str) -> bool:
    """Tell whether sorted JSON text is certainly sorted by UTF-16 code units, too."""
    return text.isascii() or len(text.encode("utf-16-le")) == 2 * len(text)


def _may_be_odd(data: bytes) -> bool:
    return _EXPONENT.search(data) is not None or _WHOLE.search(data) is not None


def _is_odd(number: float) -> bool:
    """Tell whether Python writes a number otherwise than ECMA-262 Number::toString.

    With `.0` or an exponent if it is a whole number, as every double from 2^53 on is; with an
    exponent below 1e-4.
    """
    return number.is_integer() or -1e-4 < number < 1e-4


def _has_odd(value: JsonValue) -> bool:
    if isinstance(value, float):
        return _is_odd(value)
    if not isinstance(value, list | dict):
        return False
    items = value.values() if isinstance(value, dict) else value
    return any(_has_odd(item) for item in items if type(item) not in _NEVER_ODD)


def _copy(value: JsonValue) -> JsonValue:
    """Return `value` with names in their order and odd numbers as marked texts."""
    if isinstance(value, float):
        return _spelt_out(value) if _is_odd(value) else value
    if isinstance(value, dict):
        names = sorted(value) if all(map(str.isascii, value)) else sorted(value, key=_utf16)
        return {
            name: item if type(item := value[name]) in _NEVER_ODD else _copy(item) for name in names
        }
    if isinstance(value, list):
        return [item if type(item) in _NEVER_ODD else _copy(item) for item in value]
    return value


def _utf16(name: str) -> bytes:
    return name.encode("utf-16-be")


def _spelt_out(number: float) -> int | str:
    """Return an odd number as an integer that is written alike, or as its marked text.

    ECMA-262 Number::toString: no exponent from 1e-6 up to 1e21, exclusive.
    """
    if -_EXACT_INTEGER_MAX <= number <= _EXACT_INTEGER_MAX and number.is_integer():
        return int(number)  # also -0.0
    text = repr(number)
    digits, _, exponent = text.partition("e")
    if exponent in {"-05", "-06"}:
        sign = "-" if number < 0 else ""
        text = f"{sign}0.{'0' * (-int(exponent) - 1)}{digits.lstrip('-').replace('.', '')}"
    elif exponent.startswith("-0"):
        text = f"{digits}e-{exponent[2:]}"
    elif exponent.startswith("+") and (places := int(exponent)) < 21:
        whole, _, fraction = digits.partition(".")
        text = whole + fraction.ljust(places, "0")
    return f"{_MARK}{text.removesuffix('.0')}{_MARK}"
