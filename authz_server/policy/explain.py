"""Explain one evaluation: which rules matched or nearly did, and which operand stopped the others.

Every operand is evaluated by the code its rule is compiled to; only `&&`, `||` and `!` between
operands are done again here, with their short circuits: an operand that a decision never reaches
cannot fail it. Which rules are candidates, and the verdict itself, come from the bundle.

The values shown are those of the attributes given, arguments among them: this is for attributes
that an operator wrote, not for live requests.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, cast

from authz_server.core.attributes import AMBIGUOUS, Attributes, PartyAttributes
from authz_server.core.decision import Evaluation
from authz_server.policy.bundle import PolicyBundle
from authz_server.policy.compile import RECORDS, Compiler
from authz_server.policy.render import reads, term_text
from authz_server.policy.rule_notes import RuleNote, RuleNotes
from authz_server.policy.rules import Rule
from authz_server.policy.terms import (
    Between,
    Constant,
    Either,
    Element,
    Every,
    HasRole,
    MapValue,
    Negation,
    Slot,
    Term,
    parts,
)

NEAR_RULES: Final = 5  # rules that did not match and are still worth a look
Records = tuple[object, ...]


class Outcome(StrEnum):
    """What became of an operand or a rule."""

    TRUE = "true"
    FALSE = "false"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """One operand of a condition; `parts` are those of an operand that joins others.

    `reached` is false where what stands before had already decided: then the outcome is shown but
    had no say. `values` are the attributes it reads, by name.
    """

    text: str
    outcome: Outcome
    values: Mapping[str, object]
    parts: tuple["Operand", ...] = ()
    reached: bool = True
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleExplanation:
    """One rule and its operands, in the order they are evaluated. `decided`: it is in the answer.

    `candidate` is false for a rule that the index left out, because an operand is false that needs
    no evaluation.
    """

    rule: Rule
    outcome: Outcome
    candidate: bool
    decided: bool
    operands: tuple[Operand, ...]

    @property
    def missed(self) -> int:
        """How many operands do not hold."""
        return sum(operand.outcome is not Outcome.TRUE for operand in self.operands)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRoles:
    """The roles one member has, of those that some rule asks for: `definition(member, …)`."""

    definition: str
    member: object
    domain: tuple[object, ...]
    held: tuple[str, ...]
    asked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyExplanation:
    """What the rules say of one party.

    `rules`: first those that matched or failed, by their order, then those that came nearest;
    `others` counts the rest.
    """

    party: PartyAttributes
    evaluation: Evaluation
    rules: tuple[RuleExplanation, ...]
    others: int
    roles: tuple[HeldRoles, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a bundle answers one request as it does."""

    bundle: PolicyBundle
    evaluation: Evaluation
    parties: tuple[PartyExplanation, ...]


def explain(
    bundle: PolicyBundle, notes: RuleNotes, attributes: Attributes, *, near: int = NEAR_RULES
) -> Explanation:
    """Return what `bundle` says of `attributes` and why; `notes` were taken when it was loaded.

    `near` is how many rules that do not match are told of each party, the nearest first.
    """
    return Explanation(
        bundle=bundle,
        evaluation=bundle.evaluate(attributes),
        parties=tuple(
            _explain_party(bundle, notes, party, attributes, near)
            for party in bundle.parties(attributes)
        ),
    )


def _explain_party(
    bundle: PolicyBundle,
    notes: RuleNotes,
    party: PartyAttributes,
    attributes: Attributes,
    near: int,
) -> PartyExplanation:
    records = (party, attributes.chain, attributes.act, attributes.obj, attributes.env)
    evaluation = bundle.judge_party(party, attributes)
    candidates = {rule.id for rule in bundle.candidates(records)}
    decided = frozenset(evaluation.rules)
    explained = [_explain_rule(note, records, candidates, decided) for note in notes]
    telling = [one for one in explained if one.outcome is not Outcome.FALSE]
    rest = [one for one in explained if one.outcome is Outcome.FALSE]
    nearest = heapq.nsmallest(near, rest, key=_distance)
    return PartyExplanation(
        party=party,
        evaluation=evaluation,
        rules=(*sorted(telling, key=lambda one: one.rule.order), *nearest),
        others=len(rest) - len(nearest),
        roles=tuple(_held_roles(notes, records)),
    )


def _distance(one: RuleExplanation) -> tuple[int, bool, int]:
    """Rank rules that do not match: by operands that do not hold less those that do."""
    held = len(one.operands) - one.missed
    return (one.missed - held, not one.candidate, one.rule.order)


def _explain_rule(
    note: RuleNote, records: Records, candidates: set[str], decided: frozenset[str]
) -> RuleExplanation:
    explained = [_operand(term, note.compiler, records) for term in note.conjuncts]
    outcome, operands = _in_order(explained, stop=Outcome.FALSE)
    candidate = note.rule.id in candidates
    return RuleExplanation(
        rule=note.rule,
        # A rule that the index leaves out is never evaluated, so nothing in it can fail.
        outcome=outcome if candidate else Outcome.FALSE,
        candidate=candidate,
        decided=note.rule.id in decided,
        operands=operands,
    )


# --- operands -----------------------------------------------------------------------------------


def _operand(term: Term, compiler: Compiler, records: Records) -> Operand:
    match term:
        case Every(items=items):
            return _joined(term, items, compiler, records, stop=Outcome.FALSE)
        case Either(items=items):
            return _joined(term, items, compiler, records, stop=Outcome.TRUE)
        case Negation(operand=Every() | Either() as operand):
            inner = _operand(operand, compiler, records)
            return replace(
                inner, text=term_text(term), outcome=_NEGATED[inner.outcome], parts=(inner,)
            )
        case _:
            return _evaluated(term, compiler, records)


_NEGATED: Final = {
    Outcome.TRUE: Outcome.FALSE,
    Outcome.FALSE: Outcome.TRUE,
    Outcome.ERROR: Outcome.ERROR,
}


def _joined(
    term: Term, items: Iterable[Term], compiler: Compiler, records: Records, *, stop: Outcome
) -> Operand:
    explained = [_operand(item, compiler, records) for item in items]
    outcome, inner = _in_order(explained, stop=stop)
    return Operand(
        text=term_text(term), outcome=outcome, values=_values(term, records), parts=inner
    )


def _in_order(operands: Iterable[Operand], *, stop: Outcome) -> tuple[Outcome, tuple[Operand, ...]]:
    """Return what operands joined by `&&` (`stop` false) or `||` (`stop` true) come to.

    The first that is `stop`, or fails, decides; those after it are not reached.
    """
    outcome = _NEGATED[stop]
    found: list[Operand] = []
    for operand in operands:
        reached = outcome is _NEGATED[stop]
        found.append(operand if reached else replace(operand, reached=False))
        if reached and operand.outcome in {stop, Outcome.ERROR}:
            outcome = operand.outcome
    return outcome, tuple(found)


def _evaluated(term: Term, compiler: Compiler, records: Records) -> Operand:
    error = ""
    try:
        holds = compiler.compile(term)(*records)  # type: ignore[arg-type]
        outcome = Outcome.TRUE if holds else Outcome.FALSE
    except Exception as raised:  # noqa: BLE001 -- whatever a matcher raises denies: it is shown
        outcome, error = Outcome.ERROR, str(raised) or type(raised).__name__
    return Operand(
        text=term_text(term), outcome=outcome, values=_values(term, records), error=error
    )


def _values(term: Term, records: Records) -> dict[str, object]:
    found = {term_text(read): _value(read, records) for read in reads(term)}
    if any(isinstance(part, Between) for part in _all_parts(term)):
        found["r.env.now"] = getattr(records[RECORDS.index("env")], "now", None)
    return found


def _all_parts(term: Term) -> Iterator[Term]:
    yield term
    for part in parts(term):
        yield from _all_parts(part)


def _value(read: Slot | MapValue | Element, records: Records) -> object:
    slot = read if isinstance(read, Slot) else read.slot
    held = getattr(records[RECORDS.index(slot.record)], slot.field)
    match read:
        case MapValue(key=key):
            return cast(Mapping[str, object], held).get(key)
        case Element(index=index):
            items = cast(tuple[object, ...], held)
            return items[index] if index < len(items) else None
        case _:
            return held


# --- roles --------------------------------------------------------------------------------------


def _held_roles(notes: RuleNotes, records: Records) -> Iterator[HeldRoles]:
    """Yield the roles of each member that the rules test, of those that the rules ask for."""
    asked: dict[HasRole, dict[str, Compiler]] = {}
    for note in notes:
        for test, role in _role_tests(note):
            asked.setdefault(test, {}).setdefault(role, note.compiler)
    for test, roles in asked.items():
        member, _, *domain = test.arguments
        held = [role for role, compiler in roles.items() if _has(test, role, compiler, records)]
        yield HeldRoles(
            definition=test.definition,
            member=_shown(member, records),
            domain=tuple(_shown(term, records) for term in domain),
            held=tuple(sorted(held)),
            asked=len(roles),
        )


def _role_tests(note: RuleNote) -> Iterator[tuple[HasRole, str]]:
    """Yield each test for a constant role, that role left out, and the role."""
    for term in note.conjuncts:
        for test in _all_parts(term):
            if not isinstance(test, HasRole):
                continue
            member, role, *domain = map(_without_place, test.arguments)
            if isinstance(role, Constant):
                arguments = (member, Constant(None, 0), *domain)
                yield replace(test, arguments=arguments), str(role.value)


def _without_place(term: Term) -> Term:
    return Constant(term.value, 0) if isinstance(term, Constant) else term


def _shown(term: Term, records: Records) -> object:
    if isinstance(term, Constant):
        return term.value
    if isinstance(term, Slot | MapValue | Element):
        return _value(term, records)
    return term_text(term)


def _has(test: HasRole, role: str, compiler: Compiler, records: Records) -> bool:
    member, _, *domain = test.arguments
    asked = replace(test, arguments=(member, Constant(role, 0), *domain))
    return _evaluated(asked, compiler, records).outcome is Outcome.TRUE


def plain(value: object) -> object:
    """Return an attribute's value as JSON has it."""
    if value is AMBIGUOUS:
        return "AMBIGUOUS"
    if isinstance(value, frozenset | set):
        return sorted(map(str, value))
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value
