"""Static roles: `g, member, role[, domain]` rows and their transitive closure, computed once.

Look-ups never add anything, so a flood of unseen subjects costs no memory. Cycles are harmless;
depth is bounded by the closure's size, not by a number of levels (Casbin silently stops at 10).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from authz_server.core.errors import InvalidValueError
from authz_server.policy.limits import ROLE_CLOSURE_MAX
from authz_server.policy.runtime import EvaluationError

Name = str | tuple[str, str]  # a name, or (name, domain)


@dataclass(frozen=True, slots=True)
class RoleGraph:
    """Who has which role. `reached` maps a member to every role above it."""

    reached: Mapping[Name, frozenset[Name]]
    roles: frozenset[Name]  # every name that has a member

    @classmethod
    def build(cls, links: Iterable[Sequence[str]]) -> "RoleGraph":
        """Return the closure of (member, role) or (member, role, domain) links.

        Raises `InvalidValueError` when it would hold more than `ROLE_CLOSURE_MAX` entries.
        """
        parents: dict[Name, set[Name]] = {}
        for link in links:
            parents.setdefault(_name(link[0], link[2:]), set()).add(_name(link[1], link[2:]))
        reached: dict[Name, frozenset[Name]] = {}
        shared: dict[frozenset[Name], frozenset[Name]] = {}
        size = 0
        for member, direct in parents.items():
            key = frozenset(direct)
            if key not in shared:
                shared[key] = _ancestors(direct, parents)
                size += len(shared[key])
            reached[member] = shared[key]
            if size > ROLE_CLOSURE_MAX:
                raise InvalidValueError("the role hierarchy is too deep: its closure is too large")
        roles = frozenset(role for direct in parents.values() for role in direct)
        return cls(reached, roles)

    def test(self, *, identity: bool) -> Callable[..., bool]:
        """Return `g`: a function of member, role and, if the links have one, domain.

        As in Casbin every name has the role of its own name, so that a rule can name one member.
        SECURITY: an issuer may call a subject `admin`. With `identity` (the member is the identity
        itself, not an attribute given to it) being called like a role that has members is not
        having it.
        """
        reached, roles = self.reached, self.roles

        def has(member: object, role: object, *domain: object) -> bool:
            if member is None or role is None or None in domain:
                return False
            names = _texts(member, role, *domain)
            held = _name(names[1], names[2:])
            if member == role and not (identity and held in roles):
                return True
            return held in reached.get(_name(names[0], names[2:]), ())

        return has


def _texts(*values: object) -> tuple[str, ...]:
    for value in values:
        if not isinstance(value, str):
            raise EvaluationError("a role test was given a value that is not text")
    return cast(tuple[str, ...], values)


def _name(name: str, domain: Sequence[str]) -> Name:
    return (name, domain[0]) if domain else name


def _ancestors(direct: Iterable[Name], parents: Mapping[Name, Iterable[Name]]) -> frozenset[Name]:
    found: set[Name] = set()
    waiting = list(direct)
    while waiting:
        role = waiting.pop()
        if role not in found:
            found.add(role)
            if len(found) > ROLE_CLOSURE_MAX:
                break
            waiting.extend(parents.get(role, ()))
    return frozenset(found)
