"""An evidence report as a page: the references of a framework first, then what they rest on.

The wording is the point. The report says what was recorded and what was not; whether a requirement
is met is for an assessor to say, so no sentence here does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from authz_server.core.record import format_time
from authz_server.ledger.report import TITLES, Evidence, Measure
from authz_server.ledger.report_framework import FrameworkTable, Reference
from authz_server.ledger.report_page import Block, Grid, Heading, Paragraph
from authz_server.ledger.verify import ChainReport

_ROWS_MAX: Final = 100  # of a list of names; a longer one is cut, and says so
_DISCLAIMER: Final = (
    "This report lists what a ledger of access decisions recorded. It is material for an "
    "assessment and not its result: it does not say that any requirement is met, and a count of "
    "zero does not say that nothing happened."
)
_WOULD_BE: Final[Mapping[str, str]] = {"deny": "denied", "escalate": "held for a person"}
_INFORMS: Final = "What the ledger recorded can inform a discussion of it, no more."


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What the report is about. `filters` are those given, by name."""

    since: datetime
    until: datetime
    made_at: datetime
    filters: Mapping[str, str]


def report_title(table: FrameworkTable) -> str:
    """Return the title of a report on `table`."""
    return f"Evidence from the decision ledger: {table.title}"


def report_blocks(
    table: FrameworkTable,
    evidence: Evidence,
    scope: Scope,
    chains: Sequence[ChainReport] | None,
) -> list[Block]:
    """Return the page. `chains` are the verified hash chains; None when that was not done."""
    return [
        Heading(1, report_title(table)),
        *_introduction(table, evidence, scope),
        Heading(2, f"What the ledger {table.relation}, by reference"),
        *(block for reference in table.references for block in _reference(reference, evidence)),
        *_gaps(evidence),
        *_shadow(evidence),
        *_approvals(evidence),
        *_emergency(evidence),
        *_revisions(evidence),
        *_integrity(chains),
    ]


def _introduction(table: FrameworkTable, evidence: Evidence, scope: Scope) -> Iterator[Block]:
    yield Paragraph(_DISCLAIMER)
    yield Paragraph(table.note + (f" {_INFORMS}" if table.relation == "informs" else ""))
    rows = [
        ["period", f"{format_time(scope.since)} up to {format_time(scope.until)}"],
        ["made at", format_time(scope.made_at)],
        ["decisions", str(evidence.count(Measure.DECISIONS))],
        ["first and last", f"{evidence.first_time or 'none'}; {evidence.last_time or 'none'}"],
        ["distinct callers", str(len(evidence.assurances))],
        ["distinct subjects", str(len(evidence.subjects))],
        *([f"only with {name}", value] for name, value in scope.filters.items()),
    ]
    yield Grid(("of this report", "value"), rows)
    if evidence.is_cut:
        yield Paragraph("There are more distinct names than this report keeps; some are left out.")


def _reference(reference: Reference, evidence: Evidence) -> Iterator[Block]:
    yield Heading(3, f"{reference.reference}: {reference.topic}")
    yield Paragraph(reference.bears_on)
    rows = [_row("recorded", measure, evidence) for measure in reference.measures]
    rows += [_row("to look into", measure, evidence) for measure in reference.gaps]
    yield Grid(("kind", "what was counted", "count", "for example"), rows)
    yield Paragraph(f"Not shown by the ledger: {reference.not_shown}.")


def _row(kind: str, measure: Measure, evidence: Evidence) -> list[str]:
    tally = evidence.tallies[measure]
    return [kind, TITLES[measure], str(tally.count), ", ".join(tally.samples) or "-"]


def _gaps(evidence: Evidence) -> Iterator[Block]:
    yield Heading(2, "Gaps in the evidence")
    gaps = (
        Measure.WITHOUT_CHAIN,
        Measure.BEARER,
        Measure.SHADOWED,
        Measure.WITHOUT_OWNER,
        Measure.WITHOUT_RULE,
        Measure.ERASED,
        Measure.UNAVAILABLE,
    )
    yield Grid(
        ("what was counted", "count", "for example"),
        [_row("", measure, evidence)[1:] for measure in gaps],
    )
    yield from _names("Callers that only ever showed a bearer token", evidence.bearer_only)


def _shadow(evidence: Evidence) -> Iterator[Block]:
    yield Heading(2, "Policy that was not enforced")
    if not evidence.shadowed_bundles:
        yield Paragraph("Every recorded verdict was enforced: no policy bundle was in shadow mode.")
        return
    yield Paragraph(
        "These policy bundles were in shadow mode: every decision below let the action pass, "
        "whatever the verdict. They are in none of the counts of allowed, denied and held actions."
    )
    rows = [
        [name, use.first_time, use.last_time, str(use.decisions), str(use.refused.total())]
        for name, use in list(evidence.shadowed_bundles.items())[:_ROWS_MAX]
    ]
    headings = ("bundle", "first decision at", "last decision at", "decisions", "not an allow")
    yield Grid(headings, rows)
    reasons = [
        [name, _WOULD_BE.get(verdict, verdict), reason, str(count)]
        for name, use in evidence.shadowed_bundles.items()
        for (verdict, reason), count in use.refused.most_common()
    ]
    if reasons:
        yield Grid(("bundle", "would have been", "because", "decisions"), reasons[:_ROWS_MAX])


def _approvals(evidence: Evidence) -> Iterator[Block]:
    yield Heading(2, "Approvals")
    held, approved = evidence.count(Measure.ESCALATED), evidence.count(Measure.APPROVED)
    yield Paragraph(
        f"{held} attempts were held for a person to answer; {approved} actions passed because one "
        "had approved them. An attempt that is repeated while it waits is counted each time."
    )
    if evidence.approvers:
        rows = [[name, str(count)] for name, count in evidence.approvers.most_common(_ROWS_MAX)]
        yield Grid(("approver", "actions passed"), rows)


def _emergency(evidence: Evidence) -> Iterator[Block]:
    yield Heading(2, "Emergency access")
    pattern, count = evidence.break_glass_rules, evidence.count(Measure.BREAK_GLASS)
    yield Paragraph(f"Rules whose id is like {pattern} took part in {count} decisions.")
    if evidence.emergency_rules:
        found = evidence.emergency_rules.most_common(_ROWS_MAX)
        yield Grid(("rule", "decisions"), [[rule, str(number)] for rule, number in found])


def _revisions(evidence: Evidence) -> Iterator[Block]:
    yield Heading(2, "Changes of policy and trust")
    yield Paragraph(
        "Each revision is a digest of policies, trust and inventory together. A change is dated by "
        "the first decision under the new revision, not by the moment it was loaded."
    )
    rows = [
        [revision, use.first_time, use.last_time, str(use.decisions), use.first_decision]
        for revision, use in list(evidence.revisions.items())[:_ROWS_MAX]
    ]
    headings = ("revision", "first decision at", "last decision at", "decisions", "first decision")
    yield Grid(headings, rows)
    if len(evidence.revisions) > _ROWS_MAX:
        yield Paragraph(f"{len(evidence.revisions) - _ROWS_MAX} later revisions are left out.")


def _integrity(chains: Sequence[ChainReport] | None) -> Iterator[Block]:
    yield Heading(2, "Integrity of the records")
    if chains is None:
        yield Paragraph("The hash chains were not verified for this report.")
        return
    yield Paragraph(
        "Every hash chain of the ledger was verified for this report, over all records and not "
        "only those of the period. An end that was cut off, or written anew, shows only up to the "
        "last signed checkpoint."
    )
    rows = [
        [
            chain.writer,
            str(chain.records),
            str(chain.sealed_through),
            str(chain.erased),
            str(chain.removed),
            _found(chain),
        ]
        for chain in chains
    ]
    headings = ("chain", "records", "sealed through", "erased", "removed by retention", "found")
    yield Grid(headings, rows)


def _found(chain: ChainReport) -> str:
    fault = chain.fault
    return "whole" if fault is None else f"{fault.kind} at {fault.seq}: {fault.detail}"


def _names(title: str, names: Sequence[str]) -> Iterator[Block]:
    if not names:
        return
    rows = [[name] for name in names[:_ROWS_MAX]]
    if len(names) > _ROWS_MAX:
        rows.append([f"and {len(names) - _ROWS_MAX} more"])
    yield Grid((title,), rows)
