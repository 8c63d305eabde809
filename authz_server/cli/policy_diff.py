"""`policy diff` on the screen: what differs between two revisions, and whom it would have met."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from authz_server.cli.document import Document, action_name, resource_name, section, text
from authz_server.cli.policy_replay import Outcome, Pair, Redecided, Tally, redecide
from authz_server.cli.policy_sources import is_bundle, load_noted
from authz_server.cli.terminal import show, show_json, table
from authz_server.core.decision import Evaluation
from authz_server.core.identities import Inventory
from authz_server.ledger.printable import printable
from authz_server.policy.definitions import Definition
from authz_server.policy.diff import BundleDiff, Change, diff_bundles

_T = TypeVar("_T")
_MARKS = {
    Change.ADDED: ("+", "green"),
    Change.REMOVED: ("-", "red"),
    Change.CHANGED: ("~", "yellow"),
}


def load_pairs(old: Path, new: Path, name: str | None) -> Mapping[str, Pair]:
    """Return what is to be compared, by bundle name.

    Two single bundles are compared whatever they are called; `name` is what records call them.
    """
    before, after = load_noted(old), load_noted(new)
    if is_bundle(old) and is_bundle(new):
        (first,), (second,) = before.values(), after.values()
        return {name or first.bundle.name: Pair(old=first.policy, new=second.policy)}
    wanted = sorted({*before, *after}) if name is None else [name]
    if not {*before, *after}.issuperset(wanted):
        raise click.UsageError(f"no bundle is called `{name}` in `{old}` or `{new}`")
    return {
        key: Pair(
            old=before[key].policy if key in before else None,
            new=after[key].policy if key in after else None,
        )
        for key in wanted
    }


# --- rules --------------------------------------------------------------------------------------


def show_rule_changes(pairs: Mapping[str, Pair], *, as_json: bool) -> bool:
    """Print what differs in rules, roles and effect; return whether anything does."""
    differs = False
    for name, both in pairs.items():
        if both.old is None or both.new is None:
            differs = True
            change = Change.REMOVED if both.new is None else Change.ADDED
            if as_json:
                show_json({"type": "bundle", "bundle": name, "change": change})
            else:
                mark, colour = _MARKS[change]
                click.secho(f"{mark} bundle {name} {change}", fg=colour)
            continue
        found = diff_bundles(both.old, both.new)
        differs |= bool(found)
        for line in _json_lines(name, found) if as_json else ():
            show_json(line)
        if not as_json:
            _show_diff(name, found)
    return differs


def _show_diff(name: str, found: BundleDiff) -> None:
    if not found:
        click.echo(f"  bundle {name}: no rule differs")
        return
    click.secho(f"  bundle {name}", bold=True)
    for fact in found.facts:
        click.secho(f"~ {fact.name}: {printable(fact.old)} -> {printable(fact.new)}", fg="yellow")
    for rule in found.rules:
        mark, colour = _MARKS[rule.change]
        click.secho(f"{mark} rule {printable(rule.id)}  ({printable(rule.place)})", fg=colour)
        for sign, definition in (("-", rule.old), ("+", rule.new)):
            if definition is not None:
                click.echo(f"    {sign} {printable(str(definition))}")
    for mark, rows, colour in (
        ("+", found.roles_added, "green"),
        ("-", found.roles_removed, "red"),
    ):
        for row in rows:
            click.secho(f"{mark} role {printable(', '.join(row))}", fg=colour)


def _json_lines(name: str, found: BundleDiff) -> Iterator[dict[str, object]]:
    for fact in found.facts:
        yield {
            "type": "fact", "bundle": name, "name": fact.name, "old": fact.old, "new": fact.new,
        }  # fmt: skip
    for rule in found.rules:
        yield {
            "type": "rule",
            "bundle": name,
            "change": rule.change,
            "id": rule.id,
            "place": rule.place,
            "old": _definition(rule.old),
            "new": _definition(rule.new),
        }
    for change, rows in ((Change.ADDED, found.roles_added), (Change.REMOVED, found.roles_removed)):
        for row in rows:
            yield {"type": "role", "bundle": name, "change": change, "row": list(row)}


def _definition(definition: Definition | None) -> dict[str, object] | None:
    if definition is None:
        return None
    return {
        "effect": definition.effect,
        "obligation": definition.obligation,
        "condition": definition.condition,
    }


# --- recorded decisions -------------------------------------------------------------------------


def show_replay(
    documents: Iterator[Document],
    pairs: Mapping[str, Pair],
    inventory: Inventory | None,
    *,
    as_json: bool,
) -> Tally:
    """Decide `documents` again, print each verdict that changes as it is found, then the counts."""
    tally = Tally()
    with _counted(documents) as counted:
        for one in redecide(counted, pairs, inventory):
            tally.add(one)
            if as_json and one.outcome in {Outcome.CHANGED, Outcome.OPEN}:
                show_json(_redecided_json(one))
            elif one.outcome is Outcome.CHANGED:
                _show_changed(one)
    if as_json:
        show_json(_tally_json(tally))
    else:
        _show_tally(tally, pairs)
    return tally


@contextmanager
def _counted(items: Iterator[_T]) -> Iterator[Iterator[_T]]:
    """Count `items` on a terminal while they are worked on; how many come is not known."""
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.completed} decisions"),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
        redirect_stdout=sys.stdout.isatty(),
    )
    with progress:
        yield iter(progress.track(items, total=None))


def _show_changed(one: Redecided) -> None:
    assert one.old is not None, "a change is between two settled answers"
    assert one.new is not None, "a change is between two settled answers"
    document = one.document
    facts = (
        text(document, "decision_id"),
        text(document, "time"),
        text(section(document, "chain"), "subject"),
        text(section(document, "principal"), "spiffe_id"),
        action_name(document),
        resource_name(document),
    )
    verdicts = f"{_answer(one.old)} -> {_answer(one.new)}"
    click.echo(
        click.style(verdicts, bold=True)
        + "  "
        + "  ".join(printable(fact or "-") for fact in facts)
        + f"  {_because(one.old)} -> {_because(one.new)}"
    )


def _answer(evaluation: Evaluation) -> str:
    group = f" ({printable(evaluation.obligation)})" if evaluation.obligation else ""
    return f"{evaluation.verdict}{group}"


def _because(evaluation: Evaluation) -> str:
    return printable(", ".join(evaluation.rules)) or evaluation.reason.value


def _show_tally(tally: Tally, pairs: Mapping[str, Pair]) -> None:
    for reads, count in tally.reads.most_common():
        named = ", ".join(sorted(reads))
        example = printable(tally.example[reads])
        click.secho(
            f"cannot be replayed: reads {printable(named)}  ({count}, such as {example})",
            fg="yellow",
        )
    rows = [
        (outcome.value, str(tally.outcomes[outcome]))
        for outcome in Outcome
        if tally.outcomes[outcome] or outcome in {Outcome.SAME, Outcome.CHANGED}
    ]
    show(table(("recorded decisions", "count"), rows))
    if tally.otherwise:
        click.echo(
            f"note: OLD does not answer {tally.otherwise} of them as recorded; another revision "
            "decided them, or the inventory has changed"
        )
    if tally.bundles and not (tally.outcomes.total() - tally.outcomes[Outcome.OTHER]):
        compared, seen = ", ".join(pairs), ", ".join(tally.bundles)
        click.echo(
            f"note: no record is of bundle {compared}; those read are of {printable(seen)}. "
            "Name it with --bundle"
        )


def _redecided_json(one: Redecided) -> dict[str, object]:
    document = one.document
    return {
        "type": "decision",
        "decision_id": text(document, "decision_id"),
        "time": text(document, "time"),
        "bundle": text(document, "bundle"),
        "outcome": "changed" if one.outcome is Outcome.CHANGED else "cannot be replayed",
        "old": _evaluation(one.old),
        "new": _evaluation(one.new),
        "reads": sorted(one.reads),
    }


def _evaluation(evaluation: Evaluation | None) -> dict[str, object] | None:
    if evaluation is None:
        return None
    return {
        "verdict": evaluation.verdict,
        "reason": evaluation.reason,
        "rules": list(evaluation.rules),
        "obligation": evaluation.obligation,
    }


def _tally_json(tally: Tally) -> dict[str, object]:
    return {
        "type": "summary",
        **{outcome.name.lower(): tally.outcomes[outcome] for outcome in Outcome},
        "recorded_otherwise": tally.otherwise,
    }
