"""`authz-server decisions report`: what a period of the ledger evidences, by framework."""

import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

import click

from authz_server.cli.ledger_source import LedgerSource, ledger_options, ledger_source, moment
from authz_server.cli.terminal import examples
from authz_server.core.errors import AuthzError
from authz_server.ledger.database import Access, Store
from authz_server.ledger.query import DecisionFilter, LedgerReader, Order
from authz_server.ledger.report import gather
from authz_server.ledger.report_blocks import Scope, report_blocks, report_title
from authz_server.ledger.report_framework import Framework, load_table
from authz_server.ledger.report_page import html_page, markdown
from authz_server.ledger.seal import SealKeys
from authz_server.ledger.verify import ChainReport, read_statements, verify

EXIT_BROKEN: Final = 1


class ReportFormat(StrEnum):
    """The forms a report has."""

    MARKDOWN = "markdown"
    HTML = "html"


@click.command(
    "report",
    epilog=examples(
        "decisions report --config authz.yaml --framework hipaa "
        "--from 2026-07-01T00:00:00Z --to 2026-10-01T00:00:00Z > q3.md",
        "decisions report --config authz.yaml --framework dora --from 30d --format html "
        "--output-file dora.html",
    ),
)
@ledger_options
@click.option("--framework", type=click.Choice(Framework, case_sensitive=False), required=True)
@click.option("--from", "since", type=moment, required=True, metavar="TIME", help="Not before.")
@click.option(
    "--to", "until", type=moment, metavar="TIME", help="Before; the present unless given."
)
@click.option("--resource", help="Only this resource; `crm*` for all that begins with crm.")
@click.option("--bundle", help="Only decisions of this policy bundle.")
@click.option(
    "--break-glass-rules",
    default="break-glass*",
    show_default=True,
    metavar="PATTERN",
    help="Which rule ids grant emergency access.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(ReportFormat, case_sensitive=False),
    default="markdown",
    show_default=True,
)
@click.option(
    "--verify/--no-verify",
    "verify_chains",
    default=True,
    show_default=True,
    help="Verify the hash chains of the whole ledger for the report.",
)
@click.option(
    "--output-file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write there instead of to standard output.",
)  # fmt: skip
def report_command(  # noqa: PLR0913 - one parameter for each option
    *,
    config_path: Path | None,
    ledger_url: str | None,
    framework: Framework,
    since: datetime,
    until: datetime | None,
    resource: str | None,
    bundle: str | None,
    break_glass_rules: str,
    form: ReportFormat,
    verify_chains: bool,
    output_file: Path | None,
) -> None:
    """Report what the recorded decisions of a period evidence, by reference of a framework.

    Counts, a few decisions as samples, and gaps. It is material for an assessor, who alone can say
    whether a requirement is met. Exit code 1 when a hash chain is broken; the report says where.
    """
    now = datetime.now(UTC)
    source = ledger_source(config_path, ledger_url)
    wanted = DecisionFilter(since=since, until=until or now, resource=resource, bundle=bundle)
    records = LedgerReader.open(source.url).list(wanted, order=Order.OLDEST_FIRST)
    evidence = gather(records, break_glass_rules=break_glass_rules)
    chains = _verified(source) if verify_chains else None
    filters = {n: v for n, v in (("resource", resource), ("bundle", bundle)) if v is not None}
    scope = Scope(since=since, until=until or now, made_at=now, filters=filters)
    table = load_table(framework)
    blocks = report_blocks(table, evidence, scope, chains)
    text = markdown(blocks) if form is ReportFormat.MARKDOWN else (
        html_page(report_title(table), blocks)
    )  # fmt: skip
    _write(text, output_file)
    if any(chain.fault for chain in chains or ()):
        click.get_current_context().exit(EXIT_BROKEN)


def _verified(source: LedgerSource) -> list[ChainReport]:
    keys = SealKeys.load(source.key_paths)
    kept = [one for path in source.checkpoint_paths for one in read_statements(path, keys)]
    return list(verify(Store.open(source.url, Access.READ), keys=keys, elsewhere=kept))


def _write(text: str, path: Path | None) -> None:
    if path is None:
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AuthzError(f"cannot write `{path}`: {error.strerror or error}") from error
