"""Rules on what lint could not judge: said aloud, so that silence means judged."""

from collections.abc import Iterator
from typing import Final

from authz_server.envoy_config.lint.configuration import REDACTED, Configuration
from authz_server.envoy_config.lint.definitions import VERSION
from authz_server.envoy_config.lint.message import At
from authz_server.envoy_config.lint.rule import ERROR, WARNING, Judge, Rule


def _of_kind(kind: str) -> Judge:
    return lambda configuration: [one.at for one in configuration.misread if one.kind == kind]


def _types(configuration: Configuration) -> Iterator[At]:
    """Yield the first place of each unknown type, and how many more there are."""
    places: dict[str, list[At]] = {}
    for one in configuration.misread:
        if one.kind == "type":
            places.setdefault(one.at.note, []).append(one.at)
    for name, found in places.items():
        more = f", here and in {len(found) - 1} more places" if len(found) > 1 else ""
        at = found[0]
        yield At(at.source, at.path, at.place, f"`{name}`{more}")


def _elsewhere(configuration: Configuration) -> Iterator[At]:
    for chain in configuration.http:
        if not chain.complete:
            field = "rds" if chain.manager.has("rds") else "scoped_routes"
            yield chain.manager.at(field, "routes")
        for one in chain.filters:
            if one.settings is None and one.entry.has("config_discovery"):
                yield one.entry.at("config_discovery", f"filter `{one.name}`")
        for table in chain.tables:
            if table.has("vhds"):
                yield table.at("vhds", "virtual hosts")
    for listener in configuration.listeners:
        if listener.has("fcds_config"):
            yield listener.at("fcds_config", "filter chains")
    if not configuration.listeners:
        for bootstrap in configuration.bootstraps:
            dynamic = bootstrap.message("dynamic_resources")
            if dynamic is not None and dynamic.has("lds_config"):
                yield dynamic.at("lds_config", "listeners")


def _pdp_elsewhere(configuration: Configuration) -> Iterator[At]:
    for service in configuration.services:
        target = service.message("envoy_grpc")
        if target is not None and target.text("cluster_name") not in configuration.clusters:
            yield target.at("cluster_name", f"`{target.text('cluster_name')}`")


def _hidden(configuration: Configuration) -> Iterator[At]:
    """Yield the first place of each source at which a dump hides what rules look at."""
    places: dict[str, list[At]] = {}
    for route in configuration.per_route:
        for checks in route.messages("check_settings"):
            if REDACTED in checks.map("context_extensions").values():
                at = checks.at("context_extensions")
                places.setdefault(at.source.name, []).append(at)
    for found in places.values():
        more = f", here and in {len(found) - 1} more places" if len(found) > 1 else ""
        yield At(found[0].source, found[0].path, found[0].place, f"context extensions{more}")


RULES: Final = (
    Rule(
        id="EA001",
        severity=ERROR,
        title="a field that is not understood, and not judged",
        why="A misspelt setting is one that does not hold; one of a newer Envoy may switch "
        "something off.",
        fix=f"the name as it is in the messages of Envoy {VERSION}",
        judge=_of_kind("field"),
    ),
    Rule(
        id="EA002",
        severity=ERROR,
        title="a value that is not understood, and not judged",
        why="What Envoy makes of it is not known; it refuses most.",
        fix="a value of the field's type",
        judge=_of_kind("value"),
    ),
    Rule(
        id="EA003",
        severity=WARNING,
        title="an extension that is not understood, and not judged",
        why=f"Its type is none of Envoy {VERSION}: what it does to requests is not known.",
        fix="an extension of Envoy's own, or a look at what this one does",
        judge=_types,
    ),
    Rule(
        id="EA004",
        severity=WARNING,
        title="not in what was given, and not judged",
        why="It comes from a control plane while Envoy runs, and may switch the check off.",
        fix="give lint the running configuration: `--admin ADDRESS`, or `/config_dump` as FILE",
        judge=_elsewhere,
    ),
    Rule(
        id="EA005",
        severity=WARNING,
        title="the cluster of the PDP is not in what was given, and not judged",
        why="Whether the PDP is asked in the clear, or whether anybody may be it, is not known.",
        fix="give lint the clusters too: further FILEs, or `/config_dump`",
        judge=_pdp_elsewhere,
    ),
    Rule(
        id="EA006",
        severity=WARNING,
        title="hidden by the dump, and not judged",
        why="Envoy shows `[redacted]` for what may be secret; keys are judged, values are not.",
        fix="give lint the file or the control plane's resource that they come from",
        judge=_hidden,
    ),
)
