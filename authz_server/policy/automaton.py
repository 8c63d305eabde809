"""Finite automata: the patterns of regexMatch and globMatch, matched in one step per character.

Determinised at load, so a match never backtracks: its time is the length of the text, whatever the
pattern. What a pattern can cost is paid once, at load, and bounded: one that needs more than
`STATES_MAX` states is refused.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from authz_server.core.errors import InvalidValueError

STATES_MAX: Final = 1_000  # `(a|b)*a(a|b){8}` needs 512; nothing readable needs more
PARTS_MAX: Final = 4_000  # of the automaton before it is determinised; bounds `{n,m}`
LAST_CHARACTER: Final = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Characters:
    """One character out of `ranges` (code points, both ends included)."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Series:
    """One after the other."""

    items: tuple["Pattern", ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Any one of them."""

    items: tuple["Pattern", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`low` times at least and `high` at most; None: without end."""

    item: "Pattern"
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Begin:
    """The beginning of the text."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of the text."""


Pattern = Characters | Series | Choice | Repeat | Begin | End


def any_but(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return every character outside `ranges`."""
    found: list[tuple[int, int]] = []
    start = 0
    for low, high in sorted(ranges):
        if low > start:
            found.append((start, low - 1))
        start = max(start, high + 1)
    if start <= LAST_CHARACTER:
        found.append((start, LAST_CHARACTER))
    return tuple(found)


def literal(text: str) -> Series:
    """Return the pattern of exactly `text`."""
    return Series(tuple(Characters(((ord(char), ord(char)),)) for char in text))


# --- nondeterministic -----------------------------------------------------------------------


@dataclass(slots=True)
class _Parts:
    """States with edges: free ones (perhaps only at the text's begin or end), and by character."""

    free: list[list[tuple[int, type[Begin] | type[End] | None]]] = field(default_factory=list)
    by_character: list[list[tuple[Ranges, int]]] = field(default_factory=list)

    def state(self) -> int:
        if len(self.free) >= PARTS_MAX:
            raise InvalidValueError("the pattern is too large; lower its repetitions")
        self.free.append([])
        self.by_character.append([])
        return len(self.free) - 1

    def build(self, pattern: Pattern, start: int) -> int:
        """Add `pattern` from `start` and return the state where it ends."""
        match pattern:
            case Characters(ranges=ranges):
                end = self.state()
                self.by_character[start].append((ranges, end))
                return end
            case Series(items=items):
                for item in items:
                    start = self.build(item, start)
                return start
            case Choice(items=items):
                end = self.state()
                for item in items:
                    begin = self.state()
                    self.free[start].append((begin, None))
                    self.free[self.build(item, begin)].append((end, None))
                return end
            case Repeat():
                return self._repeat(pattern, start)
            case Begin() | End():
                end = self.state()
                self.free[start].append((end, type(pattern)))
                return end

    def _repeat(self, pattern: Repeat, start: int) -> int:
        for _ in range(pattern.low):
            start = self.build(pattern.item, start)
        if pattern.high is None:
            loop = self.state()
            self.free[start].append((loop, None))
            begin = self.state()
            self.free[loop].append((begin, None))
            self.free[self.build(pattern.item, begin)].append((loop, None))
            end = self.state()
            self.free[loop].append((end, None))
            return end
        end = self.state()
        self.free[start].append((end, None))
        for _ in range(pattern.high - pattern.low):
            start = self.build(pattern.item, start)
            self.free[start].append((end, None))
        return end

    def closure(
        self, states: Iterable[int], *, at_begin: bool = False, at_end: bool = False
    ) -> frozenset[int]:
        """Return all states reached without a character."""
        found = set(states)
        waiting = list(found)
        while waiting:
            for state, condition in self.free[waiting.pop()]:
                open_ = condition is None or (at_begin if condition is Begin else at_end)
                if open_ and state not in found:
                    found.add(state)
                    waiting.append(state)
        return frozenset(found)


# --- deterministic --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Automaton:
    """A determinised pattern. State 0 rejects whatever follows, state 1 accepts it.

    `bounds` are the first code points of the character classes, ascending from 0.
    """

    table: tuple[tuple[int, ...], ...]
    accepts_at_end: tuple[bool, ...]
    bounds: tuple[int, ...]
    ascii: tuple[int, ...]
    start: int

    def matches(self, text: str) -> bool:
        """Return whether the pattern matches `text`."""
        table, ascii_, bounds = self.table, self.ascii, self.bounds
        state = self.start
        for char in text:
            if state < 2:  # decided
                return state == 1
            code = ord(char)
            kind = ascii_[code] if code < 128 else bisect_right(bounds, code) - 1
            state = table[state][kind]
        return self.accepts_at_end[state]


def compile_pattern(pattern: Pattern) -> Automaton:
    """Return the automaton that finds `pattern` anywhere in a text.

    `Begin` and `End` anchor it. Raises `InvalidValueError` if it would be too large.
    """
    parts = _Parts()
    first = parts.state()
    last = parts.build(pattern, first)
    return _Determiniser(parts, first, last).run()


class _Determiniser:
    """The subset construction, with the search's restart at each character folded in."""

    def __init__(self, parts: _Parts, first: int, last: int) -> None:
        self._parts = parts
        self._last = last
        self._restart = parts.closure([first])
        self._begin = parts.closure([first], at_begin=True)
        self._bounds = _bounds(parts)
        self._numbers: dict[frozenset[int], int] = {}
        self._waiting: list[frozenset[int]] = []

    def run(self) -> Automaton:
        kinds = range(len(self._bounds))
        rows: dict[int, tuple[int, ...]] = {
            0: tuple(0 for _ in kinds),
            1: tuple(1 for _ in kinds),
        }
        at_end = {0: False, 1: True}
        # What can match the empty text at the very end, whatever came before.
        start = self._number(self._begin)
        if start > 1:
            at_end[start] = self._accepts_at_end(self._begin, at_begin=True)
        while self._waiting:
            states = self._waiting.pop()
            number = self._numbers[states]
            at_end.setdefault(number, self._accepts_at_end(states, at_begin=False))
            rows[number] = tuple(self._step(states, code) for code in self._bounds)
        table = tuple(rows[number] for number in range(len(rows)))
        return Automaton(
            table,
            tuple(at_end[number] for number in range(len(rows))),
            self._bounds,
            tuple(bisect_right(self._bounds, code) - 1 for code in range(128)),
            start,
        )

    def _accepts_at_end(self, states: frozenset[int], *, at_begin: bool) -> bool:
        return self._last in self._parts.closure(states, at_begin=at_begin, at_end=True)

    def _step(self, states: frozenset[int], code: int) -> int:
        reached = [
            target
            for state in states
            for ranges, target in self._parts.by_character[state]
            if any(low <= code <= high for low, high in ranges)
        ]
        return self._number(self._parts.closure(reached) | self._restart)

    def _number(self, states: frozenset[int]) -> int:
        if self._last in states:
            return 1
        if states not in self._numbers:
            if not self._lives(states):
                return 0
            if len(self._numbers) >= STATES_MAX:
                raise InvalidValueError(
                    "the pattern needs too many states; anchor it or lower its repetitions"
                )
            self._numbers[states] = len(self._numbers) + 2
            self._waiting.append(states)
        return self._numbers[states]

    def _lives(self, states: frozenset[int]) -> bool:
        """Return whether anything can still happen in `states`."""
        if any(self._parts.by_character[state] for state in states):
            return True
        return self._accepts_at_end(states, at_begin=False)


def _bounds(parts: _Parts) -> tuple[int, ...]:
    found = {0}
    for edges in parts.by_character:
        for ranges, _ in edges:
            for low, high in ranges:
                found.add(low)
                found.add(high + 1)
    return tuple(sorted(code for code in found if code <= LAST_CHARACTER))


def alternatives(items: Sequence[Pattern]) -> Pattern:
    """Return the one item, or the choice between several."""
    return items[0] if len(items) == 1 else Choice(tuple(items))
