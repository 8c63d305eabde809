r"""Split a matcher into tokens.

Literals hold any character and are never rewritten (Casbin substitutes text: `r.`, `p.`, `!`, `&&`
inside quotes change there). A backslash is kept only where every Casbin reads it alike: `\\`, `\"`
and `\'`.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from authz_server.core.limits import EXPRESSION_CHARS_MAX
from authz_server.policy.limits import NUMBER_DIGITS_MAX
from authz_server.policy.source import FaultFound, Fragment


class TokenKind(Enum):
    """What a token is."""

    NAME = auto()
    KEYWORD = auto()
    STRING = auto()
    NUMBER = auto()
    OPERATOR = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class Token:
    """One token; `text` is a literal's value, unquoted. `at` is its offset in the fragment."""

    kind: TokenKind
    text: str
    at: int


KEYWORDS: Final = frozenset(
    {"and", "or", "not", "in", "true", "false", "True", "False", "nil", "None"}
)
_SPACE = re.compile(r"[ \t\r\n]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?")
_OPERATOR = re.compile(r"&&|\|\||==|!=|<=|>=|[<>!+\-*/%(),.\[\]]")
# What other Casbins or Python would read, and what to say about it.
_FOREIGN: Final = {
    "=~": "`=~` is not supported; use regexMatch",
    "!~": "`!~` is not supported; use !regexMatch(...)",
    "**": "`**` is not supported",
    "//": "`//` is not supported",
    "??": "`??` is not supported",
    "<<": "`<<` is not supported",
    ">>": "`>>` is not supported",
    "=": "a single `=` compares nothing; write `==`",
    "&": "a single `&`; write `&&`",
    "|": "a single `|`; write `||`",
    "?": "the conditional operator is not supported",
    "#": "a comment cannot stand inside an expression",
}


def tokenize(source: Fragment) -> list[Token]:
    """Return the tokens of `source`, an END last. Raises `FaultFound` at the first bad one."""
    text = source.text
    if len(text) > EXPRESSION_CHARS_MAX:
        raise FaultFound(source.fault(0, f"longer than {EXPRESSION_CHARS_MAX} characters"))
    tokens: list[Token] = []
    at = _skip_space(text, 0)
    while at < len(text):
        token, at = _next(source, at)
        tokens.append(token)
        at = _skip_space(text, at)
    tokens.append(Token(TokenKind.END, "", len(text)))
    return tokens


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _next(source: Fragment, at: int) -> tuple[Token, int]:
    text = source.text
    if text[at] in "'\"":
        return _string(source, at)
    if match := _NAME.match(text, at):
        kind = TokenKind.KEYWORD if match[0] in KEYWORDS else TokenKind.NAME
        return Token(kind, match[0], at), match.end()
    if match := _NUMBER.match(text, at):
        return _number(source, match), match.end()
    if text[at : at + 2] in _FOREIGN:
        raise FaultFound(source.fault(at, _FOREIGN[text[at : at + 2]]))
    if match := _OPERATOR.match(text, at):
        return Token(TokenKind.OPERATOR, match[0], at), match.end()
    message = _FOREIGN.get(text[at], f"unexpected character {text[at]!a}")
    raise FaultFound(source.fault(at, message))


def _string(source: Fragment, start: int) -> tuple[Token, int]:
    text, quote = source.text, source.text[start]
    parts: list[str] = []
    at = start + 1
    while at < len(text) and text[at] != quote:
        if text[at] == "\\":
            if text[at + 1 : at + 2] not in {"\\", "'", '"'}:
                message = "a backslash in a literal must be doubled: `\\\\`"
                raise FaultFound(source.fault(at, message))
            at += 1
        parts.append(text[at])
        at += 1
    if at >= len(text):
        raise FaultFound(source.fault(start, "the literal has no closing quote"))
    return Token(TokenKind.STRING, "".join(parts), start), at + 1


def _number(source: Fragment, match: re.Match[str]) -> Token:
    at, end = match.span()
    if len(match[0]) > NUMBER_DIGITS_MAX:
        message = f"a number has at most {NUMBER_DIGITS_MAX} digits"
        raise FaultFound(source.fault(at, message))
    follower = source.text[end : end + 1]
    if follower.isalnum() or follower in {"_", "."}:
        message = "numbers are written 12 or 1.5: no exponent, no leading zero, no other base"
        raise FaultFound(source.fault(at, message))
    return Token(TokenKind.NUMBER, match[0], at)
