"""Printing to people and to pipes: tables, trees and JSON that no record can subvert.

SECURITY: everything a record holds is printed through `safe` or as ASCII JSON. Neither terminal
escapes nor rich markup in a subject or path has any effect (CWE-117, CWE-150).
"""

import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from authz_server.ledger.printable import printable

# A pipe has no width: lines are as long as what they hold, so that `grep` and `awk` see all of it.
_PIPE_COLUMNS: Final = 100_000


def examples(*commands: str) -> str:
    """Return the end of a command's help: how it is used, one example a line."""
    return "\b\nExamples:\n" + "\n".join(f"  authz-server {command}" for command in commands)


def safe(text: str, style: str = "") -> Text:
    """Return `text` for printing: unprintable characters escaped, markup without effect."""
    return Text(printable(text), style=style)


def show(renderable: RenderableType) -> None:
    """Print to standard output; plain and unwrapped unless that is a terminal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character gets its escape instead of a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = Console(
            markup=False, emoji=False, highlight=False, no_color=True, width=_PIPE_COLUMNS
        )
    console.print(renderable, no_wrap=not console.is_terminal, crop=False)


def table(headings: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """Return a table; the first column is never folded, so that an id can be copied."""
    is_terminal = sys.stdout.isatty()
    result = Table(box=SIMPLE_HEAD if is_terminal else None, pad_edge=False)
    for position, heading in enumerate(headings):
        result.add_column(heading, no_wrap=position == 0 or not is_terminal, overflow="fold")
    for row in rows:
        result.add_row(*(cell if isinstance(cell, Text) else safe(cell) for cell in row))
    return result


def show_json(document: Mapping[str, object]) -> None:
    """Print one document on one line, in ASCII, so that it is also one record of JSON Lines."""
    click.echo(_json_text(document))


def show_json_indented(document: Mapping[str, object]) -> None:
    """Print one document for people, in ASCII."""
    click.echo(_json_text(document, indent=2))


def _json_text(document: Mapping[str, object], indent: int | None = None) -> str:
    text = json.dumps(document, ensure_ascii=True, indent=indent)
    return text.replace("\x7f", "\\u007f")  # the one control character that JSON leaves as it is
