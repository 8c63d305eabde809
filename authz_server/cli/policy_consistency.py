"""`authz-server policy consistency`: one task asked in every enforcement domain."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from rich.text import Text

from authz_server.cli import policy_live
from authz_server.cli.explain import VERDICT_STYLES
from authz_server.cli.policy_sources import load_noted
from authz_server.cli.terminal import examples, safe, show, show_json, table
from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.identities import Inventory
from authz_server.identity.file_content import FileContent
from authz_server.identity.inventory_file import INVENTORY_BYTES_MAX, parse_inventory
from authz_server.ledger.printable import printable
from authz_server.policy.consistency import (
    Asker,
    BundleAnswer,
    CompiledBundles,
    Outcome,
    Scenario,
    play,
)
from authz_server.policy.scenarios import SCENARIO_BYTES_MAX, Surroundings, load_scenarios
from authz_server.policy.source import FaultLog

EXIT_NO: Final = 1
_BUNDLES: Final = Path("casbin_models")
_STANDARD_INPUT: Final = Path("-")
_HEADINGS: Final = (
    "scenario", "bundle", "domain", "verdict", "expected", "reason", "rules", "",
)  # fmt: skip


_file = click.Path(path_type=Path)


@click.command(
    "consistency",
    epilog=examples(
        "policy consistency casbin_models/consistency.yaml",
        "policy consistency scenarios/*.yaml --config authz.yaml --output json",
        "policy consistency scenarios.yaml --config authz.yaml --through targets.yaml",
    ),
)
@click.argument("paths", metavar="SCENARIO…", nargs=-1, required=True, type=_file)
@click.option(
    "--bundles",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help=f"Directory of bundles. Default: that of --config, or `{_BUNDLES}`.",
)
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    type=_file,
    help="Configuration whose bundles and inventory to take.",
)
@click.option(
    "--through",
    metavar="TARGETS",
    type=_file,
    help="Send each step through the live Envoy of its bundle, as this file says where they are.",
)
@click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the output; json is one document a line for each scenario.",
)
def command(
    paths: tuple[Path, ...],
    bundles: Path | None,
    config_path: Path | None,
    through: Path | None,
    output: str,
) -> None:
    """Ask one task in every enforcement domain, and list the bundles that disagree.

    SCENARIO is a YAML file, or `-` for standard input. Each step of a scenario is put to the
    bundle it names, as the server would compile it; of several steps of a bundle the strictest
    verdict counts. Exits with 1 when a scenario does not come out as it expects.

    With --through each step is a real request that is decided and recorded there: verdicts are
    those of the live Envoys, and where the bundles on disk say otherwise, that counts as well.
    What TARGETS holds is in docs/consistency.md; it is for a mesh made for tests.
    """
    site = offline(bundles, config_path)
    live = None if through is None else policy_live.through(through, site.asker)
    scenarios = load(paths, site.surroundings)
    if live is not None:
        live.check(scenarios)
    found = []
    for scenario in scenarios:
        outcome = play(scenario, live or site.asker)
        if output == "json":
            show_json(outcome_json(outcome))
        found.append(outcome)
    if output == "table":
        show_outcomes(found)
    disagreeing = [outcome for outcome in found if not outcome.agrees]
    for outcome in disagreeing:
        click.secho(printable(in_words(outcome)), fg="red", err=True)
    differences = live.differences if live else []
    for difference in differences:
        click.secho(printable(str(difference)), fg="red", err=True)
    counts = f"{len(found) - len(disagreeing)} of {len(found)} scenarios agree"
    click.secho(counts, fg="red" if disagreeing else "green", err=True)
    if disagreeing or differences:
        click.get_current_context().exit(EXIT_NO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What scenarios are read against, and who answers them."""

    surroundings: Surroundings
    asker: Asker


def offline(bundles: Path | None, config: Path | None) -> Site:
    """Return the bundles on disk: those in `bundles`, or those that `config` names.

    With `config` its inventory says who the parties are. Raises `ConfigurationError`.
    """
    inventory, admit_unregistered = Inventory.of(()), True
    if config is not None:
        from authz_server.settings import load_settings

        settings = load_settings(config)
        bundles = bundles or settings.bundles.dir
        admit_unregistered = settings.identity.unregistered == "allow"
        if settings.identity.inventory is not None:
            file = FileContent.read(settings.identity.inventory, bytes_max=INVENTORY_BYTES_MAX)
            inventory = parse_inventory(file)
    if bundles is None and not _BUNDLES.is_dir():
        raise click.UsageError("no `casbin_models` here: name the bundles by --bundles or --config")
    policies = {name: source.bundle for name, source in load_noted(bundles or _BUNDLES).items()}
    return Site(
        surroundings=Surroundings(
            domains={name: policy.domain for name, policy in policies.items()},
            inventory=inventory,
            admit_unregistered=admit_unregistered,
        ),
        asker=CompiledBundles(policies),
    )


def load(paths: Sequence[Path], surroundings: Surroundings) -> tuple[Scenario, ...]:
    """Return the scenarios of every file. Raises `ConfigurationError` with every fault."""
    log = FaultLog()
    found: list[Scenario] = []
    for path in paths:
        try:
            file, data = _read(path)
        except ConfigurationError as error:
            for fault in error.faults:
                log.add(fault)
            continue
        found += load_scenarios(data, file=file, surroundings=surroundings, log=log)
    if log.faults:
        raise ConfigurationError(log.errors())
    return tuple(found)


def _read(path: Path) -> tuple[str, bytes]:
    """Return what `path` is called in faults, and what is in it."""
    if path != _STANDARD_INPUT:
        return str(path), FileContent.read(path, bytes_max=SCENARIO_BYTES_MAX).data
    name, data = "standard input", sys.stdin.buffer.read(SCENARIO_BYTES_MAX + 1)
    if len(data) > SCENARIO_BYTES_MAX:
        wrong = f"is longer than {SCENARIO_BYTES_MAX} bytes"
        raise ConfigurationError([Fault(file=name, message=wrong)])
    return name, data


def show_outcomes(found: Sequence[Outcome]) -> None:
    """Print one row for each scenario and bundle."""
    show(table(_HEADINGS, (_row(one, answer) for one in found for answer in one.answers)))


def _row(outcome: Outcome, answer: BundleAnswer) -> tuple[str | Text, ...]:
    verdict = answer.said.verdict
    return (
        outcome.scenario.name,
        answer.bundle,
        answer.domain,
        safe(verdict, VERDICT_STYLES.get(verdict, "")),
        answer.expected or "same",
        answer.said.reason or "-",
        ", ".join(answer.said.rules) or "-",
        safe("ok", "green") if answer.agrees else safe("DISAGREES", "bold red"),
    )


def outcome_json(outcome: Outcome) -> Mapping[str, object]:
    """Return one outcome as a JSON document."""
    scenario = outcome.scenario
    return {
        "scenario": scenario.name,
        "task": scenario.task,
        "file": scenario.file,
        "line": scenario.line,
        "agrees": outcome.agrees,
        "expect": dict(scenario.expect) if scenario.expect else "same",
        "answers": [
            {
                "bundle": answer.bundle,
                "domain": answer.domain,
                "verdict": answer.said.verdict,
                "reason": answer.said.reason,
                "rules": list(answer.said.rules),
                "decision_id": answer.said.decision_id,
                "line": answer.deciding.line,
                "steps": answer.steps,
                "agrees": answer.agrees,
            }
            for answer in outcome.answers
        ],
    }


def in_words(outcome: Outcome) -> str:
    """Return one line that says which bundles say what, and where the scenario stands."""
    by_verdict: dict[str, list[str]] = {}
    for answer in outcome.answers:
        by_verdict.setdefault(answer.said.verdict, []).append(_named(answer))
    said = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in by_verdict.items())
    scenario = outcome.scenario
    return f"{scenario.file}:{scenario.line}: `{scenario.name}` disagrees: {said}"


def _named(answer: BundleAnswer) -> str:
    by = ", ".join(answer.said.rules) or answer.said.reason or "no reason shown"
    wanted = f", expected {answer.expected}" if answer.expected and not answer.agrees else ""
    return f"{answer.bundle} ({by}{wanted})"
