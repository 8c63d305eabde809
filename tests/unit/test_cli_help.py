"""Every command says what it does and how it is used, in full."""

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from authz_server.cli.main import group


def commands(
    command: click.Command, names: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield names, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, (*names, name))


EVERY = {" ".join(names): list(names) for names, _ in commands(group)}


@pytest.mark.parametrize("names", EVERY.values(), ids=[name or "authz-server" for name in EVERY])
def test_help_has_an_example_and_is_not_cut(names: list[str]) -> None:
    shown = CliRunner().invoke(group, [*names, "--help"]).output
    example = " ".join(["authz-server", *names])
    assert any(line.startswith(f"    {example}") for line in shown.splitlines()), shown
    assert "..." not in shown.replace("[OPTIONS] COMMAND [ARGS]...", "").replace("-]...", "")
