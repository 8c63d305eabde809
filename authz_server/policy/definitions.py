"""What a rule says, apart from its name and place: equal definitions decide alike."""

from collections.abc import Mapping
from dataclasses import dataclass

from authz_server.policy.rows import read_rows
from authz_server.policy.rule_notes import RuleNote
from authz_server.policy.source import FaultLog, SourceFile
from authz_server.policy.terms import HasRole, Term, parts

RoleRows = frozenset[tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """Type of row, effect, approver group and condition, columns replaced by their values.

    `roles` are the role rows a condition that tests roles depends on; a policy whose role rows are
    not known gives each rule an object of its own there, so that nothing is taken for equal.
    """

    kind: str
    effect: str
    obligation: str | None
    condition: str
    roles: object = None

    def __str__(self) -> str:
        group = f" ({self.obligation})" if self.obligation else ""
        return f"{self.effect}{group} if {self.condition}"


def definition_of(note: RuleNote, roles: RoleRows | None) -> Definition:
    """Return the definition of one rule in a policy with these role rows, None if not known."""
    tests_roles = any(map(_tests_roles, note.conjuncts))
    return Definition(
        kind=note.row.kind,
        effect=note.rule.effect.value,
        obligation=note.rule.obligation,
        condition=note.condition,
        roles=(object() if roles is None else roles) if tests_roles else None,
    )


def role_rows(files: Mapping[str, bytes]) -> RoleRows:
    """Return the role rows (`g, alice, admin`) in the files of a bundle that loads."""
    found: set[tuple[str, ...]] = set()
    for name in sorted(files):
        if name.endswith(".csv"):
            source = SourceFile(name, files[name].decode())
            rows = read_rows(source, FaultLog())
            found |= {(row.kind, *row.values) for row in rows if row.kind.startswith("g")}
    return frozenset(found)


def _tests_roles(term: Term) -> bool:
    return isinstance(term, HasRole) or any(map(_tests_roles, parts(term)))
