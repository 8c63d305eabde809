"""Say which resource a finding is in, by the names that an operator knows it by."""

from collections.abc import Iterator, Mapping
from typing import Final

from authz_server.envoy_config.lint.message import At
from authz_server.envoy_config.lint.source import Raw

# What a mapping with a `name` is, by a key that only it has.
_KINDS: Final[Mapping[str, str]] = {
    "filter_chains": "listener",
    "filterChains": "listener",
    "virtual_hosts": "routes",
    "virtualHosts": "routes",
    "domains": "virtual host",
    "match": "route",
    "load_assignment": "cluster",
    "loadAssignment": "cluster",
    "connect_timeout": "cluster",
    "connectTimeout": "cluster",
    "filter_chain_match": "filter chain",
    "filterChainMatch": "filter chain",
    "filters": "filter chain",
}


def resource_names(at: At) -> list[str]:
    """Return the named resources around `at`, outermost first: "listener `ingress`"."""
    return [f"{kind} `{name}`" for kind, name in _named(at)]


def _named(at: At) -> Iterator[tuple[str, str]]:
    raw: Raw | None = at.source.root
    for part in at.path:
        value = raw.value if raw is not None else None
        if isinstance(value, dict):
            name = value.get("name")
            kind = next((kind for key, kind in _KINDS.items() if key in value), None)
            if kind is not None and name is not None and isinstance(name.value, str) and name.value:
                yield kind, name.value
            raw = value.get(str(part))
        elif isinstance(value, list) and isinstance(part, int):
            raw = value[part]
        else:
            return
