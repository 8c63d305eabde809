"""Faults of policy files on the screen: place, message, the line itself and a caret."""

from collections.abc import Iterable, Sequence

import click

from authz_server.cli.terminal import show_json
from authz_server.core.errors import Fault
from authz_server.ledger.printable import printable

_COLOURS = {"error": "red", "warning": "yellow"}


def show_fault(fault: Fault) -> None:
    """Print one fault as `file:line:column: severity: message`, caret below."""
    head, *rest = str(fault).split("\n")
    marked = click.style(f" {fault.severity}: ", fg=_COLOURS.get(fault.severity), bold=True)
    # The first place where the severity can stand is behind `file:line:column`.
    place, _, message = head.partition(f" {fault.severity}: ")
    click.echo(visible(place) + marked + visible(message))
    for line in rest:
        click.echo(visible(line))


def show_fault_json(fault: Fault) -> None:
    """Print one fault as one line of JSON."""
    show_json(
        {
            "severity": fault.severity,
            "file": fault.file,
            "line": fault.line or None,
            "column": fault.column or None,
            "message": fault.message,
            "source": fault.source or None,
        }
    )


def in_order(faults: Iterable[Fault]) -> Sequence[Fault]:
    """Return `faults` by file and place, errors first where both stand in one."""
    return sorted(
        dict.fromkeys(faults),
        key=lambda fault: (fault.file, fault.line, fault.column, fault.severity),
    )


def visible(line: str) -> str:
    """Escape what could drive a terminal; tabs and backslashes stay, so that carets fit."""
    return "".join(char if char.isprintable() or char == "\t" else printable(char) for char in line)
