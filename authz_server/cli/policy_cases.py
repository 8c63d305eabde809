"""Policy tests on the screen: what came out otherwise, and which rules no case exercises."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import click
from rich.console import Console
from rich.progress import Progress

from authz_server.cli.policy_sources import NotedBundle
from authz_server.ledger.printable import printable
from authz_server.policy.bundle import CASES
from authz_server.policy.cases import Case, CaseFailure, run_cases
from authz_server.policy.rules import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseReport:
    """What the cases of one bundle came to. A rule is exercised when it decides a case."""

    source: NotedBundle
    failures: tuple[CaseFailure, ...]
    untested: tuple[Rule, ...]

    @property
    def cases(self) -> int:
        """How many cases there are."""
        return len(self.source.bundle.cases)

    @property
    def rules(self) -> int:
        """How many rules there are."""
        return len(self.source.bundle.rules)

    @property
    def coverage_percent(self) -> float:
        """How many of the rules decide a case."""
        return 100 * (self.rules - len(self.untested)) / self.rules


def run(source: NotedBundle) -> CaseReport:
    """Run the cases of one bundle; shows progress on a terminal."""
    bundle = source.bundle
    failures: list[CaseFailure] = []
    seen: set[str] = set()
    with _counted(bundle.cases, f"cases of {bundle.name}") as cases:
        for case in cases:
            failures += run_cases(bundle, [case])
            seen.update(bundle.evaluate(case.attributes).rules)
    untested = tuple(rule for rule in bundle.rules if rule.id not in seen)
    return CaseReport(source=source, failures=tuple(failures), untested=untested)


@contextmanager
def _counted(cases: Sequence[Case], title: str) -> Iterator[Iterator[Case]]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        yield iter(progress.track(cases, description=title))


def show_report(report: CaseReport) -> None:
    """Print the failed cases as differences, the untested rules, and one line of counts."""
    bundle = report.source.bundle
    for failure in report.failures:
        _show_failure(report, failure)
    for rule in report.untested:
        place = f"{printable(rule.file)}:{rule.line}:"
        click.echo(f"{place} no case exercises rule `{printable(rule.id)}`")
    passed = report.cases - len(report.failures)
    covered = report.rules - len(report.untested)
    percent = f"{report.coverage_percent:.0f} %"
    click.secho(
        f"{bundle.name}: {passed} of {report.cases} cases pass; "
        f"{covered} of {report.rules} rules exercised ({percent})",
        fg="red" if report.failures else "green",
    )


def _show_failure(report: CaseReport, failure: CaseFailure) -> None:
    case, actual = failure.case, failure.actual
    place = f"{report.source.directory / CASES}:{case.line}:"
    click.echo(f"{printable(place)} case `{printable(case.name)}` came out otherwise")
    for name, found in (
        ("verdict", actual.verdict),
        ("reason", actual.reason),
        ("rules", actual.rules),
        ("obligation", actual.obligation),
    ):
        if name in failure.differences:
            expected, _ = failure.differences[name]
            click.secho(f"  - {name}: {_shown(expected)}", fg="red")
            click.secho(f"  + {name}: {_shown(found)}", fg="green")
        elif found is not None:
            click.echo(f"    {name}: {_shown(found)}")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return printable(", ".join(map(str, value)) or "(none)")
    return printable("(none)" if value is None else str(value))


def report_json(report: CaseReport) -> dict[str, object]:
    """Return the report as one JSON document."""
    bundle = report.source.bundle
    return {
        "bundle": bundle.name,
        "revision": bundle.revision,
        "cases": report.cases,
        "failed": [
            {
                "name": failure.case.name,
                "file": str(report.source.directory / CASES),
                "line": failure.case.line,
                "expected": {name: pair[0] for name, pair in failure.differences.items()},
                "actual": {
                    "verdict": failure.actual.verdict,
                    "reason": failure.actual.reason,
                    "rules": failure.actual.rules,
                    "obligation": failure.actual.obligation,
                },
            }
            for failure in report.failures
        ],
        "rules": report.rules,
        "untested": [
            {"id": rule.id, "file": rule.file, "line": rule.line} for rule in report.untested
        ],
        "coverage_percent": round(report.coverage_percent, 1),
    }
