"""`authz-server policy`: check, test, explain, compare and measure policy bundles."""

import itertools
from datetime import datetime
from pathlib import Path
from typing import IO, Final

import click
from click.shell_completion import CompletionItem

from authz_server.cli import policy_consistency
from authz_server.cli.ledger_source import moment
from authz_server.cli.listing_group import ListingGroup
from authz_server.cli.policy_faults import in_order, show_fault, show_fault_json
from authz_server.cli.policy_sources import NotedBundle, is_bundle, load_each, load_noted, load_one
from authz_server.cli.terminal import examples, show, show_json, show_json_indented
from authz_server.core import limits
from authz_server.core.attributes import Attributes
from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.identities import Inventory
from authz_server.identity.file_content import FileContent
from authz_server.identity.inventory_file import INVENTORY_BYTES_MAX, parse_inventory
from authz_server.ledger.query import DecisionFilter, LedgerReader
from authz_server.policy.cases import load_request
from authz_server.policy.source import FaultLog

EXIT_NO: Final = 1
_STANDARD_INPUT: Final = "<stdin>"

_directory = click.Path(exists=True, file_okay=False, path_type=Path)
_directories = click.argument(
    "directories", metavar="DIR…", nargs=-1, required=True, type=_directory
)
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
        "policy lint casbin_models",
        "policy test casbin_models --require-coverage 100",
        "policy explain casbin_models/tools < attributes.json",
    ),
)
def group() -> None:
    """Check, test, explain, compare and measure policy bundles.

    DIR is one bundle, or a directory whose sub-directories are bundles.
    """


@group.command(
    epilog=examples(
        "policy lint casbin_models",
        "policy lint casbin_models/tools --strict --output json",
    )
)
@_directories
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings too.")
@_output
def lint(directories: tuple[Path, ...], strict: bool, output: str) -> None:
    """Report every fault and warning of policy bundles, each with its place.

    A bundle without an error is one that the server loads: both read it with the same code. Exits
    with 1 when there is an error.
    """
    found: list[Fault] = []
    loaded: list[NotedBundle] = []
    for directory in directories:
        try:
            bundles = load_noted(directory)
        except ConfigurationError as error:
            found += (*error.faults, *error.warnings)
            continue
        loaded += bundles.values()
        found += itertools.chain.from_iterable(one.bundle.warnings for one in bundles.values())
    faults = in_order(found)
    for fault in faults:
        (show_fault_json if output == "json" else show_fault)(fault)
    errors = sum(fault.severity == "error" for fault in faults)
    _sum_up(loaded, errors=errors, warnings=len(faults) - errors)
    if errors or (strict and faults):
        click.get_current_context().exit(EXIT_NO)


def _sum_up(loaded: list[NotedBundle], *, errors: int, warnings: int) -> None:
    rules = sum(len(one.bundle.rules) for one in loaded)
    counts = (_count(errors, "error"), _count(warnings, "warning"))
    click.echo(
        f"{counts[0]}, {counts[1]}; {_count(len(loaded), 'bundle')} "
        f"with {_count(rules, 'rule')} can be served",
        err=True,
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@group.command(
    epilog=examples(
        "policy test casbin_models",
        "policy test casbin_models/data --require-coverage 100",
    )
)
@_directories
@click.option(
    "--require-coverage",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Exit with 1 as well unless so many of each bundle's rules decide a case.",
)
@_output
def test(directories: tuple[Path, ...], require_coverage: float | None, output: str) -> None:
    """Run the cases of policy bundles (`cases.yaml`) and show what came out otherwise.

    Lists the rules that no case exercises: those that decide none. Exits with 1 when a case fails.
    """
    from authz_server.cli import policy_cases

    failed = False
    for source in load_each(directories):
        report = policy_cases.run(source)
        if output == "json":
            show_json(policy_cases.report_json(report))
        else:
            policy_cases.show_report(report)
        failed |= bool(report.failures) or report.coverage_percent < (require_coverage or 0)
    if failed:
        click.get_current_context().exit(EXIT_NO)


def _complete_bundle(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    # Where the value of an option is still missing, click leaves arguments as they were typed.
    directory = ctx.params.get("directory") or next(iter(ctx.args), "")
    try:
        names = list(load_noted(Path(directory)))
    except ConfigurationError:
        return []  # completion has nobody to tell; the command itself will
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@group.command(
    epilog=examples(
        "policy explain casbin_models/tools < attributes.json",
        "policy explain casbin_models --bundle data --case 'a deletion'",
    )
)
@click.argument("directory", metavar="DIR", type=_directory)
@click.argument("attributes_file", type=click.File("rb"), default="-", metavar="[FILE]")
@click.option(
    "--bundle",
    "bundle_name",
    metavar="NAME",
    shell_complete=_complete_bundle,
    help="Which bundle, where DIR holds several.",
)
@click.option("--case", metavar="NAME", help="Explain this case of `cases.yaml` instead of FILE.")
@click.option(
    "--near",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    metavar="COUNT",
    help="How many rules that do not match to tell of, the nearest first.",
)
@_output
def explain(  # noqa: PLR0913, PLR0917 -- one parameter for each option
    directory: Path,
    attributes_file: IO[bytes],
    bundle_name: str | None,
    case: str | None,
    near: int,
    output: str,
) -> None:
    """Explain what a bundle says of given attributes: each rule that matched or nearly did.

    Attributes are JSON (or YAML) in the form of a case's `request`: `{"sub": {…}, "chain": {…},
    "act": {…}, "obj": {…}, "env": {…}}`, with `actors` and `subject` where the bundle judges them.
    What is left out is filled in as for a case. Read from FILE or standard input.
    """
    from authz_server.cli.policy_tree import explanation_json, explanation_tree
    from authz_server.policy.explain import explain as explain_request

    source = load_one(directory, bundle_name)
    if case is None:
        attributes = _read_attributes(attributes_file, source)
    else:
        attributes = _attributes_of_case(source, case)
    explanation = explain_request(source.bundle, source.notes, attributes, near=near)
    if output == "json":
        show_json_indented(explanation_json(explanation))
    else:
        show(explanation_tree(explanation))


def _read_attributes(file: IO[bytes], source: NotedBundle) -> Attributes:
    """Return the attributes in `file`. Raises `ConfigurationError` with every fault."""
    name = getattr(file, "name", _STANDARD_INPUT)
    name = "standard input" if name == _STANDARD_INPUT else str(name)
    data = file.read(limits.CHECK_REQUEST_BYTES_MAX + 1)
    if len(data) > limits.CHECK_REQUEST_BYTES_MAX:
        message = f"longer than {limits.CHECK_REQUEST_BYTES_MAX} bytes"
        raise ConfigurationError([Fault(file=name, message=message)])
    log = FaultLog()
    attributes = load_request(data, file=name, manifest=source.bundle.manifest, log=log)
    if log.faults:
        raise ConfigurationError(log.errors())
    return attributes


def _attributes_of_case(source: NotedBundle, name: str) -> Attributes:
    for case in source.bundle.cases:
        if case.name == name:
            return case.attributes
    raise click.UsageError(f"bundle `{source.bundle.name}` has no case called `{name}`")


@group.command(
    epilog=examples(
        "policy diff casbin_models new_models",
        "policy diff casbin_models new_models --replay authz.db --config authz.yaml --since 7d",
    )
)
@click.argument("old", metavar="OLD", type=_directory)
@click.argument("new", metavar="NEW", type=_directory)
@click.option(
    "--replay",
    "ledger",
    metavar="LEDGER",
    help="Decide the recorded decisions of this ledger (file or URL) again under both.",
)
@click.option(
    "--inventory",
    "inventory_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="What to replay knows kinds, owners and labels from: identities.yaml.",
)
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Configuration whose inventory to take.",
)
@click.option(
    "--bundle", metavar="NAME", help="Compare this bundle only; the name its records have."
)
@click.option("--since", type=moment, metavar="TIME", help="Records not before: RFC 3339, or 7d.")
@click.option("--until", type=moment, metavar="TIME", help="Records before: RFC 3339, or 7d.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many records, newest first.")
@click.option(
    "--strict", is_flag=True, help="Exit with 1 as well when a decision cannot be replayed."
)
@_output
def diff(  # noqa: PLR0913, PLR0917 -- one parameter for each option
    old: Path,
    new: Path,
    ledger: str | None,
    inventory_path: Path | None,
    config_path: Path | None,
    bundle: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int | None,
    strict: bool,
    output: str,
) -> None:
    """Show what differs between two revisions of bundles, and which verdicts would change.

    Without --replay, exits with 1 when any rule differs; with it, when a recorded decision would
    get another verdict or approver group. A record holds no argument values, query or labels: a
    decision that depends on them is listed as one that cannot be replayed, never guessed.
    """
    from authz_server.cli import policy_diff

    as_json = output == "json"
    pairs = policy_diff.load_pairs(old, new, bundle)
    differs = policy_diff.show_rule_changes(pairs, as_json=as_json)
    if ledger is not None:
        inventory = _inventory(inventory_path, config_path)
        wanted = DecisionFilter(since=since, until=until, limit=limit, bundle=bundle)
        records = (stored.document for stored in LedgerReader.open(_url(ledger)).list(wanted))
        tally = policy_diff.show_replay(records, pairs, inventory, as_json=as_json)
        differs = bool(tally.changed or (strict and tally.unsettled))
    if differs:
        click.get_current_context().exit(EXIT_NO)


def _url(ledger: str) -> str:
    return ledger if "://" in ledger else f"sqlite:///{Path(ledger).absolute()}"


def _inventory(path: Path | None, config_path: Path | None) -> Inventory | None:
    """Return the inventory that the options name; tells what is assumed without one."""
    if path is None and config_path is not None:
        from authz_server.settings import load_settings

        path = load_settings(config_path).identity.inventory
    if path is None:
        click.echo(
            "no inventory given: labels and purposes of the parties are not known, nor what kind "
            "of identity actors and subjects are",
            err=True,
        )
        return None
    click.echo(f"labels, purposes and kinds are those of {path} as it is now", err=True)
    return parse_inventory(FileContent.read(path, bytes_max=INVENTORY_BYTES_MAX))


@group.command(
    epilog=examples(
        "policy bench casbin_models/tools",
        "policy bench casbin_models/tools --requests 100000",
    )
)
@click.argument("directory", metavar="DIR", type=_directory)
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    default=20_000,
    show_default=True,
    help="How often the compiled engine is asked.",
)
def bench(directory: Path, requests: int) -> None:
    """Measure a bundle: time to build and decide, memory, and pycasbin's time for the same.

    Asks the requests of `cases.yaml`, or ones made up from the rules. Prints one line of JSON for
    each bundle; `casbin_p50_us` is null where pycasbin is missing or cannot decide.
    """
    from authz_server.cli.policy_bench import bench as measure

    several = not is_bundle(directory)
    for source in load_noted(directory).values():
        name = {"bundle": source.bundle.name} if several else {}
        show_json({**name, **measure(source, requests)})


group.add_command(policy_consistency.command)
