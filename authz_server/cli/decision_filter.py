"""The options by which commands choose recorded decisions."""

from collections.abc import Callable
from typing import Final, TypeVar

import click

from authz_server.cli.ledger_source import moment
from authz_server.core.decision import Verdict
from authz_server.core.errors import Reason

_Command = TypeVar("_Command", bound=Callable[..., object])

_OPTIONS: Final = (
    click.option(
        "--since", type=moment, metavar="TIME", help="Not before: RFC 3339, or 15m, 2h, 7d for ago."
    ),
    click.option(
        "--until", type=moment, metavar="TIME", help="Before: RFC 3339, or 15m, 2h, 7d for ago."
    ),
    click.option("--verdict", type=click.Choice(Verdict, case_sensitive=False)),
    click.option(
        "--reason",
        type=click.Choice(Reason, case_sensitive=False),
        metavar="CODE",
        help="Reason code, such as SCOPE_WIDENED.",
    ),
    click.option("--subject", help="On whose behalf."),
    click.option("--actor", help="Any actor of the chain."),
    click.option("--principal", help="The caller."),
    click.option("--resource", help="As listed; `crm*` for all that begins with crm."),
    click.option("--rule", help="Id of a rule that decided."),
    click.option("--txn", help="Transaction of the chain."),
    click.option("--bundle", help="Policy bundle that decided."),
)


def filter_options(command: _Command) -> _Command:
    """Add the options; the command gets them by the names of `DecisionFilter`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
