"""`authz-server serve`: run the policy decision point."""

import os
import sys
from pathlib import Path

import click

from authz_server.cli.options import config_option

_EPILOG = """\b
Example:
  authz-server serve --config authz.yaml

\b
Signals: TERM and INT drain (a second one ends at once); HUP reloads policy and trust.
Exit codes: 0 drained; 2 the configuration, a policy bundle, the ledger or an address is unusable.
With --wait-for-policy a bundle, key file or table of rows that is unusable at the start is waited
for instead: not ready, every request denied (NOT_READY), until it is right.
"""


@click.command(epilog=_EPILOG)
@config_option
@click.option(
    "--lame-duck",
    "lame_duck_s",
    type=click.FloatRange(0, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to go on accepting calls after health checks began to fail, before a drain.",
)
@click.option(
    "--wait-for-policy",
    "waits",
    is_flag=True,
    help="Start without a valid policy: not ready, denying, until there is one.",
)
def command(config: Path, lame_duck_s: float, waits: bool) -> None:
    """Run the policy decision point until it is told to stop."""
    # gRPC writes its own log lines to stderr, between ours; what matters is in our messages.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from authz_server.app import FirstPolicy, run
    from authz_server.settings import load_settings

    first_policy = FirstPolicy.AWAITED if waits else FirstPolicy.REQUIRED
    settings = load_settings(config)
    sys.exit(run(settings, lame_duck_s=lame_duck_s, first_policy=first_policy))
