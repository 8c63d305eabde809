"""The pattern language of globMatch, with the meaning of Go's `path.Match`.

`*` is any run of characters but `/`, `?` one of them, `[a-z]` and `[^a-z]` one of a class, and a
backslash takes the next character literally. The whole text must match (Python's Casbin lets `*b`
match `evil`).
"""

from typing import Final

from authz_server.core.errors import InvalidValueError
from authz_server.policy.automaton import (
    Begin,
    Characters,
    End,
    Pattern,
    Ranges,
    Repeat,
    Series,
    any_but,
)

_SLASH: Final = (0x2F, 0x2F)
_NOT_SLASH: Final = Characters(any_but((_SLASH,)))


def parse_glob(text: str) -> Pattern:
    """Return the pattern, anchored at both ends. Raises `InvalidValueError`."""
    items: list[Pattern] = [Begin()]
    at = 0
    while at < len(text):
        char = text[at]
        if char == "*":
            if text.startswith("**", at):
                raise InvalidValueError("`**` is no more than `*` in Casbin: it crosses no `/`")
            items.append(Repeat(_NOT_SLASH, 0, None))
        elif char == "?":
            items.append(_NOT_SLASH)
        elif char == "[":
            ranges, at = _class(text, at)
            items.append(Characters(ranges))
        else:
            at += char == "\\"
            items.append(_literal(text, at))
        at += 1
    return Series((*items, End()))


def _literal(text: str, at: int) -> Pattern:
    if at >= len(text):
        raise InvalidValueError("the pattern ends with a lone `\\`")
    return Characters(((ord(text[at]), ord(text[at])),))


def _class(text: str, start: int) -> tuple[Ranges, int]:
    """Return the class that begins at `start`, and the offset of its `]`."""
    at = start + 1
    if text.startswith("!", at):
        raise InvalidValueError("write `[^…]` for all but these characters")
    negated = text.startswith("^", at)
    at += negated
    ranges: list[tuple[int, int]] = []
    while not text.startswith("]", at) or not ranges:
        low, at = _class_end(text, at)
        high = low
        if text.startswith("-", at):
            high, at = _class_end(text, at + 1)
        if high < low:
            raise InvalidValueError("a range goes from a lower to a higher character")
        ranges.append((low, high))
    # No class matches `/`: a glob never crosses a segment.
    wanted = [*ranges, _SLASH] if negated else any_but([*any_but(ranges), _SLASH])
    return (any_but(wanted) if negated else tuple(wanted)), at


def _class_end(text: str, at: int) -> tuple[int, int]:
    if text.startswith("\\", at):
        at += 1
    if at >= len(text) or text[at] == "-" or (text[at] == "]" and text[at - 1] != "\\"):
        raise InvalidValueError("`[` without a well-formed class and `]`")
    return ord(text[at]), at + 1
