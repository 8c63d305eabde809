"""The evidence report counts what is on record, shows the gaps, and claims nothing beyond."""

import html.parser
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from click.testing import CliRunner, Result

from authz_server.cli import main
from authz_server.core.decision import ApprovalRecord, Decision, PrincipalRecord
from authz_server.core.enforcement import Mode
from authz_server.core.errors import Reason
from authz_server.core.record import decision_json, format_time
from authz_server.ledger.query import StoredDecision
from authz_server.ledger.record import Record
from authz_server.ledger.report import TITLES, Evidence, Measure, gather
from authz_server.ledger.report_blocks import Scope, report_blocks
from authz_server.ledger.report_framework import Framework, load_table
from authz_server.ledger.report_page import Grid, Heading, html_page, markdown
from authz_server.ledger.store import Ledger
from tests.ledger_samples import NOON, TTL_S, allow, at, chain, deny, escalation, record

HOSTILE = "eve|`x`[y](javascript:z)<script>alert(1)</script>\n# forged\u202e"
BEARER = PrincipalRecord(
    spiffe_id="spiffe://prod.example.org/agent/token-only",
    trust_domain="prod.example.org",
    kind="agent",
    assurance="bearer",
)
DECISIONS = (
    record(allow(time=at(0)), "d-plain"),
    record(allow(time=at(1), chain=None, rules=("break-glass-icu",)), "d-emergency"),
    record(allow(time=at(2), principal=BEARER, owner=None), "d-bearer"),
    record(deny(Reason.NO_MATCHING_RULE, time=at(3), rules=()), "d-default"),
    record(deny(Reason.REVOKED, time=at(4), revision="r2"), "d-revoked"),
    record(deny(time=at(5), revision="r2", chain=chain(subject=HOSTILE)), "d-hostile"),
    record(escalation(None, time=at(6), revision="r2"), "d-asked"),
    record(
        allow(
            time=at(7),
            revision="r2",
            approval=ApprovalRecord(id="a1", approver=HOSTILE, approved_at=NOON),
        ),
        "d-approved",
    ),
    record(deny(time=at(8), mode=Mode.SHADOW, bundle="data"), "d-shadow"),
)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return gathered(DECISIONS)


def gathered(records: Sequence[Record]) -> Evidence:
    return gather(
        (
            StoredDecision(
                seq=number,
                decision_id=one.decision_id,
                document=decision_json(one.decision, decision_id=one.decision_id, duration_us=1),
                writer="w",
            )
            for number, one in enumerate(records, 1)
        ),
        break_glass_rules="break-glass*",
    )


@pytest.mark.parametrize(
    ("measure", "count"),
    [
        (Measure.DECISIONS, 9),
        (Measure.ALLOWED, 4),
        (Measure.DENIED, 3),  # and one that was only observed
        (Measure.ESCALATED, 1),
        (Measure.DENIED_BY_DEFAULT, 1),
        (Measure.REVOKED, 1),
        (Measure.WITHOUT_CHAIN, 1),
        (Measure.BEARER, 1),
        (Measure.SHADOWED, 1),
        (Measure.BREAK_GLASS, 1),
        (Measure.APPROVED, 1),
        (Measure.WITHOUT_OWNER, 1),
    ],
)
def test_counts(evidence: Evidence, measure: Measure, count: int) -> None:
    assert evidence.count(measure) == count
    assert len(evidence.tallies[measure].samples) == min(count, 3)


def test_revisions_approvers_and_gaps_by_name(evidence: Evidence) -> None:
    assert [(name, use.decisions) for name, use in evidence.revisions.items()] == [
        ("r1", 5),
        ("r2", 4),
    ]
    assert evidence.bearer_only == (BEARER.spiffe_id,)
    assert evidence.approvers == {HOSTILE: 1}
    (use,) = evidence.shadowed_bundles.values()
    assert (use.decisions, use.refused) == (1, {("deny", "DENIED_BY_RULE"): 1})
    assert evidence.emergency_rules == {"break-glass-icu": 1}


def test_a_report_tells_what_shadow_mode_would_have_stopped() -> None:
    """Per bundle: since when, how many would have been denied or held, and why."""

    def observed(minute: int, decision: Decision, bundle: str) -> Record:
        in_shadow = replace(decision, time=at(minute), mode=Mode.SHADOW, bundle=bundle)
        return record(in_shadow, f"d-{minute}")

    records = (
        observed(1, allow(), "data"),
        observed(2, deny(), "data"),
        observed(3, deny(Reason.NO_PRINCIPAL), "data"),
        observed(4, deny(), "data"),
        observed(5, escalation(), "tools"),
        record(deny(Reason.REVOKED, time=at(6), bundle="data"), "d-6"),  # enforced all the same
    )
    evidence = gathered(records)
    table = load_table(Framework.HIPAA)
    scope = Scope(since=NOON, until=at(9), made_at=at(9), filters={})
    page = markdown(report_blocks(table, evidence, scope, None))
    section = page.partition("## Policy that was not enforced")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert [line.strip("| ").split(" | ") for line in lines if "---" not in line] == [
        ["bundle", "first decision at", "last decision at", "decisions", "not an allow"],
        ["data", *(format_time(at(minute)) for minute in (1, 4)), "4", "3"],
        ["tools", *(format_time(at(minute)) for minute in (5, 5)), "1", "1"],
        ["bundle", "would have been", "because", "decisions"],
        ["data", "denied", "DENIED\\_BY\\_RULE", "2"],
        ["data", "denied", "NO\\_PRINCIPAL", "1"],
        ["tools", "held for a person", "ESCALATED\\_BY\\_RULE", "1"],
    ]
    assert evidence.count(Measure.DENIED) == evidence.count(Measure.REVOKED) == 1
    plain = markdown(report_blocks(table, gathered(records[5:]), scope, None))
    assert "no policy bundle was in shadow mode" in plain


def test_every_measure_has_its_words() -> None:
    assert TITLES.keys() == set(Measure)


@pytest.mark.parametrize("framework", Framework)
def test_tables_are_sound_and_careful(framework: Framework) -> None:
    table = load_table(framework)
    assert table.references
    for reference in table.references:
        assert reference.measures
        assert reference.bears_on
        assert reference.not_shown
        assert not set(reference.measures) & set(reference.gaps)
    assert table.relation == ("informs" if framework is Framework.NIST_AI_800_4 else "evidences")


def test_every_framework_file_is_offered() -> None:
    import authz_server.ledger as package

    directory = Path(package.__file__).parent / "frameworks"
    assert {file.stem for file in directory.glob("*.yaml")} == {one.value for one in Framework}
    for file in directory.glob("*.yaml"):
        entries = yaml.safe_load(file.read_text())["references"]
        known = {"reference", "topic", "bears_on", "not_shown", "measures", "gaps"}
        assert all(entry.keys() <= known for entry in entries)


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/authz.db"
    ledger = Ledger.open(url, approval_ttl_s=TTL_S)
    ledger.commit(DECISIONS)
    ledger.close()
    return url


def report(url: str, *options: str, framework: str = "hipaa") -> Result:
    start = (NOON - timedelta(days=1)).isoformat()
    arguments = ["decisions", "report", "--ledger", url, "--framework", framework, "--from", start]
    return CliRunner().invoke(main.group, [*arguments, *options])


@pytest.mark.parametrize("form", ["markdown", "html"])
@pytest.mark.parametrize("framework", Framework)
def test_no_report_claims_that_a_requirement_is_met(
    url: str, framework: Framework, form: str
) -> None:
    result = report(url, "--format", form, framework=framework)
    assert result.exit_code == 0, result.output
    words = result.stdout.lower()
    assert "complian" not in words
    assert "complies" not in words
    assert "certif" not in words.replace("certificate", "")
    for claim in ("is satisfied", "are satisfied", "guarantee", "fulfil", "requirement is met."):
        assert claim not in words.replace("whether a requirement is met", ""), claim
    assert "does not say that any requirement is met" in words
    if framework is Framework.NIST_AI_800_4:
        assert "what the ledger informs" in words
        assert "evidences" not in words


def test_markdown_shows_counts_samples_gaps_and_integrity(url: str) -> None:
    text = report(url).stdout
    assert "45 CFR 164\\.312" in text or "45 CFR 164.312" in text
    assert "d-emergency" in text
    assert "Gaps in the evidence" in text
    assert "spiffe:\u200b//prod.example.org/agent/token-only" in text
    assert re.search(r"\| r2 \| 2026-07-01T12:00:04", text)
    assert "whole" in text
    assert "were not verified" in report(url, "--no-verify").stdout


def test_a_broken_chain_is_in_the_report_and_in_the_exit_code(url: str) -> None:
    import sqlite3

    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE decisions SET verdict = 'allow' WHERE decision_id = 'd-revoked'")
    database.close()
    result = report(url)
    assert result.exit_code == 1
    assert "at 5" in result.stdout


def test_nothing_a_record_holds_is_markup(url: str) -> None:
    text = report(url).stdout
    assert "\n# forged" not in text
    assert "\u202e" not in text
    assert "<script>" not in text
    assert "](javascript" not in text
    page = report(url, "--format", "html").stdout
    assert "<script" not in page

    class _Tags(html.parser.HTMLParser):
        found: ClassVar[set[str]] = set()

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found.add(tag)

    parser = _Tags()
    parser.feed(page)
    assert parser.found <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p",
        "table", "tr", "th", "td",
    }  # fmt: skip


def test_filters_are_said(url: str) -> None:
    text = report(url, "--bundle", "data").stdout
    assert re.search(r"only with bundle \| data", text)
    assert re.search(r"\| decisions \| 1 \|", text)


def test_cells_cannot_leave_their_column() -> None:
    grid = Grid(("a", "b"), [["x|y\nz", "<b>"]])
    assert markdown([grid]).splitlines()[2].count(" | ") == 1
    assert "<b>" not in html_page("t", [Heading(1, "<b>"), grid])
