"""A group of commands whose list says of each what it does, in full."""

from typing import Final

import click

_SUMMARY_MAX: Final = 200  # letters: no summary is as long


class ListingGroup(click.Group):
    """A group that lists each command with its whole first sentence, folded and never cut."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List every command with its summary."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, one.get_short_help_str(limit=_SUMMARY_MAX)) for name, one in found if one]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
