"""Re-decide recorded decisions under two revisions of the policy."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from authz_server.cli.document import Document, text
from authz_server.cli.policy_recorded import RecordedRequest, recorded_verdict
from authz_server.core.attributes import Attributes
from authz_server.core.decision import Evaluation, Verdict
from authz_server.core.errors import InvalidValueError, Reason
from authz_server.core.identities import Inventory
from authz_server.policy.replay import LoadedPolicy, Replayed, replay


class Outcome(StrEnum):
    """What became of one recorded decision; the value says it to people."""

    SAME = "the same verdict"
    CHANGED = "another verdict"
    OPEN = "cannot be replayed"
    NOT_ASKED = "decided before the policy was asked"
    OTHER = "of another bundle"
    UNREADABLE = "not readable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two revisions of one bundle; None on the side where it does not exist."""

    old: LoadedPolicy | None
    new: LoadedPolicy | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Redecided:
    """One record decided again. `old` and `new` are None where that is not settled."""

    document: Document
    outcome: Outcome
    old: Evaluation | None = None
    new: Evaluation | None = None
    reads: frozenset[str] = frozenset()


@dataclass(slots=True)
class Tally:
    """Counts over all records, and which attributes were missing for how many of them.

    `otherwise` counts records that OLD does not decide as they were: another revision decided
    them, or the inventory has changed.
    """

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    reads: Counter[frozenset[str]] = field(default_factory=Counter)
    example: dict[frozenset[str], str] = field(default_factory=dict)
    bundles: Counter[str] = field(default_factory=Counter)
    otherwise: int = 0

    @property
    def changed(self) -> int:
        """How many would get another verdict or approver group."""
        return self.outcomes[Outcome.CHANGED]

    @property
    def unsettled(self) -> int:
        """How many cannot be told."""
        return self.outcomes[Outcome.OPEN] + self.outcomes[Outcome.UNREADABLE]

    def add(self, one: Redecided) -> None:
        """Count one record."""
        self.outcomes[one.outcome] += 1
        if one.outcome is Outcome.OTHER:
            self.bundles[text(one.document, "bundle") or "none"] += 1
        if one.outcome is Outcome.OPEN:
            self.reads[one.reads] += 1
            self.example.setdefault(one.reads, text(one.document, "decision_id") or "")
        recorded = recorded_verdict(one.document)
        if one.old is not None and recorded is not None and one.old.verdict is not recorded:
            self.otherwise += 1


_NO_BUNDLE = Evaluation(verdict=Verdict.DENY, reason=Reason.UNKNOWN_BUNDLE)
_ABSENT = Replayed(evaluation=_NO_BUNDLE, reads=frozenset(), signature=())


def redecide(
    documents: Iterator[Document], pairs: Mapping[str, Pair], inventory: Inventory | None
) -> Iterator[Redecided]:
    """Yield each of `documents` decided again by the pair that its bundle names."""
    for document in documents:
        yield _redecide(document, pairs, inventory)


def _redecide(
    document: Document, pairs: Mapping[str, Pair], inventory: Inventory | None
) -> Redecided:
    pair = pairs.get(text(document, "bundle") or "")
    if pair is None:
        return Redecided(document=document, outcome=Outcome.OTHER)
    if recorded_verdict(document) is None:
        return Redecided(document=document, outcome=Outcome.NOT_ASKED)
    request = RecordedRequest(document, inventory)
    try:
        old, new = _replayed(pair.old, request), _replayed(pair.new, request)
    except InvalidValueError:
        return Redecided(document=document, outcome=Outcome.UNREADABLE)
    return Redecided(
        document=document,
        outcome=_outcome(old, new),
        old=old.evaluation,
        new=new.evaluation,
        reads=frozenset().union(*(one.reads for one in (old, new) if one.answer is None)),
    )


def _replayed(policy: LoadedPolicy | None, request: RecordedRequest) -> Replayed:
    if policy is None:
        return _ABSENT
    attributes: Attributes = request.attributes(policy.bundle)
    return replay(policy, attributes)


def _outcome(old: Replayed, new: Replayed) -> Outcome:
    if old.answer is not None and new.answer is not None:
        return Outcome.SAME if old.answer == new.answer else Outcome.CHANGED
    # INVARIANT: where the same rules match, fail and are open, no value of what was not recorded
    # can make the two revisions answer differently.
    return Outcome.SAME if old.signature == new.signature else Outcome.OPEN
