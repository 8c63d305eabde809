"""What a rule says, apart from its name and place: equal definitions decide alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from authz_server.policy.rows import read_rows
from authz_server.policy.rule_notes import RuleNote
from authz_server.policy.source import FaultLog, SourceFile
from authz_server.policy.table import PolicyTable, read_table
from authz_server.policy.terms import HasRole, Term, parts

RoleRows = frozenset[tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """Type of row, effect, approver group and condition, columns replaced by their values.

    `roles` are all role rows of the policy, where the condition tests roles.
    """

    kind: str
    effect: str
    obligation: str | None
    condition: str
    roles: RoleRows = frozenset()

    def __str__(self) -> str:
        group = f" ({self.obligation})" if self.obligation else ""
        return f"{self.effect}{group} if {self.condition}"


def definition_of(note: RuleNote, roles: RoleRows) -> Definition:
    """Return the definition of one rule in a policy with these role rows."""
    tests_roles = any(map(_tests_roles, note.conjuncts))
    return Definition(
        kind=note.row.kind,
        effect=note.rule.effect.value,
        obligation=note.rule.obligation,
        condition=note.condition,
        roles=roles if tests_roles else frozenset(),
    )


def role_rows(files: Mapping[str, bytes], table: PolicyTable | None) -> RoleRows:
    """Return the role rows (`g, alice, admin`) of a bundle that loads from these."""
    log = FaultLog()
    if table is not None:
        rows = read_table(table, log)
    else:
        names = [name for name in files if name.endswith(".csv")]
        sources = [SourceFile(name, files[name].decode()) for name in names]
        rows = chain.from_iterable(read_rows(source, log) for source in sources)
    return frozenset((row.kind, *row.values) for row in rows if row.kind.startswith("g"))


def _tests_roles(term: Term) -> bool:
    return isinstance(term, HasRole) or any(map(_tests_roles, parts(term)))
