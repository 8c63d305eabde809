"""`authz-server envoy render`: from a dozen lines to a complete, hardened Envoy configuration."""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Final

import click

from authz_server.cli.envoy_stand_ins import absent_files, with_stand_ins
from authz_server.cli.terminal import examples
from authz_server.core.errors import ConfigurationError, Fault
from authz_server.envoy_config.bootstrap import bootstrap_tree
from authz_server.envoy_config.spec_file import EnvoySpec, parse_spec
from authz_server.envoy_config.text import Form, written
from authz_server.envoy_config.tree import Tree
from authz_server.envoy_config.validation import complaints
from authz_server.settings.load import CONFIGURATION_BYTES_MAX, read_bounded

EXIT_NO: Final = 1
_STANDARD_INPUT: Final = Path("-")

_EPILOG: Final = (
    examples(
        "envoy render --example > point.yaml",
        "envoy render point.yaml --write envoy.yaml --validate",
        "envoy render point.yaml --what listener --output json",
        "envoy render - < point.yaml",
    )
    + """

\b
Exit codes: 0 rendered; 1 the real Envoy refused it; 2 FILE has faults or cannot be read.
"""
)


@click.command("render", epilog=_EPILOG)
@click.argument("spec", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--what",
    type=click.Choice(["bootstrap", "listener"]),
    default="bootstrap",
    show_default=True,
    help="All that Envoy starts with; or listeners and clusters, for a control plane.",
)
@click.option(
    "--output", type=click.Choice([form.value for form in Form]), default="yaml", show_default=True
)
@click.option(
    "--write",
    "target",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to FILE, in one step, instead of standard output.",
)
@click.option(
    "--validate",
    "validates",
    is_flag=True,
    help="Write nothing that the real Envoy refuses; its words go to standard error. Files that "
    "are not on this machine are stood in for. Envoy is ENVOY_BINARY, the installed one, or the "
    "one on PATH.",
)
@click.option("--example", "shows_example", is_flag=True, help="Print a commented file to start.")
@click.pass_context
def command(  # noqa: PLR0913, PLR0917 - one parameter for each option
    ctx: click.Context,
    spec: Path | None,
    what: str,
    output: str,
    target: Path | None,
    validates: bool,
    shows_example: bool,
) -> None:
    """Render the Envoy of an enforcement point from FILE (`-`: standard input)."""
    if shows_example:
        click.echo(_starter(), nl=False)
        return
    if spec is None:
        raise click.UsageError("give a FILE, `-` for standard input, or `--example`")
    read = _read(spec)
    if validates and (refusal := _refusal(read)):
        click.echo(refusal, err=True)
        ctx.exit(EXIT_NO)
    tree = _tree(read)
    text = written(tree if what == "bootstrap" else _dynamic(tree), Form(output))
    if target is None:
        click.echo(text, nl=False)
    else:
        _write(target, text)


def _starter() -> str:
    return (files("authz_server.envoy_config") / "starter.yaml").read_text()


def _read(spec: Path) -> EnvoySpec:
    if spec != _STANDARD_INPUT:
        return parse_spec(read_bounded(spec), file=str(spec))
    data = sys.stdin.buffer.read(CONFIGURATION_BYTES_MAX + 1)
    if len(data) > CONFIGURATION_BYTES_MAX:
        wrong = f"is larger than {CONFIGURATION_BYTES_MAX} bytes"
        raise ConfigurationError([Fault(file="standard input", message=wrong)])
    return parse_spec(data, file="standard input")


def _refusal(spec: EnvoySpec) -> str:
    """Return what the real Envoy has against `spec`; empty when it accepts it."""
    with tempfile.TemporaryDirectory(prefix="svid-") as directory:
        for path in absent_files(spec):
            note = f"note: `{path}` is not on this machine; validated with a stand-in"
            click.echo(note, err=True)
        tree = _tree(with_stand_ins(spec, Path(directory)))
        return complaints(written(tree, Form.JSON))


def _tree(spec: EnvoySpec) -> Tree:
    return bootstrap_tree(
        spec.points, node=spec.node, admin_socket=spec.admin_socket, outbound=spec.outbound
    )


def _dynamic(bootstrap: Tree) -> Tree:
    """Return what a control plane would send; the node's metadata must be in the bootstrap."""
    node, resources = bootstrap["node"], bootstrap["static_resources"]
    assert isinstance(node, dict)
    assert isinstance(resources, dict)
    return {"node": {"metadata": node["metadata"]}, **resources}


def _write(target: Path, text: str) -> None:
    """Write `text` so that who reads `target` sees the old file or the new one.

    What is no file, such as a device or a pipe, is written to and stays what it is.
    """
    try:
        if target.exists() and not target.is_file():
            target.write_text(text)
            return
        real = target.resolve()  # a link stays a link
        temporary = real.with_name(f".{real.name}.new")
        # SECURITY: made anew, never through a link that somebody has left there.
        temporary.unlink(missing_ok=True)
        with temporary.open("x") as file:
            file.write(text)
        temporary.replace(real)
    except OSError as error:
        message = f"cannot be written: {error.strerror}"
        raise ConfigurationError([Fault(file=str(target), message=message)]) from error
