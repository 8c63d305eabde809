"""What is known of each rule only while its bundle is compiled, kept for whoever explains it.

A served bundle keeps none of this: ten thousand conditions as trees are worth more memory than
their compiled form.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from authz_server.policy.compile import Compiler
from authz_server.policy.render import term_text
from authz_server.policy.rows import Row
from authz_server.policy.rules import Rule
from authz_server.policy.terms import Every, Term


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleNote:
    """One rule, the row it was read from, and its condition: all of `conjuncts`, in that order."""

    rule: Rule
    row: Row
    conjuncts: tuple[Term, ...]
    compiler: Compiler

    @property
    def condition(self) -> str:
        """The whole condition in the matcher language, columns replaced by their values."""
        whole = self.conjuncts[0] if len(self.conjuncts) == 1 else Every(self.conjuncts)
        return term_text(whole)


@dataclass(slots=True)
class RuleNotes:
    """Notes of every rule of one bundle, by id. A `RuleObserver`: give it to `load_bundle`."""

    _notes: dict[str, RuleNote] = field(default_factory=dict)

    def __call__(
        self, rule: Rule, row: Row, conjuncts: tuple[Term, ...], compiler: Compiler
    ) -> None:
        """Keep the note of one rule."""
        self._notes[rule.id] = RuleNote(rule=rule, row=row, conjuncts=conjuncts, compiler=compiler)

    def __getitem__(self, rule_id: str) -> RuleNote:
        return self._notes[rule_id]

    def __iter__(self) -> Iterator[RuleNote]:
        return iter(self._notes.values())

    def __len__(self) -> int:
        return len(self._notes)
