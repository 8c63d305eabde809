r"""The pattern language of regexMatch: what RE2 (Go's Casbin) and Python read alike.

Semantics are Go's: the pattern is searched anywhere in the text unless `^` and `$` anchor it
(Python's Casbin anchors at the beginning only), `$` is the very end, `\d \w \s` are ASCII.
Back-references, look-around, flags, word boundaries and repeated repetitions are refused.
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
    alternatives,
    any_but,
)

REPEAT_MAX: Final = 1_000  # RE2's own bound of `{n}`
GROUP_DEPTH_MAX: Final = 50

_DIGIT: Final[Ranges] = ((0x30, 0x39),)
_WORD: Final[Ranges] = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Final[Ranges] = ((0x09, 0x0A), (0x0C, 0x0D), (0x20, 0x20))
_CLASSES: Final = {
    "d": _DIGIT,
    "w": _WORD,
    "s": _SPACE,
    "D": any_but(_DIGIT),
    "W": any_but(_WORD),
    "S": any_but(_SPACE),
}
_CONTROLS: Final = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v"}
_NOT_NEWLINE: Final = any_but(((0x0A, 0x0A),))
_QUANTIFIERS: Final = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def parse_regex(text: str) -> Pattern:
    """Return the pattern. Raises `InvalidValueError` that says where and why it is refused."""
    return _Parser(text).parse()


class _Parser:
    """Recursive descent over the characters."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def parse(self) -> Pattern:
        pattern = self._choice()
        if self._at < len(self._text):
            raise self._error("`)` without `(`")
        return pattern

    def _error(self, message: str) -> InvalidValueError:
        return InvalidValueError(f"{message} (at character {self._at + 1} of the pattern)")

    @property
    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._next
        if not char:
            raise self._error("the pattern ends too early")
        self._at += 1
        return char

    def _choice(self) -> Pattern:
        items = [self._sequence()]
        while self._next == "|":
            self._at += 1
            items.append(self._sequence())
        return alternatives(items)

    def _sequence(self) -> Pattern:
        items: list[Pattern] = []
        while self._next and self._next not in "|)":
            items.append(self._quantified())
        return items[0] if len(items) == 1 else Series(tuple(items))

    def _quantified(self) -> Pattern:
        item = self._atom()
        if self._next not in set("*+?{"):
            return item
        if isinstance(item, Begin | End):
            raise self._error("an anchor cannot be repeated")
        low, high = self._quantifier()
        if self._next == "?":
            self._at += 1  # lazy: which match is found first does not matter here
        if self._next in set("*+?{"):
            raise self._error("one repetition directly after another")
        if high is None and isinstance(item, Repeat) and item.high is None:
            raise self._error("a repetition of nothing but a repetition, as in `(a+)+`")
        return Repeat(item, low, high)

    def _quantifier(self) -> tuple[int, int | None]:
        char = self._take()
        if char != "{":
            return _QUANTIFIERS[char]
        low = self._count()
        high: int | None = low
        if self._next == ",":
            self._at += 1
            high = None if self._next == "}" else self._count()
        if self._take() != "}":
            raise self._error("expected `{n}`, `{n,}` or `{n,m}`; escape a literal `{`")
        if max(low, high or 0) > REPEAT_MAX or (high is not None and high < low):
            raise self._error(f"a repetition counts upwards, to {REPEAT_MAX} at most")
        return low, high

    def _count(self) -> int:
        start = self._at
        while self._next.isascii() and self._next.isdigit():
            self._at += 1
        digits = self._text[start : self._at]
        if not 0 < len(digits) < 6:
            raise self._error("expected a number in `{…}`; escape a literal `{`")
        return int(digits)

    def _atom(self) -> Pattern:
        char = self._take()
        match char:
            case "(":
                return self._group()
            case "[":
                return Characters(self._class())
            case ".":
                return Characters(_NOT_NEWLINE)
            case "^":
                return Begin()
            case "$":
                return End()
            case "\\":
                return self._escape()
            case "*" | "+" | "?" | "{":
                self._at -= 1
                raise self._error(f"`{char}` repeats nothing; escape a literal one")
            case _:
                return Characters(((ord(char), ord(char)),))

    def _group(self) -> Pattern:
        if self._next == "?":
            if not self._text.startswith("?:", self._at):
                raise self._error("`(?…)` is not supported, except `(?:…)`")
            self._at += 2
        self._depth += 1
        if self._depth > GROUP_DEPTH_MAX:
            raise self._error(f"groups nested deeper than {GROUP_DEPTH_MAX}")
        inner = self._choice()
        self._depth -= 1
        if self._next != ")":
            raise self._error("`(` without `)`")
        self._at += 1
        return inner

    def _escape(self) -> Pattern:
        char = self._take()
        if char in _CLASSES:
            return Characters(_CLASSES[char])
        if char == "A":
            return Begin()
        if char == "z":
            return End()
        code = self._escaped_code(char)
        return Characters(((code, code),))

    def _escaped_code(self, char: str) -> int:
        if char in _CONTROLS:
            return ord(_CONTROLS[char])
        if char.isalnum() or not char.isascii():
            self._at -= 1
            raise self._error(f"`\\{char}` is not supported")
        return ord(char)

    def _class(self) -> Ranges:
        negated = self._next == "^"
        if negated:
            self._at += 1
        ranges: list[tuple[int, int]] = []
        while self._next != "]" or not ranges:
            ranges.extend(self._class_item())
        self._at += 1
        return any_but(ranges) if negated else tuple(ranges)

    def _class_item(self) -> Ranges:
        if self._text.startswith("[:", self._at):
            raise self._error("`[:name:]` is not supported")
        low = self._class_end()
        if not isinstance(low, int):
            return low
        if self._next != "-" or self._text.startswith("-]", self._at):
            return ((low, low),)
        self._at += 1
        high = self._class_end()
        if not isinstance(high, int) or high < low:
            raise self._error("a range goes from a lower to a higher character")
        return ((low, high),)

    def _class_end(self) -> int | Ranges:
        char = self._take()
        if char != "\\":
            return ord(char)
        char = self._take()
        return _CLASSES[char] if char in _CLASSES else self._escaped_code(char)


def is_anchored(pattern: Pattern) -> bool:
    """Return whether every match begins at the text's beginning and ends at its end."""
    return _edge(pattern, Begin, 0) and _edge(pattern, End, -1)


def _edge(pattern: Pattern, anchor: type[Begin] | type[End], side: int) -> bool:
    if isinstance(pattern, Series):
        return bool(pattern.items) and _edge(pattern.items[side], anchor, side)
    items = getattr(pattern, "items", None)
    if items is not None:
        return all(_edge(item, anchor, side) for item in items)
    return isinstance(pattern, anchor)
