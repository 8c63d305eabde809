"""The samples of the lint rules (`tests/cases/envoy_lint.yaml`), and how to apply one.

A sample changes a named part of a rendered configuration, so that the unit tests judge, and the
real Envoy runs, exactly what the documentation shows.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

CASES: Final = Path(__file__).parent / "cases" / "envoy_lint.yaml"

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """One unsafe setting of one rule. `unsafe` and `safe` change a tree in place."""

    rule: str
    number: int
    values: Mapping[str, Any]

    @property
    def id(self) -> str:
        """How tests call it."""
        return f"{self.rule}-{self.number}"

    @property
    def base(self) -> str:
        """Which configuration is changed."""
        return str(self.values.get("base", "http"))

    @property
    def expected(self) -> set[str]:
        """The rules that the unsafe setting breaks."""
        return {self.rule, *self.values.get("also", ())}

    @property
    def shown(self) -> str | None:
        """What the real Envoy does with it, if a test shows that."""
        return self.values.get("shown")

    def unsafe(self, tree: Tree) -> Tree:
        """Return a copy of `tree` with the unsafe setting."""
        changed = copy.deepcopy(tree)
        self._apply(changed, "unsafe")
        return changed

    def safe(self, tree: Tree) -> Tree:
        """Return a copy of `tree` as it should be."""
        changed = copy.deepcopy(tree)
        if "safe" in self.values:
            merge(find(changed, self.values["at"]), self.values["safe"])
        return changed

    def _apply(self, tree: Tree, kind: str) -> None:
        if "second" in self.values:
            tree["static_resources"]["listeners"].append(copy.deepcopy(self.values["second"]))
            return
        part = find(tree, self.values["at"])
        if kind in self.values:
            merge(part, self.values[kind])
        filters = part.get("http_filters", [])
        places = {"before": -2, "after": -1, "behind": len(filters)}
        for place, index in places.items():
            if place in self.values:
                filters.insert(index, self.values[place])
        for further in self.values.get("and", ()):
            merge(find(tree, further["at"]), further["unsafe"])
        if "network_filter" in self.values:
            part["filters"].insert(1, self.values["network_filter"])


def samples() -> list[Sample]:
    """Return every sample."""
    return [
        Sample(rule, number, values)
        for rule, entries in yaml.safe_load(CASES.read_text()).items()
        for number, values in enumerate(entries, 1)
    ]


def merge(target: Tree, patch: Mapping[str, Any]) -> None:
    """Merge `patch` into `target` (RFC 7396)."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            merge(target[key], value)
        else:
            target[key] = copy.deepcopy(value)


def find(tree: Tree, name: str) -> Tree:
    """Return the part of a rendered configuration that samples call `name`."""
    found = _PARTS[name](tree)
    assert isinstance(found, dict), name
    return found


def _listener(tree: Tree) -> Any:
    return tree["static_resources"]["listeners"][0]


def _chain(tree: Tree) -> Any:
    return _listener(tree)["filter_chains"][0]


def _hcm(tree: Tree) -> Any:
    return _chain(tree)["filters"][0]["typed_config"]


def _asking(tree: Tree) -> Any:
    filters = _hcm(tree).get("http_filters") or _chain(tree)["filters"]
    return next(one for one in filters if "ext_authz" in one["name"])


def _tls(tree: Tree) -> Any:
    return _chain(tree)["transport_socket"]["typed_config"]


def _host(tree: Tree) -> Any:
    return _hcm(tree)["route_config"]["virtual_hosts"][0]


def _cluster(tree: Tree, end: str) -> Any:
    clusters = tree["static_resources"]["clusters"]
    return next(one for one in clusters if one["name"].endswith(end))


def _pdp_tls(tree: Tree) -> Any:
    socket = _cluster(tree, "_pdp")["transport_socket"]
    return socket["typed_config"]["common_tls_context"]


_PARTS: Final[Mapping[str, Callable[[Tree], Any]]] = {
    "bootstrap": lambda tree: tree,
    "static": lambda tree: tree["static_resources"],
    "listener": _listener,
    "chain": _chain,
    "tls": _tls,
    "common_tls": lambda tree: _tls(tree)["common_tls_context"],
    "validation": lambda tree: _tls(tree)["common_tls_context"]["validation_context"],
    "hcm": _hcm,
    "ext_authz_entry": _asking,
    "ext_authz": lambda tree: _asking(tree)["typed_config"],
    "service": lambda tree: _asking(tree)["typed_config"]["grpc_service"],
    "router": lambda tree: _hcm(tree)["http_filters"][-1]["typed_config"],
    "mcp": lambda tree: _hcm(tree)["http_filters"][0]["typed_config"],
    "virtual_host": _host,
    "route": lambda tree: _host(tree)["routes"][0],
    "action": lambda tree: _host(tree)["routes"][0]["route"],
    "checks": lambda tree: _host(tree)["typed_per_filter_config"]["envoy.filters.http.ext_authz"][
        "check_settings"
    ],
    "tcp_proxy": lambda tree: _chain(tree)["filters"][-1]["typed_config"],
    "pdp": lambda tree: _cluster(tree, "_pdp"),
    "pdp_common_tls": _pdp_tls,
    "pdp_validation": lambda tree: _pdp_tls(tree)["validation_context"],
    "upstream": lambda tree: _cluster(tree, "_upstream"),
}
