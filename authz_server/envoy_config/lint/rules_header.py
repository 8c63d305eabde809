"""Rules on headers: which of them the PDP is shown, and which its answer may change."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from authz_server.core.errors import InvalidValueError
from authz_server.core.protocols.http import OVERRIDES
from authz_server.core.request import SECURITY_HEADERS
from authz_server.envoy_config.lint.configuration import Configuration
from authz_server.envoy_config.lint.message import At, Message
from authz_server.envoy_config.lint.rule import ERROR, WARNING, Rule, each, is_not_true
from authz_server.policy.automaton import Automaton, compile_pattern
from authz_server.policy.regex import parse_regex

# What the PDP judges by: hidden from it, each makes another request of it to some upstreams.
_JUDGED: Final = SECURITY_HEADERS | OVERRIDES
_PATTERN_CHARS_MAX: Final = 256  # of an expression that is tried here on header names

# What an answer of the PDP must not be able to change: what was judged, and who is said to call.
_GUARDED_FROM_ANSWERS: Final = (
    ":path",
    ":method",
    "host",
    "authorization",
    "cookie",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-envoy-original-path",
)


def _questions(configuration: Configuration) -> list[Message]:
    return configuration.questions


_TESTS: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "exact": str.__eq__,
    "prefix": str.startswith,
    "suffix": str.endswith,
    "contains": str.__contains__,
}


def matches(matcher: Message, name: str) -> bool | None:
    """Tell whether a `StringMatcher` matches a header name; None if it cannot be told."""
    ignore_case = matcher.flag("ignore_case")
    for kind, test in _TESTS.items():
        if matcher.has(kind):
            value = matcher.text(kind)
            return test(name, value.lower() if ignore_case else value)
    expression = matcher.message("safe_regex")
    return None if expression is None else full_match(expression.text("regex"), name)


def full_match(expression: str, name: str) -> bool | None:
    """Tell whether an RE2 expression matches all of `name`; None if it cannot be told."""
    automaton = _automaton(expression)
    return None if automaton is None else automaton.matches(name)


@functools.lru_cache(maxsize=256)
def _automaton(expression: str) -> Automaton | None:
    if len(expression) > _PATTERN_CHARS_MAX:
        return None
    try:
        return compile_pattern(parse_regex(f"^({expression})$"))
    except InvalidValueError:
        return None


def _dropped(question: Message) -> Iterator[At]:
    allowed = question.message("allowed_headers")
    if allowed is None:
        return
    patterns = allowed.messages("patterns")
    missing = [
        name for name in sorted(_JUDGED) if not any(matches(pattern, name) for pattern in patterns)
    ]
    if missing:
        yield question.at("allowed_headers", f"without {_names(missing)}")


def _hidden(question: Message) -> Iterator[At]:
    disallowed = question.message("disallowed_headers")
    for pattern in disallowed.messages("patterns") if disallowed is not None else []:
        hit = [name for name in sorted(_JUDGED) if matches(pattern, name) is not False]
        if hit:
            yield pattern.at(note=_names(hit))


def _names(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _mutable(question: Message) -> Iterator[At]:
    rules = question.message("decoder_header_mutation_rules")
    if rules is None or not rules.flag("disallow_all"):
        yield question.at("decoder_header_mutation_rules")
        return
    expression = rules.message("allow_expression")
    if expression is None:
        return
    allowed = expression.text("regex")
    hit = [name for name in _GUARDED_FROM_ANSWERS if full_match(allowed, name) is not False]
    if hit:
        yield rules.at("allow_expression", f"allows {_names(hit)}")


RULES: Final = (
    Rule(
        id="EA214",
        severity=ERROR,
        title="headers reach the PDP as text, lines of one name joined",
        why="A header that was sent twice looks like one to the PDP and like two to the upstream, "
        "and bytes that are not UTF-8 are replaced.",
        fix="`encode_raw_headers: true`",
        judge=each(_questions, is_not_true("encode_raw_headers")),
    ),
    Rule(
        id="EA217",
        severity=ERROR,
        title="headers that count are kept from the PDP by `allowed_headers`",
        why="Everything that is not listed is dropped, pseudo-headers included: the upstream acts "
        "on headers that were never judged.",
        fix="leave `allowed_headers` out; name what is secret in `disallowed_headers`",
        judge=each(_questions, _dropped),
    ),
    Rule(
        id="EA218",
        severity=ERROR,
        title="headers that count are kept from the PDP by `disallowed_headers`",
        why="The upstream acts on headers that were never judged, and a delegation that the PDP "
        "does not see is none.",
        fix="`disallowed_headers: {patterns: [{exact: cookie, ignore_case: true}]}`",
        judge=each(_questions, _hidden),
    ),
    Rule(
        id="EA220",
        severity=WARNING,
        title="what the PDP answers is not validated",
        why="A header with a line break in it would be put into the request as it is.",
        fix="`validate_mutations: true`",
        judge=each(_questions, is_not_true("validate_mutations")),
    ),
    Rule(
        id="EA221",
        severity=WARNING,
        title="an answer of the PDP may change what was judged, or who is said to call",
        why="Whoever gets hold of the PDP, or of a bug in it, rewrites path, host or credentials "
        "of requests on their way.",
        fix="`decoder_header_mutation_rules: {disallow_all: true, allow_expression: {regex: "
        '"x-authz-.*"}}`',
        judge=each(_questions, _mutable),
    ),
)
