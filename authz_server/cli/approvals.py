"""`authz-server approvals`: see what agents may not do without a person, and answer."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from authz_server.cli.ledger_source import ledger_options, ledger_source
from authz_server.cli.listing_group import ListingGroup
from authz_server.cli.terminal import examples, show, show_json, show_json_indented, table
from authz_server.ledger.approval_document import approval_json
from authz_server.ledger.approvals import (
    ApprovalRefused,
    ApprovalRequest,
    Approvals,
    ApprovalStatus,
)

EXIT_REFUSED: Final = 1

_HEADINGS: Final = (
    "approval",
    "status",
    "group",
    "subject",
    "caller",
    "action",
    "resource",
    "until",
)

_output = click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the output; json is one document a line where several are listed.",
)
_as = click.option(
    "--as", "approver", required=True, metavar="WHO", help="Who answers, as the group names them."
)


@click.group(
    cls=ListingGroup,
    epilog=examples(
        "approvals list --config authz.yaml --status pending",
        "approvals approve --config authz.yaml 5f0c --as bob@example.org",
    ),
)
def group() -> None:
    """Answer escalations: list them, look at one, approve or reject it."""


@group.command(
    "list",
    epilog=examples(
        "approvals list --config authz.yaml --status pending",
    ),
)
@ledger_options
@click.option("--status", type=click.Choice(ApprovalStatus, case_sensitive=False))
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@_output
def list_command(
    config_path: Path | None,
    ledger_url: str | None,
    status: ApprovalStatus | None,
    limit: int,
    output: str,
) -> None:
    """List what was asked of people, newest first."""
    found = _approvals(config_path, ledger_url).list(now=_now(), status=status, limit=limit)
    if output == "json":
        for request in found:
            show_json(approval_json(request))
        return
    show(table(_HEADINGS, map(_row, found)))


@group.command(
    "show",
    epilog=examples(
        "approvals show --config authz.yaml 5f0c",
    ),
)
@click.argument("approval_id", metavar="ID")
@ledger_options
@_output
def show_command(
    approval_id: str, config_path: Path | None, ledger_url: str | None, output: str
) -> None:
    """Show one request in full. The beginning of its ID is enough."""
    request = _approvals(config_path, ledger_url).show(approval_id, now=_now())
    if output == "json":
        show_json_indented(approval_json(request))
    else:
        _show_request(request)


@group.command(
    "approve",
    epilog=examples(
        "approvals approve --config authz.yaml 5f0c --as bob@example.org",
    ),
)
@click.argument("approval_id", metavar="ID")
@ledger_options
@_as
def approve_command(
    approval_id: str, config_path: Path | None, ledger_url: str | None, approver: str
) -> None:
    """Approve one pending request; the agent's next identical attempt passes.

    WHO must belong to the request's approver group (`approvals.groups` of the configuration) and
    take no part in the request. The beginning of the ID is enough.
    """
    approvals = _approvals(config_path, ledger_url)
    try:
        _show_request(approvals.approve(approval_id, approver=approver, now=_now()))
    except ApprovalRefused as refused:
        _refuse(refused)


@group.command(
    "reject",
    epilog=examples(
        'approvals reject --config authz.yaml 5f0c --as bob@example.org --reason "no need"',
    ),
)
@click.argument("approval_id", metavar="ID")
@ledger_options
@_as
@click.option("--reason", required=True, help="Why, in a sentence; it is recorded.")
def reject_command(
    approval_id: str,
    config_path: Path | None,
    ledger_url: str | None,
    approver: str,
    reason: str,
) -> None:
    """Reject one pending request; nobody is asked again before its deadline.

    WHO must be entitled as for `approve`. The beginning of the ID is enough.
    """
    approvals = _approvals(config_path, ledger_url)
    try:
        answered = approvals.reject(approval_id, approver=approver, reason=reason, now=_now())
    except ApprovalRefused as refused:
        _refuse(refused)
    else:
        _show_request(answered)


def _approvals(config_path: Path | None, ledger_url: str | None) -> Approvals:
    source = ledger_source(config_path, ledger_url)
    return Approvals.open(source.url, groups=source.groups, two_persons=source.two_persons)


def _refuse(refused: ApprovalRefused) -> None:
    click.echo(f"refused: {refused}", err=True)
    raise SystemExit(EXIT_REFUSED)


def _show_request(request: ApprovalRequest) -> None:
    filled = ((name, _text(value)) for name, value in approval_json(request).items() if value)
    show(table(("member", "value"), filled))


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _row(request: ApprovalRequest) -> tuple[str, ...]:
    return (
        request.id,
        request.status.value,
        request.approver_group,
        request.subject or "-",
        request.principal or "-",
        request.action,
        request.resource,
        request.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _now() -> datetime:
    return datetime.now(UTC)
