"""Tell what a source is, and take from it what belongs to an Envoy.

A bootstrap, any single resource, a response of the discovery services, or a dump of a running
Envoy's configuration (`/config_dump`).
"""

from collections.abc import Iterable, Iterator
from typing import Final

from authz_server.core.errors import ConfigurationError, Fault
from authz_server.envoy_config.lint.configuration import MANAGER, Configuration
from authz_server.envoy_config.lint.definitions import Definitions
from authz_server.envoy_config.lint.message import Builder, Message, Misread
from authz_server.envoy_config.lint.source import Raw, Source

_BOOTSTRAP: Final = "envoy.config.bootstrap.v3.Bootstrap"
_HTTP_MANAGER: Final = (
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)
# Each is known by its own keys. The first that has them all is meant.
_ROOTS: Final = (
    "envoy.admin.v3.ConfigDump",
    _BOOTSTRAP,
    "envoy.config.bootstrap.v3.Bootstrap.StaticResources",
    "envoy.service.discovery.v3.DiscoveryResponse",
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
    _HTTP_MANAGER,
    "envoy.config.cluster.v3.Cluster",
)
_LISTENER: Final = "envoy.config.listener.v3.Listener"
_CLUSTER: Final = "envoy.config.cluster.v3.Cluster"
_TABLE: Final = "envoy.config.route.v3.RouteConfiguration"
_EXTENSION: Final = "envoy.config.core.v3.TypedExtensionConfig"
# Keys that only the files of `envoy render` have.
_OF_A_POINT: Final = frozenset({"enforcement_points", "workload_id", "upstream", "outbound"})
# What a dump holds beside the configuration in force: listeners on their way out, refused updates.
_NOT_IN_FORCE: Final = frozenset({"draining_state", "error_state"})


def configuration_of(sources: Iterable[Source]) -> Configuration:
    """Return what `sources` configure together.

    Raises `ConfigurationError` with a fault for each that is not Envoy configuration.
    """
    roots: list[Message] = []
    misread: list[Misread] = []
    faults: list[Fault] = []
    for source in sources:
        try:
            root, unclear = _root(source)
        except ConfigurationError as error:
            faults += error.faults
            continue
        roots.append(root)
        passed_over = _superseded(root)
        misread += [one for one in unclear if passed_over.isdisjoint(one.at.path)]
    if faults:
        raise ConfigurationError(faults)
    return _collect(roots, misread)


def _root(source: Source) -> tuple[Message, list[Misread]]:
    builder = Builder(source)
    values = source.root.value
    if isinstance(values, dict) and "@type" in values:
        return builder.any(source.root, ()), builder.misread
    kind = _kind(values) if isinstance(values, dict) else None
    if kind is None:
        message = "not Envoy configuration: neither bootstrap, resource nor configuration dump"
        if isinstance(values, dict) and {"apiVersion", "kind"} <= values.keys():
            message = "a Kubernetes object: give the Envoy configuration in it, or made of it"
        elif isinstance(values, dict) and not _OF_A_POINT.isdisjoint(values):
            message = "an enforcement point: give what `authz-server envoy render` makes of it"
        raise ConfigurationError([Fault(file=source.name, message=message)])
    return builder.message(source.root, kind), builder.misread


def _kind(values: dict[str, Raw]) -> str | None:
    """Return the type that has most of `values` as fields; None if none has half of them."""
    definitions = Definitions.load()
    matching = [sum(key in definitions.fields(kind) for key in values) for kind in _ROOTS]
    best = max(matching)
    return _ROOTS[matching.index(best)] if best and 2 * best >= len(values) else None


def _collect(roots: list[Message], misread: list[Misread]) -> Configuration:
    found: dict[str, list[Message]] = {}
    for root in roots:
        for message in _outermost(root, _superseded(root)):
            found.setdefault(message.type, []).append(message)
    bootstraps = [one for root in roots for one in root.all(_BOOTSTRAP)]
    # Of two with one name the first is what the file's own listeners mean.
    return Configuration(
        bootstraps=bootstraps,
        listeners=found.get(_LISTENER, []),
        managers=found.get(_HTTP_MANAGER, []),
        clusters=_by_name(found.get(_CLUSTER, [])),
        tables=_by_name(found.get(_TABLE, [])),
        extensions={
            one.text("name"): settings
            for one in found.get(_EXTENSION, [])
            if (settings := one.message("typed_config")) is not None
        },
        secrets=[one for root in roots for one in root.all("tls.v3.Secret")],
        misread=misread,
    )


def _by_name(messages: list[Message]) -> dict[str, Message]:
    return {one.text("name"): one for one in reversed(messages)}


def _superseded(root: Message) -> frozenset[str]:
    """Return the fields to pass over: what a dump repeats from the bootstrap, or no longer uses."""
    if any(root.all("ListenersConfigDump")):
        return _NOT_IN_FORCE | {"static_resources", "static_route_configs"}
    return _NOT_IN_FORCE


def _outermost(root: Message, skip: frozenset[str]) -> Iterator[Message]:
    """Yield the resources in `root`, without looking into them."""
    waiting: list[object] = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Message):
            if value.is_a(_LISTENER, _CLUSTER, _TABLE, MANAGER) or (
                value.is_a(_EXTENSION) and root.is_a("ConfigDump")
            ):
                yield value
            else:
                waiting += [one for name, one in value.fields.items() if name not in skip][::-1]
        elif isinstance(value, list):
            waiting += reversed(value)
        elif isinstance(value, dict):
            waiting += reversed(value.values())
