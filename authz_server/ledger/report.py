"""What a period of the ledger evidences: counts, samples and gaps, gathered in one pass.

A measure is a question that one recorded decision answers with yes or no. Frameworks name measures
(see `report_framework`); nothing here knows of any framework. Memory stays small however long the
period: what is counted by name is bounded, and said to be cut where it is.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

from authz_server.core.decision import Verdict
from authz_server.core.enforcement import Mode
from authz_server.core.errors import Reason
from authz_server.ledger.document import Document, section, text, texts
from authz_server.ledger.export_jsonl import is_erased
from authz_server.ledger.query import StoredDecision

SAMPLES_MAX: Final = 3  # enough to look into; the export has them all
NAMES_MAX: Final = 10_000  # distinct principals, rules or revisions: some MiB at most


class Measure(StrEnum):
    """A question about one decision; the value is its name in framework files."""

    DECISIONS = "decisions"
    ALLOWED = "allowed"
    DENIED = "denied"
    ESCALATED = "escalated"
    DENIED_BY_DEFAULT = "denied_by_default"
    DENIED_BY_RULE = "denied_by_rule"
    NAMED_SUBJECT = "named_subject"
    NAMED_PRINCIPAL = "named_principal"
    HOP_SIGNED = "hop_signed"
    DELEGATION_REFUSED = "delegation_refused"
    UNAUTHENTICATED = "unauthenticated"
    UNREGISTERED = "unregistered"
    MUTUAL_TLS = "mutual_tls"
    APPROVED = "approved"
    BREAK_GLASS = "break_glass"
    REVOKED = "revoked"
    WITHOUT_CHAIN = "without_chain"
    BEARER = "bearer"
    SHADOWED = "shadowed"
    WITHOUT_OWNER = "without_owner"
    WITHOUT_RULE = "without_rule"
    POLICY_ERROR = "policy_error"
    UNAVAILABLE = "unavailable"
    ERASED = "erased"


# What each measure counts, in words for a reader who has not seen this program.
TITLES: Final[Mapping[Measure, str]] = {
    Measure.DECISIONS: "decisions recorded, one for each attempted action",
    Measure.ALLOWED: "actions allowed",
    Measure.DENIED: "actions denied",
    Measure.ESCALATED: "actions held until a person answered",
    Measure.DENIED_BY_DEFAULT: "actions denied because no rule allowed them",
    Measure.DENIED_BY_RULE: "actions denied because a rule forbade them",
    Measure.NAMED_SUBJECT: "decisions that name the person or program acted for",
    Measure.NAMED_PRINCIPAL: "decisions that name the calling program by a SPIFFE ID",
    Measure.HOP_SIGNED: "decisions with every hop of the delegation signed by its delegator",
    Measure.DELEGATION_REFUSED: "attempts with a delegation that did not hold",
    Measure.UNAUTHENTICATED: "attempts by callers that could not be identified",
    Measure.UNREGISTERED: "attempts by identities that are not in the inventory",
    Measure.MUTUAL_TLS: "decisions on callers identified by their own client certificate",
    Measure.APPROVED: "actions allowed after a named person approved them",
    Measure.BREAK_GLASS: "decisions by an emergency access rule",
    Measure.REVOKED: "attempts denied because something was revoked",
    Measure.WITHOUT_CHAIN: "actions allowed without a delegation chain",
    Measure.BEARER: "decisions on callers identified by a bearer token",
    Measure.SHADOWED: "decisions of a policy bundle that was observed but not enforced",
    Measure.WITHOUT_OWNER: "actions allowed for a caller without an accountable owner",
    Measure.WITHOUT_RULE: "actions allowed without the id of a rule on record",
    Measure.POLICY_ERROR: "actions denied because the policy failed",
    Measure.UNAVAILABLE: "actions denied because the decision point was not able to decide",
    Measure.ERASED: "records whose content was erased",
}

_DELEGATION: Final = frozenset(
    {
        Reason.DELEGATION_REQUIRED, Reason.MALFORMED_TOKEN, Reason.BAD_HEADER,
        Reason.UNKNOWN_ISSUER, Reason.UNKNOWN_KEY, Reason.BAD_SIGNATURE, Reason.EXPIRED,
        Reason.NOT_YET_VALID, Reason.LIFETIME_TOO_LONG, Reason.WRONG_AUDIENCE,
        Reason.CHAIN_BROKEN, Reason.CHAIN_TOO_DEEP, Reason.CHAIN_CYCLE, Reason.SCOPE_WIDENED,
        Reason.LEAF_MISMATCH,
    }
)  # fmt: skip
_UNIDENTIFIED: Final = frozenset(
    {Reason.NO_PRINCIPAL, Reason.MALFORMED_PRINCIPAL, Reason.UNKNOWN_TRUST_DOMAIN}
)
_UNABLE: Final = frozenset({Reason.NOT_READY, Reason.INTERNAL_ERROR, Reason.LEDGER_UNAVAILABLE})


@dataclass(slots=True)
class Tally:
    """How many decisions answered one measure with yes, and a few of them."""

    count: int = 0
    samples: list[str] = field(default_factory=list)

    def add(self, decision_id: str) -> None:
        """Count one."""
        self.count += 1
        if len(self.samples) < SAMPLES_MAX:
            self.samples.append(decision_id)


@dataclass(slots=True, kw_only=True)
class RevisionUse:
    """When one revision of policy and trust decided."""

    first_time: str
    last_time: str
    decisions: int
    first_decision: str


@dataclass(slots=True, kw_only=True)
class ShadowUse:
    """What one bundle said while nothing enforced it; `refused` by verdict and reason."""

    first_time: str
    last_time: str
    decisions: int = 0
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, document: Document, time: str) -> None:
        """Count one decision."""
        self.last_time = time
        self.decisions += 1
        verdict = text(document, "verdict") or "unknown"
        if verdict != Verdict.ALLOW:
            self.refused[verdict, text(document, "reason") or "unknown"] += 1


@dataclass(slots=True)
class Evidence:
    """Everything gathered. `is_cut` says that more names came than are kept."""

    break_glass_rules: str
    tallies: dict[Measure, Tally] = field(default_factory=lambda: {m: Tally() for m in Measure})
    revisions: dict[str, RevisionUse] = field(default_factory=dict)
    approvers: Counter[str] = field(default_factory=Counter)
    emergency_rules: Counter[str] = field(default_factory=Counter)
    shadowed_bundles: dict[str, ShadowUse] = field(default_factory=dict)
    assurances: dict[str, set[str]] = field(default_factory=dict)
    subjects: set[str] = field(default_factory=set)
    first_time: str = ""
    last_time: str = ""
    is_cut: bool = False

    def count(self, measure: Measure) -> int:
        """Return how many decisions answered `measure` with yes."""
        return self.tallies[measure].count

    @property
    def bearer_only(self) -> tuple[str, ...]:
        """Callers that never proved themselves by a certificate, by name."""
        return tuple(sorted(n for n, seen in self.assurances.items() if seen == {"bearer"}))

    def add(self, stored: StoredDecision) -> None:
        """Take one record into account. Records come oldest first."""
        if is_erased(stored):
            self.tallies[Measure.ERASED].add(stored.decision_id)
            return
        document = stored.document
        time = text(document, "time") or ""
        self.first_time, self.last_time = self.first_time or time, time
        for measure, holds in _HOLDS.items():
            if holds(document):
                self.tallies[measure].add(stored.decision_id)
        self._add_names(document)
        self._add_shadowed(document, time)
        self._add_emergency(stored)
        self._add_revision(stored, time)

    def _add_names(self, document: Document) -> None:
        principal = section(document, "principal")
        name, assurance = text(principal, "spiffe_id"), text(principal, "assurance")
        if name and assurance and self._has_room(self.assurances, name):
            self.assurances.setdefault(name, set()).add(assurance)
        if (subject := text(section(document, "chain"), "subject")) and self._has_room(
            self.subjects, subject
        ):
            self.subjects.add(subject)
        approver = text(section(document, "approval"), "approver")
        if approver and self._has_room(self.approvers, approver):
            self.approvers[approver] += 1

    def _add_shadowed(self, document: Document, time: str) -> None:
        name = text(document, "bundle") or "unnamed"
        if _is_shadowed(document) and self._has_room(self.shadowed_bundles, name):
            use = ShadowUse(first_time=time, last_time=time)
            self.shadowed_bundles.setdefault(name, use).add(document, time)

    def _add_emergency(self, stored: StoredDecision) -> None:
        rules = texts(stored.document, "rules")
        found = [rule for rule in rules if fnmatchcase(rule, self.break_glass_rules)]
        if found:
            self.tallies[Measure.BREAK_GLASS].add(stored.decision_id)
        for rule in found:
            if self._has_room(self.emergency_rules, rule):
                self.emergency_rules[rule] += 1

    def _add_revision(self, stored: StoredDecision, time: str) -> None:
        revision = text(stored.document, "revision") or "unknown"
        use = self.revisions.get(revision)
        if use is not None:
            use.last_time, use.decisions = time, use.decisions + 1
        elif self._has_room(self.revisions, revision):
            self.revisions[revision] = RevisionUse(
                first_time=time, last_time=time, decisions=1, first_decision=stored.decision_id
            )

    def _has_room(self, names: Mapping[str, object] | set[str], name: str) -> bool:
        has_room = name in names or len(names) < NAMES_MAX
        self.is_cut = self.is_cut or not has_room
        return has_room


def gather(records: Iterable[StoredDecision], *, break_glass_rules: str) -> Evidence:
    """Return what `records`, oldest first, evidence.

    `break_glass_rules` is a shell pattern for the ids of rules that grant emergency access.
    """
    evidence = Evidence(break_glass_rules)
    for stored in records:
        evidence.add(stored)
    return evidence


def _verdict(wanted: str) -> Callable[[Document], bool]:
    # What a bundle in shadow mode says happened to nothing.
    return lambda document: text(document, "verdict") == wanted and not _is_shadowed(document)


def _reason(*wanted: Reason) -> Callable[[Document], bool]:
    reasons = frozenset(wanted)
    return lambda document: text(document, "reason") in reasons and not _is_shadowed(document)


def _assurance(wanted: str) -> Callable[[Document], bool]:
    return lambda document: text(section(document, "principal"), "assurance") == wanted


def _allowed_without(name: str) -> Callable[[Document], bool]:
    allowed = _verdict("allow")
    return lambda document: allowed(document) and not document.get(name)


def _is_shadowed(document: Document) -> bool:
    return text(document, "mode") == Mode.SHADOW


# Every measure but those that need more than one document: erasure and emergency access.
_HOLDS: Final[Mapping[Measure, Callable[[Document], bool]]] = {
    Measure.DECISIONS: lambda _document: True,
    Measure.ALLOWED: _verdict("allow"),
    Measure.DENIED: _verdict("deny"),
    Measure.ESCALATED: _verdict("escalate"),
    Measure.DENIED_BY_DEFAULT: _reason(Reason.NO_MATCHING_RULE, Reason.UNKNOWN_BUNDLE),
    Measure.DENIED_BY_RULE: _reason(Reason.DENIED_BY_RULE),
    Measure.NAMED_SUBJECT: lambda document: bool(text(section(document, "chain"), "subject")),
    Measure.NAMED_PRINCIPAL: lambda document: bool(section(document, "principal")),
    Measure.HOP_SIGNED: lambda d: text(section(d, "chain"), "assurance") == "hop_signed",
    Measure.DELEGATION_REFUSED: _reason(*_DELEGATION),
    Measure.UNAUTHENTICATED: _reason(*_UNIDENTIFIED),
    Measure.UNREGISTERED: _reason(Reason.UNREGISTERED_IDENTITY),
    Measure.MUTUAL_TLS: _assurance("mtls"),
    Measure.APPROVED: lambda document: bool(section(document, "approval")),
    Measure.REVOKED: _reason(Reason.REVOKED),
    Measure.WITHOUT_CHAIN: _allowed_without("chain"),
    Measure.BEARER: _assurance("bearer"),
    Measure.SHADOWED: _is_shadowed,
    Measure.WITHOUT_OWNER: _allowed_without("owner"),
    Measure.WITHOUT_RULE: _allowed_without("rules"),
    Measure.POLICY_ERROR: _reason(Reason.POLICY_ERROR),
    Measure.UNAVAILABLE: _reason(*_UNABLE),
}
