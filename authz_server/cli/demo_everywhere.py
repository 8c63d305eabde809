"""`authz-server demo --everywhere`: an Envoy of every kind, and one scenario file through all."""

import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from authz_server.cli.explain import VERDICT_STYLES
from authz_server.cli.terminal import safe
from authz_server.core.errors import AuthzError

if TYPE_CHECKING:
    from authz_server.demo.everywhere import Played, Row
    from authz_server.demo.mesh import Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the command line asks for; None stands for what is shipped."""

    bundles: Path | None
    scenario: Path | None
    replicas: int
    stay: bool


def show(directory: Path, wish: Wish, console: Console, *, as_json: bool) -> bool:
    """Start the mesh in `directory`, play, and print; return whether all was as expected."""
    try:
        from authz_server.demo.everywhere import SCENARIOS, play_everywhere
        from authz_server.demo.everywhere_mesh import everywhere_mesh
        from authz_server.demo.run import SHIPPED_BUNDLES
    except ModuleNotFoundError as error:
        raise AuthzError(
            f"the demo needs `{error.name}`: run pip install 'authz-server[demo]'"
        ) from error

    started = time.monotonic()
    with Status("", console=console, spinner="dots") as status:

        def progress(what: str) -> None:
            status.update(safe(what, "dim"))

        def tell(played: "Played") -> None:
            if not as_json:
                console.print(_table(played))

        bundles = wish.bundles or SHIPPED_BUNDLES
        with everywhere_mesh(directory, bundles, replicas=wish.replicas, progress=progress) as mesh:
            progress("playing the scenarios")
            for note in mesh.notes:
                click.echo(f"note: {note}", err=True)
            played = play_everywhere(mesh.mesh, wish.scenario or SCENARIOS, tell)
            shares = mesh.mesh.decisions_by_replica()
            seconds = round(time.monotonic() - started, 1)
            if as_json:
                click.echo(json.dumps(_report(played, seconds, mesh.notes, shares), indent=2))
            else:
                _conclude(console, played, seconds, shares)
            if wish.stay:
                status.stop()
                _stay(console, mesh.mesh)
            progress("stopping everything")
    return all(one.as_expected for one in played)


def _table(played: "Played") -> Table:
    scenario = played.scenario
    title = Text(f"\n{scenario.name}", "bold") + Text(f": {scenario.task}", "not bold")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("envoy", "domain"):
        table.add_column(heading, no_wrap=True)
    table.add_column("action", overflow="fold")
    for heading in ("expected", "got", "reason", "the service", "recorded"):
        table.add_column(heading, no_wrap=True)
    for row in played.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: "Row") -> tuple[Text, ...]:
    good = row.as_expected
    return (
        Text("✓", "green") if good else Text("✗", "bold red"),
        safe(row.target),
        safe(row.domain),
        safe(row.action),
        safe(row.expected),
        safe(row.actual, VERDICT_STYLES.get(row.actual, "bold red")),
        safe(row.reason, "dim"),
        Text("was called" if row.reached else "saw nothing"),
        Text("yes") if row.recorded else Text("NO", "bold red"),
    )


def _conclude(
    console: Console, played: "Sequence[Played]", seconds: float, shares: Sequence[int]
) -> None:
    calls = sum(len(one.rows) for one in played)
    different = sum(not row.as_expected for one in played for row in one.rows)
    disagreeing = [one.scenario.name for one in played if not (one.live.agrees)]
    passed = all(one.as_expected for one in played)
    words = "all as it had to be" if passed else f"{different} of {calls} calls differ"
    style = "bold green" if passed else "bold red"
    head = f"\n{len(played)} scenarios, {calls} calls, {seconds:g} s: "
    console.print(Text(head) + Text(words, style))
    if disagreeing:
        console.print(safe(f"the domains disagree: {', '.join(disagreeing)}", "bold red"))
    if len(shares) > 1:
        console.print(f"decisions by server: {', '.join(map(str, shares))}")


def _report(
    played: "Sequence[Played]", seconds: float, notes: Sequence[str], shares: Sequence[int]
) -> dict[str, object]:
    return {
        "passed": all(one.as_expected for one in played),
        "seconds": seconds,
        "notes": list(notes),
        "decisions_by_replica": list(shares),
        "scenarios": [one.to_json() for one in played],
    }


def _stay(console: Console, mesh: "Mesh") -> None:
    """Say where everything is, and return at Ctrl-C or SIGTERM."""
    from authz_server.demo.targets_file import TARGETS

    root = mesh.layout.root
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("envoy", "protocol", "bundle", "address", "host"):
        table.add_column(heading)
    for service in mesh.plan.services:
        end = mesh.endpoint(service.name)
        cells = (service.name, service.protocol, service.bundle, f"{end.host}:{end.port}")
        table.add_row(*map(safe, (*cells, service.host)))
    for port in mesh.local_ports():
        for service in port.services:
            cells = (port.way.name, service.protocol, service.bundle, str(port.address))
            table.add_row(*map(safe, (*cells, service.host)))
    console.print(table)
    console.print(safe(f"Running in {root}. In another terminal:"))
    configuration = mesh.layout.configuration
    for line in (
        f"policy consistency SCENARIO --config {configuration} --through {root / TARGETS}",
        f"decisions list --config {configuration}",
        f"approvals list --config {configuration}",
    ):
        console.print(safe(f"  authz-server {line}"))
    console.print(Text("Ctrl-C ends it.", "dim"))
    _until_interrupted(signal.pause)


def _until_interrupted(wait: Callable[[], object]) -> None:
    try:
        wait()
    except KeyboardInterrupt:
        return
