"""`authz-server decisions export`: records for other tools, one JSON object a line."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from authz_server.cli.decision_filter import filter_options
from authz_server.cli.ledger_source import ledger_options, ledger_source
from authz_server.cli.terminal import examples
from authz_server.core.errors import AuthzError
from authz_server.ledger.export_jsonl import ExportFormat, formatter, line_of
from authz_server.ledger.query import DecisionFilter, LedgerReader, Order

_TICK_RECORDS: Final = 256  # how often the progress moves; one page of the reader


@click.command(
    "export",
    epilog=examples(
        "decisions export --config authz.yaml --format ocsf --since 24h --output-file day.jsonl",
        "decisions export --ledger sqlite:///authz.db --format cloudevents --verdict deny | head",
    ),
)
@ledger_options
@click.option(
    "--format",
    "chosen",
    type=click.Choice(ExportFormat, case_sensitive=False),
    default="jsonl",
    show_default=True,
    help="The decision documents as recorded, OCSF 1.8 API Activity, or CloudEvents 1.0.",
)
@filter_options
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, oldest first.")
@click.option(
    "--output-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write there instead of to standard output; replaced only when all is written.",
)
def export_command(
    config_path: Path | None,
    ledger_url: str | None,
    chosen: ExportFormat,
    output_file: Path | None,
    **wanted: Any,
) -> None:
    """Export recorded decisions, oldest first, one JSON object a line.

    Records are read and written a page at a time, however many there are. An erased record has no
    event in OCSF and CloudEvents; how many were left out is said on standard error.
    """
    reader = LedgerReader.open(ledger_source(config_path, ledger_url).url)
    convert = formatter(chosen)
    written = left_out = 0
    with _output(output_file) as file, _progress() as advance:
        for stored in reader.list(DecisionFilter(**wanted), order=Order.OLDEST_FIRST):
            event = convert(stored)
            if event is None:
                left_out += 1
                continue
            file.write(line_of(event))
            written += 1
            advance(written)
    if output_file is not None:
        click.echo(f"exported {written} records to {output_file}", err=True)
    if left_out:
        click.echo(f"left out {left_out} erased records", err=True)


@contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    """Open what is written to. A file appears under its name complete or not at all."""
    if path is None:
        yield sys.stdout
        return
    unfinished = path.with_name(path.name + ".part")
    try:
        # SECURITY: it names people and what was done for them; its owner decides who reads it.
        with open(unfinished, "w", encoding="ascii", opener=_owner_only) as file:
            yield file
        unfinished.replace(path)
    except OSError as error:
        raise AuthzError(f"cannot write `{path}`: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Show how many records are written, to a person at a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _written: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} records"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("export", total=None)

        def advance(written: int) -> None:
            if written % _TICK_RECORDS == 0:
                progress.update(task, completed=written)

        yield advance
