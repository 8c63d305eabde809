"""Casbin's built-in functions with their documented meaning, compiled once per constant argument.

The first argument of each is read from the request (or the rule); the others are constants, and a
bad one is a load error. A pattern taken from the request itself is refused: it would let the caller
write the rule.
"""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from typing import Final

from authz_server.core.errors import InvalidValueError
from authz_server.policy.automaton import compile_pattern
from authz_server.policy.glob import parse_glob
from authz_server.policy.limits import PATTERN_CHARS_MAX
from authz_server.policy.patterns import (
    PathPattern,
    Segment,
    TextMap,
    TextTest,
    is_plain,
    parse_pattern,
)
from authz_server.policy.regex import is_anchored, parse_regex

Constants = tuple[str, ...]
Places = tuple[tuple[str, int, str], ...]  # separator, position (from the end if negative), text


@dataclass(frozen=True, slots=True)
class Exactly:
    """A pattern that only one text matches."""

    text: str


@dataclass(frozen=True, slots=True)
class Beginning:
    """A pattern that every text with this beginning matches."""

    text: str


Plan = Exactly | Beginning | PathPattern


@dataclass(frozen=True, slots=True)
class Function:
    """One function. `compile` takes the constant arguments and may raise `InvalidValueError`.

    `plan` gives a form that a matcher evaluates itself, without a call, or None; it raises as
    `compile` does. `literals` gives what every text that can match has between separators, for the
    index. `constants` is how many constant arguments follow the value. `usage` is shown when the
    count is wrong; `advice` is a warning about constants that do not mean what they seem to.
    """

    name: str
    usage: str
    constants: int
    compile: Callable[[Constants], TextTest | TextMap]
    returns_text: bool = False
    literals: Callable[[Constants], Places] | None = None
    advice: Callable[[Constants], str | None] | None = None
    plan: Callable[[Constants], Plan | None] | None = None


def _key_match(constants: Constants) -> TextTest:
    (pattern,) = constants
    head, star, tail = pattern.partition("*")
    if tail:
        raise InvalidValueError("keyMatch ignores all after `*`; end the pattern with it")
    if not star:
        return lambda text: text == pattern
    return lambda text: text.startswith(head)


def _key_match_plan(constants: Constants) -> Plan:
    _key_match(constants)
    head, star, _ = constants[0].partition("*")
    return Beginning(head) if star else Exactly(head)


def _key_match_literals(constants: Constants) -> Places:
    head, star, _ = constants[0].partition("*")
    parts = head.split("/")
    return tuple(("/", at, part) for at, part in enumerate(parts[:-1] if star else parts))


def _key_get(constants: Constants) -> TextMap:
    (pattern,) = constants
    _key_match(constants)
    head, star, _ = pattern.partition("*")
    if not star:
        raise InvalidValueError("keyGet needs a pattern that ends with `*`")
    return lambda text: text[len(head) :] if text.startswith(head) else ""


def _path_test(*, braces: bool) -> Callable[[Constants], TextTest]:
    return lambda constants: parse_pattern(constants[0], braces=braces).test()


def _path_plan(*, braces: bool) -> Callable[[Constants], Plan | None]:
    def plan(constants: Constants) -> Plan | None:
        pattern = parse_pattern(constants[0], braces=braces)
        return pattern if is_plain(pattern) else None

    return plan


def _key_match4_plan(constants: Constants) -> Plan | None:
    pattern = parse_pattern(constants[0], braces=True)
    repeated = any(len(places) > 1 for places in _variables(pattern).values())
    return pattern if is_plain(pattern) and not repeated else None


def _path_literals(*, braces: bool) -> Callable[[Constants], Places]:
    def literals(constants: Constants) -> Places:
        found = parse_pattern(constants[0], braces=braces).literals()
        return tuple([("/", at, text) for at, text in found])

    return literals


def _path_get(*, braces: bool) -> Callable[[Constants], TextMap]:
    def compiled(constants: Constants) -> TextMap:
        text, name = constants
        pattern = parse_pattern(text, braces=braces)
        places = _variables(pattern)
        if any(segment.rest for segment in pattern.segments[:-1]):
            raise InvalidValueError("a variable's place is not known with `*` before the end")
        if name not in places:
            raise InvalidValueError(f"the pattern has no variable `{name}`")
        index, test = places[name][0], pattern.test()
        segment = pattern.segments[index]
        return lambda path: segment.value(path.split("/")[index]) if test(path) else ""

    return compiled


def _variables(pattern: PathPattern) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for index, segment in enumerate(pattern.segments):
        if segment.variable is not None:
            places.setdefault(segment.variable, []).append(index)
    return places


def _key_match4(constants: Constants) -> TextTest:
    pattern = parse_pattern(constants[0], braces=True)
    test = pattern.test()
    repeated = [indexes for indexes in _variables(pattern).values() if len(indexes) > 1]
    if not repeated:
        return test
    if any(segment.rest for segment in pattern.segments[:-1]):
        raise InvalidValueError("a repeated variable's place is not known with `*` before the end")

    def matches(path: str) -> bool:
        if not test(path):
            return False
        parts = path.split("/")
        return all(
            len({_part(pattern.segments[index], parts[index]) for index in indexes}) == 1
            for indexes in repeated
        )

    return matches


def _part(segment: Segment, text: str) -> str:
    return segment.value(text)


def _key_match5(constants: Constants) -> TextTest:
    test = parse_pattern(constants[0], braces=True).test()
    return lambda path: test(path.partition("?")[0])


def _ip_match(constants: Constants) -> TextTest:
    try:
        network = ipaddress.ip_network(constants[0], strict=False)
    except ValueError as error:
        raise InvalidValueError("not an IP address or network (CIDR)") from error
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped:
        raise InvalidValueError("write an IPv4-mapped network as IPv4")

    def matches(text: str) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return address in network

    return matches


def _regex_match(constants: Constants) -> TextTest:
    return compile_pattern(parse_regex(constants[0])).matches


def _regex_advice(constants: Constants) -> str | None:
    if is_anchored(parse_regex(constants[0])):
        return None
    return "the pattern is searched anywhere in the text; anchor it with `^` and `$`"


def _glob_match(constants: Constants) -> TextTest:
    return compile_pattern(parse_glob(constants[0])).matches


_WILD: Final = frozenset("*?")


def _glob_literals(constants: Constants) -> Places:
    """Return the literal segments of a path, or the labels that end a host name."""
    pattern = constants[0]
    if "[" in pattern or "\\" in pattern:
        return ()
    if "/" in pattern:  # a glob has as many `/` as what it matches
        parts = enumerate(pattern.split("/"))
        return tuple(("/", at, part) for at, part in parts if not _WILD & set(part))
    labels = reversed(pattern.split("."))
    literal = tuple(takewhile(lambda label: not _WILD & set(label), labels))
    return tuple((".", -at, label) for at, label in enumerate(literal, 1))


_TIME_FORMAT: Final = "%Y-%m-%d %H:%M:%S"


def _unix_time(text: str) -> int | None:
    if text == "_":
        return None
    try:
        return int(datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC).timestamp())
    except ValueError as error:
        raise InvalidValueError("write a UTC time as `2026-01-31 23:59:59`, or `_`") from error


def time_test(constants: Constants) -> Callable[[int], bool]:
    """Return a test of Unix seconds strictly between two UTC times; `_` leaves one side open."""
    start, end = map(_unix_time, constants)
    if start is not None and end is not None and end - start < 2:
        raise InvalidValueError("no time lies between start and end")
    return lambda now: (start is None or now > start) and (end is None or now < end)


def compile_constants(function: Function, constants: Constants) -> TextTest | TextMap:
    """Return the compiled function. Raises `InvalidValueError` for a constant it cannot take."""
    if any(len(constant) > PATTERN_CHARS_MAX for constant in constants):
        raise InvalidValueError(f"longer than {PATTERN_CHARS_MAX} characters")
    return function.compile(constants)


FUNCTIONS: Final[Mapping[str, Function]] = {
    function.name: function
    for function in (
        Function(
            "keyMatch",
            "keyMatch(text, pattern)",
            1,
            _key_match,
            literals=_key_match_literals,
            plan=_key_match_plan,
        ),
        Function("keyGet", "keyGet(text, pattern)", 1, _key_get, True),
        Function(
            "keyMatch2",
            "keyMatch2(path, pattern)",
            1,
            _path_test(braces=False),
            literals=_path_literals(braces=False),
            plan=_path_plan(braces=False),
        ),
        Function("keyGet2", "keyGet2(path, pattern, variable)", 2, _path_get(braces=False), True),
        Function(
            "keyMatch3",
            "keyMatch3(path, pattern)",
            1,
            _path_test(braces=True),
            literals=_path_literals(braces=True),
            plan=_path_plan(braces=True),
        ),
        Function("keyGet3", "keyGet3(path, pattern, variable)", 2, _path_get(braces=True), True),
        Function(
            "keyMatch4",
            "keyMatch4(path, pattern)",
            1,
            _key_match4,
            literals=_path_literals(braces=True),
            plan=_key_match4_plan,
        ),
        Function("keyMatch5", "keyMatch5(path, pattern)", 1, _key_match5),
        Function("regexMatch", "regexMatch(text, pattern)", 1, _regex_match, advice=_regex_advice),
        Function("globMatch", "globMatch(text, pattern)", 1, _glob_match, literals=_glob_literals),
        Function("ipMatch", "ipMatch(address, network)", 1, _ip_match),
    )
}

# What may say that a name of a role row is a pattern, and the characters without which it is none.
# regexMatch is not among them: a plain name would be a pattern too, and `ann` match `joanna`.
ROLE_FUNCTIONS: Final[Mapping[str, str]] = {
    "keyMatch": "*",
    "keyMatch2": ":*",
    "keyMatch3": "{*",
    "keyMatch4": "{*",
    "keyMatch5": "{*",
    "globMatch": "*?[\\",
}


def role_function(name: str) -> Function:
    """Return the function called `name`, one of `ROLE_FUNCTIONS`."""
    return FUNCTIONS[name]


def is_literal(name: str, text: str) -> bool:
    """Return whether `text` matches nothing but itself under the role function `name`."""
    return not set(ROLE_FUNCTIONS[name]) & set(text)
