"""`authz-server envoy lint`: report what is unsafe in Envoy's configuration."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from authz_server.cli.policy_faults import show_fault, visible
from authz_server.cli.terminal import examples, show_json
from authz_server.core.errors import ConfigurationError, Fault
from authz_server.envoy_config.lint.judge import RULES, judge
from authz_server.envoy_config.lint.live import read_dump
from authz_server.envoy_config.lint.names import resource_names
from authz_server.envoy_config.lint.rule import Finding, Severity
from authz_server.envoy_config.lint.source import SOURCE_BYTES_MAX, Source, read_source

EXIT_NO: Final = 1
_STANDARD_INPUT: Final = Path("-")


def _complete_rule(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    found = (rule for rule in RULES if rule.id.startswith(incomplete.upper()))
    return [CompletionItem(rule.id, help=rule.title) for rule in found]


def _rule_ids(
    _ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]
) -> frozenset[str]:
    unknown = set(values).difference(rule.id for rule in RULES)
    if unknown:
        raise click.BadParameter(f"there is no rule `{min(unknown)}`: docs/envoy-lint.md has all")
    return frozenset(values)


@click.command(
    "lint",
    epilog=examples(
        "envoy lint envoy.yaml",
        "envoy lint listeners.yaml clusters.yaml routes.yaml --strict",
        "envoy lint --admin http://127.0.0.1:9901 --strict --ignore EA006",
        "envoy lint --admin unix:///run/authz/envoy-admin.sock --output json",
        "envoy lint envoy.yaml --ignore EA322 --ignore EA325",
    ),
)
@click.argument("files", metavar="[FILE]…", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--admin",
    "admins",
    metavar="ADDRESS",
    multiple=True,
    help="Judge what a running Envoy has: http://HOST:PORT or unix:///PATH of its admin interface.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings too.")
@click.option(
    "--ignore",
    "ignored",
    metavar="ID",
    multiple=True,
    callback=_rule_ids,
    shell_complete=_complete_rule,
    help="Leave out what this rule finds. May be given several times.",
)
@click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the output; json is one finding a line.",
)
def command(
    files: tuple[Path, ...],
    admins: tuple[str, ...],
    strict: bool,
    ignored: frozenset[str],
    output: str,
) -> None:
    """Report what lets requests past the check in Envoy's configuration.

    FILE is a bootstrap, a listener, cluster or route configuration, the connection manager, a file
    of the discovery services, or a `/config_dump`; YAML or JSON; `-` is standard input. Several are
    taken as parts of one Envoy. docs/envoy-lint.md describes every rule. Exits with 1 when there is
    an error.
    """
    if not files and not admins:
        raise click.UsageError("give a FILE, or the address of an admin interface (--admin)")
    findings = [one for one in judge(_sources(files, admins)) if one.rule.id not in ignored]
    for finding in findings:
        (_show_json if output == "json" else _show)(finding)
    errors = sum(one.rule.severity is Severity.ERROR for one in findings)
    _sum_up(errors, len(findings) - errors)
    if errors or (strict and findings):
        click.get_current_context().exit(EXIT_NO)


def _sources(files: Sequence[Path], admins: Sequence[str]) -> list[Source]:
    """Return every source. Raises `ConfigurationError` with the faults of those unreadable."""
    found: list[Source] = []
    faults: list[Fault] = []
    for name, data in _contents(files, admins, faults):
        try:
            source = read_source(data, name=name)
        except ConfigurationError as error:
            faults += error.faults
            continue
        # Nobody has the text that an admin interface sent: its lines say nothing.
        found.append(replace(source, lines=()) if name in admins else source)
    if faults:
        raise ConfigurationError(faults)
    return found


def _contents(
    files: Sequence[Path], admins: Sequence[str], faults: list[Fault]
) -> Iterator[tuple[str, bytes]]:
    for path in files:
        name = "standard input" if path == _STANDARD_INPUT else str(path)
        try:
            with click.open_file(str(path), "rb") as file:
                yield name, file.read(SOURCE_BYTES_MAX + 1)
        except OSError as error:
            faults.append(Fault(file=name, message=f"cannot be read: {error.strerror}"))
    for address in admins:
        try:
            yield address, read_dump(address)
        except ConfigurationError as error:
            faults += error.faults


def _show(finding: Finding) -> None:
    at, rule = finding.at, finding.rule
    show_fault(
        Fault(
            file=at.source.name,
            line=at.line,
            column=at.column,
            source=at.source.line(at.place),
            severity=rule.severity,
            message=f"{rule.id} {finding.message}",
        )
    )
    where = ", ".join(resource_names(at))
    for label, text in (
        ("in", where),
        ("path", at.json_path),
        ("why", rule.why),
        ("fix", rule.fix),
    ):
        if text:
            click.echo(f"    {label + ':':5} {visible(text)}")


def _show_json(finding: Finding) -> None:
    at, rule = finding.at, finding.rule
    show_json(
        {
            "rule": rule.id,
            "severity": rule.severity,
            "file": at.source.name,
            "line": at.line or None,
            "column": at.column or None,
            "path": at.json_path,
            "resources": resource_names(at),
            "message": finding.message,
            "why": rule.why,
            "fix": rule.fix,
        }
    )


def _sum_up(errors: int, warnings: int) -> None:
    click.echo(f"{_count(errors, 'error')}, {_count(warnings, 'warning')}", err=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
