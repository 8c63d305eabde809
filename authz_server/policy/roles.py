"""Roles: `g, member, role[, domain]` rows and their transitive closure, computed once.

Look-ups never add anything, so a flood of unseen subjects costs no memory. Cycles are harmless;
depth is bounded by the closure's size, not by a number of levels (Casbin silently stops at 10).
Rows that hold for a time, or whose names are patterns, have no closure: see `role_walk`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

from authz_server.core.errors import InvalidValueError
from authz_server.policy.limits import ROLE_CLOSURE_MAX
from authz_server.policy.runtime import EvaluationError

Name = str | tuple[str, str]  # a name, or (name, domain)


class Roles(Protocol):
    """Who has which role, for one definition.

    `live`: a test depends on the time and may fail, and takes the time (Unix seconds) first.
    """

    @property
    def live(self) -> bool:
        """Whether the answer is not known at load."""

    @property
    def empty(self) -> bool:
        """Whether nobody has any role."""

    def test(self, *, identity: bool) -> Callable[..., bool]:
        """Return `g`: a function of member, role and, if the rows have one, domain.

        As in Casbin every name has the role of its own name, so that a rule can name one member.
        SECURITY: an issuer may call a subject `admin`. With `identity` (the member is the identity
        itself, not an attribute given to it) one who is called like a role that has members has
        neither that role nor those above it.
        """


@dataclass(frozen=True, slots=True)
class RoleGraph:
    """Roles known at load. `reached` maps a member to every role above it."""

    live: ClassVar[bool] = False
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

    @property
    def empty(self) -> bool:
        """Whether nobody has any role."""
        return not self.roles

    def test(self, *, identity: bool) -> Callable[..., bool]:
        """Return `g`; see `Roles.test`."""
        reached, roles = self.reached, self.roles

        def has(member: object, role: object, *domain: object) -> bool:
            if member is None or role is None or None in domain:
                return False
            names = checked_texts(member, role, *domain)
            holder = _name(names[0], names[2:])
            if identity and holder in roles:
                return False
            return member == role or _name(names[1], names[2:]) in reached.get(holder, ())

        return has

    def held(self, member: object, domain: Sequence[object]) -> Iterable[object]:
        """Return all that `test` may find: the member's roles, by name or (name, domain)."""
        if not isinstance(member, str) or not all(isinstance(one, str) for one in domain):
            return ()
        own = _name(member, cast(Sequence[str], domain))
        return (*self.reached.get(own, ()), own)


def checked_texts(*values: object) -> tuple[str, ...]:
    """Return `values`, which a request may have given. Raises `EvaluationError` for a non-text."""
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


def levels(links: Iterable[Sequence[str]]) -> Mapping[Name, int]:
    """Return how high each name stands above the lowest below it: 0 for one without members.

    For `subjectPriority`, whose hierarchy is a tree: raises `InvalidValueError` for a cycle and for
    a name with two roles, which Casbin's implementations order differently.
    """
    parent: dict[Name, Name] = {}
    for link in links:
        member, role = _name(link[0], link[2:]), _name(link[1], link[2:])
        if parent.setdefault(member, role) != role:
            raise InvalidValueError(f"`{link[0]}` has two roles; subjectPriority needs a tree")
    found: dict[Name, int] = {}
    for member in parent:
        name, height, seen = member, 0, {member}
        while above := parent.get(name):
            name, height = above, height + 1
            if name in seen:
                raise InvalidValueError("subjectPriority needs a tree, and here is a cycle")
            seen.add(name)
            if found.get(name, 0) >= height:
                break
            found[name] = height
    return found
