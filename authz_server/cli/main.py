"""The `authz-server` command: a group whose sub-commands are imported when they are used.

Exit codes: 0 done; 1 the answer is no (denied, lint fault, broken chain); 2 usage or unreadable
input. An operator's mistake ends in one message per fault, never in a traceback.
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import click

from authz_server import __version__
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


class _Entry(NamedTuple):
    """Where a sub-command lives, and its line in the list, so that listing imports nothing."""

    target: str
    summary: str


LAZY: Final[Mapping[str, _Entry]] = MappingProxyType(
    {
        "serve": _Entry("authz_server.cli.serve:command", "Run the policy decision point."),
        "check": _Entry("authz_server.cli.check:command", "Decide one CheckRequest offline."),
        "policy": _Entry(
            "authz_server.cli.policy:group", "Check, test, explain and compare policy bundles."
        ),
        "decisions": _Entry(
            "authz_server.cli.decisions:group",
            "List, show, explain, verify, export and report on recorded decisions.",
        ),
        "identities": _Entry(
            "authz_server.cli.identities:group", "Compare the inventory with what the ledger saw."
        ),
        "ledger": _Entry(
            "authz_server.cli.ledger:group", "Prepare a shared ledger; erase a person from one."
        ),
        "approvals": _Entry(
            "authz_server.cli.approvals:group", "Answer escalations: approve or reject."
        ),
        "revocations": _Entry(
            "authz_server.cli.revocations:group", "Take back tokens, workloads, subjects or keys."
        ),
        "delegation": _Entry(
            "authz_server.cli.delegation:group", "Make, inspect and verify delegation chains."
        ),
        "demo": _Entry("authz_server.cli.demo:command", "Run a whole mesh on this machine."),
    }
)


class _LazyGroup(click.Group):
    """A group that imports a sub-command when it is asked for, and ends faults in exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(LAZY)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry = LAZY.get(cmd_name)
        if entry is None:
            return None
        module, _, name = entry.target.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command), entry.target
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in LAZY.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except ConfigurationError as error:
            for fault in error.faults:
                click.echo(str(fault), err=True)
            ctx.exit(EXIT_USAGE)
        except AuthzError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(EXIT_USAGE)


@click.group(cls=_LazyGroup, epilog=_EPILOG, context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="authz-server")
def group() -> None:
    """Decide, per action, what AI agents may do: an Envoy external authorization server."""


def main() -> None:
    """Run the command line of this process."""
    group(prog_name="authz-server")
