"""Casbin's path patterns (`keyMatch2` to `keyMatch5`), compiled to matchers in linear time.

Casbin turns a pattern into a backtracking regular expression in which every other character keeps
its regex meaning. Here a pattern is a list of segments: literal text, one variable (`:id` in
keyMatch2, `{id}` in 3 to 5), or `*`, which in Casbin's `/*` means "the rest, over any number of
segments". A character with a regex meaning is refused, except `.`, which stands for itself (in
Casbin it matches any character).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from authz_server.core.errors import InvalidValueError
from authz_server.policy.limits import PATTERN_CHARS_MAX

TextTest = Callable[[str], bool]
TextMap = Callable[[str], str]

_REGEX_CHARACTERS: Final = frozenset("()[]{}+?^$|\\*")
_BRACES = re.compile(r"([^{}]*)\{([^{}]+)\}([^{}]*)")
_COLON = re.compile(r"([^:]*):([^:]+)")
_VARIABLE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment: `prefix + at least one character + suffix`; a literal is all prefix."""

    prefix: str
    variable: str | None = None
    suffix: str = ""
    rest: bool = False  # `*`: one or more segments of any content

    def matches(self, text: str) -> bool:
        """Return whether one segment of a path matches."""
        if self.variable is None:
            return text == self.prefix
        if not self.prefix and not self.suffix:
            return bool(text)
        return (
            len(text) > len(self.prefix) + len(self.suffix)
            and text.startswith(self.prefix)
            and text.endswith(self.suffix)
        )

    def value(self, text: str) -> str:
        """Return what the variable stands for in a segment that matches."""
        return text[len(self.prefix) : len(text) - len(self.suffix)]


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A parsed pattern. INVARIANT: `*` is always a whole segment."""

    segments: tuple[Segment, ...]

    def test(self) -> TextTest:
        """Return a function that tells whether a path matches."""
        rests = [index for index, segment in enumerate(self.segments) if segment.rest]
        if not rests or rests == [len(self.segments) - 1]:
            return _segment_test(self.segments)
        return lambda path: _match_with_gaps(self.segments, path.split("/"))

    def literals(self) -> tuple[tuple[int, str], ...]:
        """Return (position, text) of the segments that every matching path has."""
        found = []
        for index, segment in enumerate(self.segments):
            if segment.rest:
                break
            if segment.variable is None:
                found.append((index, segment.prefix))
        return tuple(found)


@lru_cache(maxsize=64)  # the index and the matcher ask for the same pattern in turn
def parse_pattern(text: str, *, braces: bool) -> PathPattern:
    """Parse a keyMatch2 pattern or, with `braces`, one of keyMatch3 to 5.

    Raises `InvalidValueError` where Casbin would read a character as a regular expression.
    """
    if len(text) > PATTERN_CHARS_MAX:
        raise InvalidValueError(f"the pattern is longer than {PATTERN_CHARS_MAX} characters")
    if text == "*" and not braces:
        return PathPattern((Segment("", rest=True),))
    parts = text.split("/")
    if parts[0] == "*":
        raise InvalidValueError("`*` must follow a `/`")
    return PathPattern(tuple(_segment(part, braces=braces) for part in parts))


def _segment(text: str, *, braces: bool) -> Segment:
    if text == "*":
        return Segment("", rest=True)
    match = (_BRACES if braces else _COLON).fullmatch(text)
    if match is None:
        if ":" in text and not braces:
            raise InvalidValueError(f"`{text}` is no variable; write `:name` to the segment's end")
        _refuse_regex(text)
        return Segment(text)
    prefix, name, suffix = match[1], match[2], match[3] if braces else ""
    _refuse_regex(prefix)
    _refuse_regex(suffix)
    if not _VARIABLE.fullmatch(name):
        # Casbin's `:id.json` takes all of the segment, whatever it ends in.
        raise InvalidValueError(f"`{name}` is no variable name: letters, digits, `_` and `-` only")
    return Segment(prefix, name, suffix)


def _refuse_regex(text: str) -> None:
    for char in text:
        if char == "*":
            raise InvalidValueError("`*` must be a whole segment, as in `/files/*`")
        if char in _REGEX_CHARACTERS:
            raise InvalidValueError(f"`{char}` has a regex meaning in Casbin's path patterns")


def is_plain(pattern: PathPattern) -> bool:
    """Return whether every segment is a literal, a whole variable or a `*` at the end."""
    return not any(segment.rest for segment in pattern.segments[:-1]) and all(
        segment.variable is None or not (segment.prefix or segment.suffix)
        for segment in pattern.segments
    )


def _segment_test(segments: Sequence[Segment]) -> TextTest:
    """Return a test for a pattern whose only `*`, if any, is its end.

    Splitting is as fast as a regular expression here and compiles a hundred times faster.
    """
    open_end = bool(segments) and segments[-1].rest
    fixed = segments[:-1] if open_end else segments
    count = len(segments)
    literals = [(at, one.prefix) for at, one in enumerate(fixed) if one.variable is None]
    # The last literal first: patterns of one policy tend to begin alike.
    literals.reverse()
    variables = [(at, one.matches) for at, one in enumerate(fixed) if one.variable is not None]

    def matches(path: str) -> bool:
        parts = path.split("/")
        if len(parts) != count and (len(parts) < count or not open_end):
            return False
        for at, text in literals:
            if parts[at] != text:
                return False
        return all(test(parts[at]) for at, test in variables)

    return matches


def _match_with_gaps(pattern: Sequence[Segment], path: Sequence[str]) -> bool:
    """Match with `*` between segments: the leftmost place of each run is as good as any other.

    Each run of the pattern between two `*` is placed once, so the cost is at most
    len(pattern) * len(path) segment comparisons.
    """
    head, *middle, tail = _runs(pattern)
    end = len(path) - len(tail)
    if end < len(head) or not _run_at(head, path, 0) or not _run_at(tail, path, end):
        return False
    at = len(head) + 1  # every `*` takes one segment at least
    for run in middle:
        while at + len(run) < end and not _run_at(run, path, at):
            at += 1
        if at + len(run) >= end:
            return False
        at += len(run) + 1
    return at <= end


def _runs(pattern: Sequence[Segment]) -> list[list[Segment]]:
    runs: list[list[Segment]] = [[]]
    for segment in pattern:
        if segment.rest:
            runs.append([])
        else:
            runs[-1].append(segment)
    return runs


def _run_at(run: Sequence[Segment], path: Sequence[str], at: int) -> bool:
    return all(segment.matches(path[at + index]) for index, segment in enumerate(run))
