"""`authz-server envoy lint`: report what is unsafe in Envoy's configuration."""

from pathlib import Path

import click

from authz_server.cli.terminal import examples


@click.command("lint", epilog=examples("envoy lint envoy.yaml"))
@click.argument("files", metavar="FILE…", nargs=-1, type=click.Path(path_type=Path))
def command(files: tuple[Path, ...]) -> None:
    """Report what lets requests past the check in Envoy's configuration."""
    raise click.UsageError(f"cannot judge {len(files)} files yet")
