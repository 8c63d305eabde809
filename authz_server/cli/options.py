"""Options that several commands share."""

from pathlib import Path

import click

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    envvar="AUTHZ_CONFIG",
    show_envvar=True,
    metavar="FILE",
    help="Configuration file (YAML).",
)
