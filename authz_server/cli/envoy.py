"""`authz-server envoy`: write Envoy configuration, and find what is unsafe in one."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import click

from authz_server.cli.lazy_group import Entry, LazyGroup
from authz_server.cli.terminal import examples

# Each in a module of its own: `render` needs Envoy's messages, which take long to import.
LAZY: Final[Mapping[str, Entry]] = MappingProxyType(
    {
        "render": Entry(
            "authz_server.cli.envoy_render:command", "Write the configuration of an Envoy."
        ),
        "lint": Entry(
            "authz_server.cli.envoy_lint:command", "Report what lets requests past the check."
        ),
    }
)


class _Commands(LazyGroup):
    def entries(self) -> Mapping[str, Entry]:
        return LAZY


@click.group(cls=_Commands, epilog=examples("envoy render point.yaml", "envoy lint envoy.yaml"))
def group() -> None:
    """Write Envoy configuration, and find what is unsafe in one."""
