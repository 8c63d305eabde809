"""Roles that are known only at a decision: rows that hold for a time, names that are patterns.

A role test walks from the member upwards over the rows that apply: those of the name itself, those
whose member is a pattern that the name matches, in the domain and the domain patterns that match
it, at the given time. Nothing is kept between two decisions. A walk over more than
`ROLE_WALK_MAX` names, or more than `ROLE_TRIES_MAX` tries of a pattern, fails and so denies.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from authz_server.core.errors import InvalidValueError
from authz_server.policy.functions import compile_constants, is_literal, role_function, time_test
from authz_server.policy.limits import ROLE_PATTERNS_MAX, ROLE_TRIES_MAX, ROLE_WALK_MAX
from authz_server.policy.model import RoleDefinition, RoleMatching
from authz_server.policy.patterns import TextTest
from authz_server.policy.roles import checked_texts
from authz_server.policy.runtime import EvaluationError

Holds = Callable[[int], bool]
_NO_DOMAIN: Final = ""


@dataclass(slots=True)
class _Domain:
    """The rows of one domain, or domain pattern, by member."""

    named: dict[str, list[tuple[str, Holds | None]]]
    patterns: dict[str, tuple[TextTest, list[tuple[str, Holds | None]]]]

    def above(self, name: str) -> Iterator[tuple[str, Holds | None]]:
        yield from self.named.get(name, ())
        for test, links in self.patterns.values():
            if test(name):
                yield from links


class RoleWalk:
    """Roles of one definition. Once its rows are added it changes no more."""

    live: ClassVar[bool] = True

    def __init__(self, definition: RoleDefinition, matching: RoleMatching) -> None:
        self._definition = definition
        self._matching = matching
        self._domains: dict[str, _Domain] = {}
        self._domain_patterns: dict[str, TextTest] = {}
        self._patterns: set[tuple[str, str]] = set()
        self._named: set[str] = set()

    @property
    def empty(self) -> bool:
        """Whether nobody has any role."""
        return not self._named

    def add(self, link: Sequence[str]) -> None:
        """Take one row. Raises `InvalidValueError` for one that it cannot be."""
        member, role, *rest = link
        domain = rest.pop(0) if self._definition.arity > 2 else _NO_DOMAIN
        holds = time_test(tuple(rest)) if self._definition.temporal else None
        found = self._domains.setdefault(domain, _Domain({}, {}))
        if self._pattern(self._matching.domains, domain):
            self._domain_patterns[domain] = _test(self._matching.domains, domain)
        if self._pattern(self._matching.members, role):
            message = f"`{role}` is a pattern; a pattern stands only as the member of a row"
            raise InvalidValueError(message)
        if self._pattern(self._matching.members, member):
            test = _test(self._matching.members, member)
            found.patterns.setdefault(member, (test, []))[1].append((role, holds))
        else:
            found.named.setdefault(member, []).append((role, holds))
        self._named.add(role)

    def _pattern(self, function: str | None, text: str) -> bool:
        if function is None or is_literal(function, text):
            return False
        self._patterns.add((function, text))
        if len(self._patterns) > ROLE_PATTERNS_MAX:
            raise InvalidValueError(f"more than {ROLE_PATTERNS_MAX} patterns")
        return True

    def test(self, *, identity: bool) -> Callable[..., bool]:
        """Return `g`, a function of the time, member, role and domain; see `Roles.test`."""

        def has(now: int, member: object, role: object, *domain: object) -> bool:
            if member is None or role is None or None in domain:
                return False
            first, last, *within = checked_texts(member, role, *domain)
            if identity and first in self._named:
                return False
            return first == last or self._reaches(first, last, self._in(within), now)

        return has

    def _in(self, domain: Sequence[str]) -> list[_Domain]:
        name = domain[0] if domain else _NO_DOMAIN
        found = [name] if name in self._domains else []
        found += [one for one, test in self._domain_patterns.items() if one != name and test(name)]
        return [self._domains[one] for one in found]

    def _reaches(self, member: str, role: str, domains: Sequence[_Domain], now: int) -> bool:
        seen = {member}
        waiting = [member]
        tries, tries_each = 0, sum(len(domain.patterns) for domain in domains)
        while waiting:
            name = waiting.pop()
            tries += tries_each
            for domain in domains:
                for above, holds in domain.above(name):
                    if above in seen or not (holds is None or holds(now)):
                        continue
                    if above == role:
                        return True
                    seen.add(above)
                    waiting.append(above)
            if len(seen) > ROLE_WALK_MAX or tries > ROLE_TRIES_MAX:
                raise EvaluationError("a role test went over too many names")
        return False


def _test(function: str | None, pattern: str) -> TextTest:
    assert function is not None
    compiled = compile_constants(role_function(function), (pattern,))
    return lambda text: bool(compiled(text))
