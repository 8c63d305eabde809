"""One task asked in several enforcement domains: what each policy bundle says, and who disagrees.

A scenario is one task of one agent for one person. Its steps are what that task comes to in each
domain: the handoff, the tool call, the read of the data. Steps are put to an `Asker`, which is the
compiled bundles (`CompiledBundles`) or whatever else can tell what a bundle says of a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

from authz_server.core.attributes import Attributes
from authz_server.core.decision import Verdict
from authz_server.core.errors import Reason
from authz_server.core.snapshot import Policy

_STRICTEST_FIRST: Final = (Verdict.DENY, Verdict.ESCALATE, Verdict.ALLOW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One question of a scenario: what `bundle` says of `attributes`.

    `attributes` are complete: caller, actors, subject and chain follow from the scenario. `given`
    are the names that the file itself states, such as `env.now` or `chain.scope`: whoever cannot
    bring one about must say so instead of asking something else. `unregistered` says that a party
    is in no inventory, where one was given and admits nobody else.
    """

    scenario: str
    file: str
    line: int
    bundle: str
    attributes: Attributes
    given: frozenset[str] = frozenset()
    unregistered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a bundle says of one step. `decision_id` is of the record, where there is one.

    `reason` is None where the protocol shows no more than the verdict.
    """

    verdict: Verdict
    reason: Reason | None
    rules: tuple[str, ...] = ()
    decision_id: str | None = None


class Asker(Protocol):
    """Whoever can tell what a bundle says of a step."""

    def ask(self, step: Step) -> Said:
        """Return the answer. Raises `AuthzError` when there is none to be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One task. `expect` holds the verdict of every bundle asked; None: the same from each."""

    name: str
    task: str
    file: str
    line: int
    steps: tuple[Step, ...]
    expect: Mapping[str, Verdict] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleAnswer:
    """What one bundle says of all its steps: the strictest of them stands.

    `deciding` is the first step that came out so, and its reason is the one said; the rules are of
    every step that did. `expected` is None where the bundles are only expected to agree.
    """

    bundle: str
    domain: str
    said: Said
    deciding: Step
    steps: int
    expected: Verdict | None
    agrees: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A scenario and what came of it, by bundle in the order of its steps."""

    scenario: Scenario
    answers: tuple[BundleAnswer, ...]

    @property
    def agrees(self) -> bool:
        """Whether every bundle says what is expected of it."""
        return all(answer.agrees for answer in self.answers)


@dataclass(frozen=True, slots=True)
class CompiledBundles:
    """Asks bundles that are loaded here; nothing is sent or recorded."""

    policies: Mapping[str, Policy]

    def ask(self, step: Step) -> Said:
        """Return what the bundle of `step` says of it."""
        if step.unregistered:
            return Said(verdict=Verdict.DENY, reason=Reason.UNREGISTERED_IDENTITY)
        found = self.policies[step.bundle].evaluate(step.attributes)
        return Said(verdict=found.verdict, reason=found.reason, rules=found.rules)


def play(scenario: Scenario, asker: Asker) -> Outcome:
    """Put every step of `scenario` to `asker` and compare the bundles. Raises what it raises."""
    asked: dict[str, list[_Asked]] = {}
    for step in scenario.steps:
        asked.setdefault(step.bundle, []).append(_Asked(step, asker.ask(step)))
    strictest = {bundle: _strictest(answers) for bundle, answers in asked.items()}
    is_same = len({one.said.verdict for one in strictest.values()}) == 1
    return Outcome(
        scenario=scenario,
        answers=tuple(
            BundleAnswer(
                bundle=bundle,
                domain=one.step.attributes.env.domain,
                said=one.said,
                deciding=one.step,
                steps=len(asked[bundle]),
                expected=scenario.expect[bundle] if scenario.expect else None,
                agrees=scenario.expect[bundle] is one.said.verdict if scenario.expect else is_same,
            )
            for bundle, one in strictest.items()
        ),
    )


class _Asked(NamedTuple):
    step: Step
    said: Said


def _strictest(answers: Sequence[_Asked]) -> _Asked:
    """Return the first of the strictest answers, with the rules of all that are as strict."""
    first = min(answers, key=lambda one: _STRICTEST_FIRST.index(one.said.verdict))
    alike = (one.said for one in answers if one.said.verdict is first.said.verdict)
    rules = dict.fromkeys(rule for said in alike for rule in said.rules)
    return first._replace(said=replace(first.said, rules=tuple(rules)))
