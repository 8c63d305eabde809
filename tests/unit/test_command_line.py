"""The command: cheap to list, honest exit codes, no traceback for an operator's mistake."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from authz_server import __version__
from authz_server.cli import main
from authz_server.core.errors import ConfigurationError, Fault, LedgerError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Make `authz-server serve` raise what the list holds."""
    errors: list[BaseException] = []

    @click.command()
    def command() -> None:
        raise errors[0]

    monkeypatch.setattr(
        main, "LAZY", {"serve": main.LAZY["serve"]._replace(target=f"{__name__}:x")}
    )
    monkeypatch.setattr(sys.modules[__name__], "x", command, raising=False)
    return errors


def commands() -> list[tuple[str, ...]]:
    """Return every command that does something, as its words."""
    found: list[tuple[str, ...]] = []
    context = click.Context(main.group)
    for name in main.group.list_commands(context):
        command = main.group.get_command(context, name)
        assert command is not None
        below = command.list_commands(context) if isinstance(command, click.Group) else []
        found.extend([(name, sub) for sub in below] or [(name,)])
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_explains_itself_with_an_example(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main.group, [*words, "--help"])
    assert result.exit_code == 0, result.output
    assert f"authz-server {' '.join(words)}" in result.output


def test_listing_the_commands_imports_none_of_them() -> None:
    code = (
        "import sys; from authz_server.cli.main import group\n"
        "try: group(['--help'], prog_name='authz-server')\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'sqlalchemy', 'rich', 'pydantic', 'cryptography', 'google'}\n"
        "print(sorted(heavy.intersection(m.partition('.')[0] for m in sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"
    assert all(name in result.stdout for name in main.LAZY)


def test_a_mistyped_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(main.group, ["serv"])
    assert result.exit_code == 2
    assert "No such command 'serv'" in result.output


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(main.group, ["--version"])
    assert result.output == f"authz-server, version {__version__}\n"


def test_every_fault_is_printed_and_the_exit_code_is_2(failing: list[BaseException]) -> None:
    failing.append(
        ConfigurationError(
            [
                Fault(file="authz.yaml", line=3, column=1, message="unknown key `lsten`"),
                Fault(file="policy.csv", message="no rules"),
            ]
        )
    )
    result = CliRunner().invoke(main.group, ["serve"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "authz.yaml:3:1: error: unknown key `lsten`",
        "policy.csv: error: no rules",
    ]


def test_any_other_error_on_purpose_is_one_line(failing: list[BaseException]) -> None:
    failing.append(LedgerError("disk is full"))
    result = CliRunner().invoke(main.group, ["serve"])
    assert result.exit_code == 2
    assert result.stderr == "error: disk is full\n"


def test_an_interrupt_exits_as_shells_expect(failing: list[BaseException]) -> None:
    failing.append(KeyboardInterrupt())
    assert CliRunner().invoke(main.group, ["serve"]).exit_code == 130


def test_a_defect_is_not_hidden(failing: list[BaseException]) -> None:
    failing.append(ZeroDivisionError())
    result = CliRunner().invoke(main.group, ["serve"])
    assert isinstance(result.exception, ZeroDivisionError)
