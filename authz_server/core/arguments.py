"""Arguments out of a JSON document, by the pointers a policy bundle declares (RFC 6901).

A rule must not be switched off by sending its argument in another shape. So whatever the
declaration does not foresee is not missing but `AMBIGUOUS`, and a rule that reads it fails the
decision: a scalar or a list where an object was meant, an object where a scalar was, a list too
long to be searched, and a member whose name differs only by letter case, which readers such as Go's
`encoding/json` take for the declared one (GHSA-4gph-2hhr-5mwg).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from authz_server.core import limits
from authz_server.core.attributes import AMBIGUOUS, AttributeMap, AttributeValue
from authz_server.core.errors import InvalidValueError

Spellings = Callable[[str], int]

_ABSENT: Final = object()
_FEW: Final = 16  # names that are counted sooner than a table of them is made
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")  # RFC 6901 §4: no leading zeros
_ESCAPE_FAULT: Final = re.compile(r"~(?![01])")  # RFC 6901 §3


@dataclass(frozen=True, slots=True)
class Pointer:
    """A JSON Pointer. `tokens` are unescaped, outermost first; none point at the whole document."""

    tokens: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Pointer":
        """Return the pointer that `text` spells.

        Raises `InvalidValueError`, also for `-`: the element after the last never exists.
        """
        if len(text) > limits.POINTER_CHARS_MAX:
            raise InvalidValueError(f"longer than {limits.POINTER_CHARS_MAX} characters")
        if text and not text.startswith("/"):
            raise InvalidValueError("a JSON pointer is empty or begins with `/`")
        if _ESCAPE_FAULT.search(text):
            raise InvalidValueError("`~` is written `~0` in a JSON pointer, `/` in a name `~1`")
        tokens = tuple(token.replace("~1", "/").replace("~0", "~") for token in text.split("/")[1:])
        if "-" in tokens:
            raise InvalidValueError("`-` is the element after the last, which no body has")
        return cls(tokens)

    def __str__(self) -> str:
        return "".join(f"/{token.replace('~', '~0').replace('/', '~1')}" for token in self.tokens)


Declaration = Mapping[str, Pointer]


def declared(declaration: Declaration, document: object) -> dict[str, AttributeValue]:
    """Return every declared argument out of a parsed JSON document (`strict_json.loads`).

    One that the document lacks is None, one of another shape than declared is `AMBIGUOUS`. Time is
    linear in the declaration and in the members of the containers that its pointers pass.
    """
    spellings: dict[int, Spellings] = {}
    return {name: _resolve(pointer, document, spellings) for name, pointer in declaration.items()}


def attribute_value(value: object) -> AttributeValue:
    """Return a JSON value as a rule may read it: scalars as they are, a list of scalars as a tuple.

    A list is read by `in` alone (`policy.runtime.read`): compared with a text it would be unequal.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if not isinstance(value, list) or len(value) > limits.ARGUMENT_ITEMS_MAX:
        return AMBIGUOUS
    if any(isinstance(item, list | dict) for item in value):
        return AMBIGUOUS
    return tuple(value)


class NamedArguments(Mapping[str, AttributeValue]):
    """Arguments that carry their names on the wire, and the declared ones over them.

    Reading a name that the request spells in another letter case, also or only, is `AMBIGUOUS`.
    """

    __slots__ = ("_declared", "_named", "_spellings")

    def __init__(self, named: Mapping[str, object], declared: AttributeMap) -> None:
        self._named = named
        self._declared = declared
        self._spellings: Spellings | None = None

    def __getitem__(self, name: str) -> AttributeValue:
        if name in self._declared:
            return self._declared[name]
        # Most requests meet no rule that reads an argument, so names are compared when one is read.
        if self._spellings is None:
            self._spellings = _spellings(self._named)
        value = _member(self._named, name, self._spellings)
        if value is _ABSENT:
            raise KeyError(name)
        return attribute_value(value)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._named, **self._declared})

    def __len__(self) -> int:
        return len(self._named.keys() | self._declared.keys())


def _resolve(pointer: Pointer, document: object, spellings: dict[int, Spellings]) -> AttributeValue:
    value = document
    for token in pointer.tokens:
        if isinstance(value, dict):
            # Containers live as long as `document`, so their ids are theirs alone.
            if (known := spellings.get(id(value))) is None:
                known = spellings[id(value)] = _spellings(value)
            value = _member(value, token, known)
        elif isinstance(value, list) and _INDEX.fullmatch(token):
            value = value[int(token)] if int(token) < len(value) else None
        else:
            return None if value is None else AMBIGUOUS
        if value is _ABSENT:
            return None
        if value is AMBIGUOUS:
            return AMBIGUOUS
    return attribute_value(value)


def _spellings(members: Mapping[str, object]) -> Spellings:
    """Return how often a case-folded name stands among `members`."""
    folded = list(map(str.casefold, members))
    return folded.count if len(folded) <= _FEW else Counter(folded).__getitem__


def _member(members: Mapping[str, object], name: str, spellings: Spellings) -> object:
    """Return the member `name`, `_ABSENT` or `AMBIGUOUS`."""
    present = name in members
    if spellings(name.casefold()) != present:
        return AMBIGUOUS
    return members[name] if present else _ABSENT
