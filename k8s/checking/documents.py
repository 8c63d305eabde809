"""YAML documents as Kubernetes reads them."""

from collections.abc import Iterator
from typing import Any

import yaml

_Base: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class _Loader(_Base):  # type: ignore[misc] # either of two, by what PyYAML was built with
    """A safe loader to which a bare `=` is a text, as it is to Go (PyYAML issue 89)."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda _loader, node: str(node.value))


def documents(stream: str) -> Iterator[object]:
    """Return every document of `stream` but empty ones. Raises `yaml.YAMLError`."""
    for document in yaml.load_all(stream, Loader=_Loader):
        if document is not None:
            yield document
