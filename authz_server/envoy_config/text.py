"""Rendered configuration as JSON or YAML text that every reader takes for the same values.

YAML libraries disagree on what a bare word is: to Envoy's `n` is false and to PyYAML it is text. So
only words that no YAML 1.1 or 1.2 reader takes for anything but text are written bare.
"""

import json
import re
from enum import StrEnum
from typing import Final

import yaml

from authz_server.envoy_config.tree import Tree

# Letters and `/` begin no number, date, or indicator; `.inf` and `~` begin with neither.
_BARE: Final = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)*")
_NOT_TEXT: Final = frozenset(
    ("y", "n", "yes", "no", "on", "off", "true", "false", "null", "nil", "nan", "inf")
)
_COLUMNS: Final = 1000  # a line is as long as its value: nobody reads a folded path well


class Form(StrEnum):
    """How configuration is written."""

    YAML = "yaml"
    JSON = "json"


def written(tree: Tree, form: Form) -> str:
    """Return `tree` as text in `form`, which ends with a line break."""
    if form is Form.JSON:
        return json.dumps(tree, indent=2) + "\n"
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=_COLUMNS)


class _Dumper(yaml.SafeDumper):
    """Writes text in double quotes unless nobody can mistake it, and never an alias."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    bare = _BARE.fullmatch(value) is not None and value.lower() not in _NOT_TEXT
    style = None if bare else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
