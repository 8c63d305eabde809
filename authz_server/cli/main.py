"""The `authz-server` command: a group whose sub-commands are imported when they are used.

Exit codes: 0 done; 1 the answer is no (denied, lint fault, broken chain); 2 usage or unreadable
input. An operator's mistake ends in one message per fault, never in a traceback.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import click

from authz_server import __version__
from authz_server.cli.lazy_group import Entry, LazyGroup
from authz_server.core.errors import AuthzError, ConfigurationError

EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells report it

_EPILOG: Final = """\b
Examples:
  authz-server demo
  authz-server serve --config authz.yaml
  authz-server check --config authz.yaml < request.json

\b
Shell completion (bash; zsh and fish likewise):
  eval "$(_AUTHZ_SERVER_COMPLETE=bash_source authz-server)"
"""


LAZY: Final[Mapping[str, Entry]] = MappingProxyType(
    {
        "serve": Entry("authz_server.cli.serve:command", "Run the policy decision point."),
        "check": Entry("authz_server.cli.check:command", "Decide one CheckRequest offline."),
        "policy": Entry(
            "authz_server.cli.policy:group", "Check, test, explain and compare policy bundles."
        ),
        "decisions": Entry(
            "authz_server.cli.decisions:group",
            "List, show, explain, verify, export and report on recorded decisions.",
        ),
        "identities": Entry(
            "authz_server.cli.identities:group", "Compare the inventory with what the ledger saw."
        ),
        "ledger": Entry(
            "authz_server.cli.ledger:group", "Prepare a shared ledger; erase a person from one."
        ),
        "approvals": Entry(
            "authz_server.cli.approvals:group", "Answer escalations: approve or reject."
        ),
        "revocations": Entry(
            "authz_server.cli.revocations:group", "Take back tokens, workloads, subjects or keys."
        ),
        "delegation": Entry(
            "authz_server.cli.delegation:group", "Make, inspect and verify delegation chains."
        ),
        "envoy": Entry(
            "authz_server.cli.envoy:group", "Write Envoy configuration; find what is unsafe in one."
        ),
        "demo": Entry("authz_server.cli.demo:command", "Run a whole mesh on this machine."),
    }
)


class _Commands(LazyGroup):
    """All commands; ends faults in exit codes."""

    def entries(self) -> Mapping[str, Entry]:
        return LAZY

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except ConfigurationError as error:
            for fault in error.faults:
                _complain(str(fault))
            ctx.exit(EXIT_USAGE)
        except AuthzError as error:
            _complain(f"error: {error}")
            ctx.exit(EXIT_USAGE)


def _complain(text: str) -> None:
    """Print to standard error, line by line.

    SECURITY: a faulty file shows its own lines here, and a peer what it sent (CWE-150).
    """
    from authz_server.cli.policy_faults import visible  # not needed where nothing is wrong

    for line in text.split("\n"):
        click.echo(visible(line), err=True)


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="authz-server")
def group() -> None:
    """Decide, per action, what AI agents may do: an Envoy external authorization server."""


def main() -> None:
    """Run the command line of this process."""
    group(prog_name="authz-server")
