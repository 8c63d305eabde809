"""`authz-server decisions`: find recorded decisions and see why they came out as they did."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.text import Text

from authz_server.cli.decision_filter import filter_options
from authz_server.cli.decisions_export import export_command
from authz_server.cli.decisions_report import report_command
from authz_server.cli.document import (
    Document,
    action_name,
    flattened,
    resource_name,
    section,
    text,
    texts,
)
from authz_server.cli.explain import VERDICT_STYLES, explain_tree, is_shadowed
from authz_server.cli.ledger_source import ledger_options, ledger_source
from authz_server.cli.listing_group import ListingGroup
from authz_server.cli.rule_places import rule_places
from authz_server.cli.terminal import examples, safe, show, show_json, show_json_indented, table
from authz_server.ledger.database import Access, Store
from authz_server.ledger.follow import follow
from authz_server.ledger.printable import printable
from authz_server.ledger.query import DecisionFilter, LedgerReader, StoredDecision
from authz_server.ledger.seal import SealKeys
from authz_server.ledger.verify import ChainReport, read_statements, verify

_HEADINGS: Final = (
    "decision", "time", "verdict", "reason", "subject", "caller", "action", "resource", "rules",
)  # fmt: skip

EXIT_BROKEN: Final = 1
_SHADOW: Final = "shadow"  # beside a verdict: recorded and not enforced
_CHAIN_HEADINGS: Final = (
    "chain", "records", "last", "sealed through", "erased", "removed", "found",
)  # fmt: skip

_output = click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the output; json is one document a line where several are listed.",
)


@click.group(
    cls=ListingGroup,
    epilog=examples(
        "decisions list --config authz.yaml --since 1h --verdict deny",
        "decisions explain --config authz.yaml 0198c2",
    ),
)
def group() -> None:
    """List, show, explain, verify and export recorded decisions; report on them."""


@group.command(
    "list",
    epilog=examples(
        "decisions list --config authz.yaml --since 1h",
        "decisions list --ledger sqlite:///authz.db --verdict deny --output json | jq .reason",
    ),
)
@ledger_options
@filter_options
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="At most so many, newest first.",
)
@click.option(
    "--follow", "keep_following", is_flag=True, help="Print each new one as it is recorded."
)
@_output
def list_command(
    config_path: Path | None,
    ledger_url: str | None,
    output: str,
    limit: int,
    keep_following: bool,
    **wanted: Any,
) -> None:
    """List recorded decisions, newest first.

    Every given filter must match. A text that ends in `*` matches by its beginning. With --follow,
    only what is recorded from now on, in the order of recording, until interrupted.
    """
    source = ledger_source(config_path, ledger_url)
    reader = LedgerReader.open(source.url)
    wanted["subject"] = source.recorded_subject(wanted["subject"])
    if keep_following:
        _follow(reader, DecisionFilter(**wanted), output)
        return
    found = reader.list(DecisionFilter(limit=limit, **wanted))
    if output == "json":
        for stored in found:
            show_json(stored.document)
        return
    show(table(_HEADINGS, map(_row, found)))


def _follow(reader: LedgerReader, wanted: DecisionFilter, output: str) -> None:
    """Print what is recorded from now on; a line each, so that a pipe gets it at once."""
    for stored in follow(reader, wanted):
        if output == "json":
            show_json(stored.document)
        else:
            click.echo(printable("  ".join(map(str, _row(stored)))))


@group.command(
    "show",
    epilog=examples(
        "decisions show --config authz.yaml 0198c2 --output json",
    ),
)
@click.argument("decision_id", metavar="ID")
@ledger_options
@_output
def show_command(
    decision_id: str, config_path: Path | None, ledger_url: str | None, output: str
) -> None:
    """Show everything recorded of one decision. The beginning of its ID is enough."""
    document = _find(decision_id, config_path, ledger_url)
    if output == "json":
        show_json_indented(document)
    else:
        show(table(("member", "value"), flattened(document)))


@group.command(
    "explain",
    epilog=examples("decisions explain --config authz.yaml 0198c2"),
)
@click.argument("decision_id", metavar="ID")
@ledger_options
def explain_command(decision_id: str, config_path: Path | None, ledger_url: str | None) -> None:
    """Explain one decision as a tree. The beginning of its ID is enough.

    Who it was for, each agent in between and how it was proved, what was asked, which rules
    decided, and who approved it. With --config, each rule with file and line, as far as the policy
    on disk is still the revision that decided.
    """
    document = _find(decision_id, config_path, ledger_url)
    places = None
    if config_path is not None:
        from authz_server.settings import load_settings

        places = rule_places(load_settings(config_path), document)
    show(explain_tree(document, places))


@group.command(
    "verify",
    epilog=examples(
        "decisions verify --config authz.yaml",
        "decisions verify --ledger sqlite:///authz.db --key audit.pub --checkpoints kept.jsonl",
    ),
)
@ledger_options
@click.option(
    "--key",
    "key_paths",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Key of a server whose statements count (PEM, public or private). May be repeated.",
)
@click.option(
    "--checkpoints",
    "checkpoint_paths",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Checkpoints that were kept elsewhere, one JSON document a line. May be repeated.",
)
@_output
def verify_command(
    config_path: Path | None,
    ledger_url: str | None,
    key_paths: tuple[Path, ...],
    checkpoint_paths: tuple[Path, ...],
    output: str,
) -> None:
    """Verify every hash chain of the ledger, and name the first bad sequence number.

    Found are records that were edited, deleted, reordered, cut off at the end or written anew; the
    last two by signed checkpoints, best those kept elsewhere. Exit code 1 when anything is wrong.
    Without a key only the chains themselves are verified.
    """
    source = ledger_source(config_path, ledger_url)
    keys = SealKeys.load((*source.key_paths, *key_paths))
    kept = [
        statement
        for path in (*source.checkpoint_paths, *checkpoint_paths)
        for statement in read_statements(path, keys)
    ]
    reports = list(verify(Store.open(source.url, Access.READ), keys=keys, elsewhere=kept))
    if output == "json":
        for report in reports:
            show_json(asdict(report))
    else:
        show(table(_CHAIN_HEADINGS, map(_chain_row, reports)))
    if any(report.fault for report in reports):
        click.get_current_context().exit(EXIT_BROKEN)


group.add_command(export_command)
group.add_command(report_command)


def _chain_row(report: ChainReport) -> tuple[str | Text, ...]:
    fault = report.fault
    found = f"{fault.kind} at {fault.seq}: {fault.detail}" if fault else "whole"
    counts = (report.records, report.last, report.sealed_through, report.erased, report.removed)
    return (report.writer, *map(str, counts), safe(found, "bold red" if fault else "green"))


def _find(decision_id: str, config_path: Path | None, ledger_url: str | None) -> Document:
    return LedgerReader.open(ledger_source(config_path, ledger_url).url).find(decision_id).document


def _row(stored: StoredDecision) -> tuple[str | Text, ...]:
    document = stored.document
    verdict = text(document, "verdict") or ""
    style = VERDICT_STYLES.get(verdict, "")
    return (
        stored.decision_id,
        _seconds(text(document, "time")),
        safe(f"{verdict} ({_SHADOW})" if is_shadowed(document) else verdict, style),
        text(document, "reason") or "",
        text(section(document, "chain"), "subject") or "-",
        text(section(document, "principal"), "spiffe_id") or "-",
        action_name(document),
        resource_name(document),
        ", ".join(texts(document, "rules")),
    )


def _seconds(time: str | None) -> str:
    """Cut a recorded time to whole seconds."""
    try:
        return datetime.fromisoformat(time or "").strftime("%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return time or ""
