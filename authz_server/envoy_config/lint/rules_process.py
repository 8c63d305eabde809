"""Rules on what is one for a whole Envoy: its admin interface, run-time switches and bounds."""

from collections.abc import Iterator
from typing import Final

from authz_server.envoy_config.lint.configuration import Configuration, addresses, is_local
from authz_server.envoy_config.lint.message import At, Free, Message
from authz_server.envoy_config.lint.rule import ERROR, WARNING, Rule, each

_GUARDS: Final = ("envoy.reloadable_features.", "envoy.restart_features.")
_CONNECTIONS: Final = "downstream_connections.v3.DownstreamConnectionsConfig"
_OTHERS: Final = 0o077  # the permissions of everybody but the owner


def _bootstraps(configuration: Configuration) -> list[Message]:
    return list(configuration.bootstraps)


def _admin(bootstrap: Message) -> Iterator[tuple[str, At]]:
    admin = bootstrap.message("admin")
    if admin is not None:
        yield from addresses(admin.messages("address"))


def _admin_on_network(bootstrap: Message) -> Iterator[At]:
    for address, at in _admin(bootstrap):
        if not is_local(address):
            yield at


def _admin_on_loopback(bootstrap: Message) -> Iterator[At]:
    for address, at in _admin(bootstrap):
        if is_local(address) and at.path[-1] == "address":
            yield at
    pipe = bootstrap.inside("admin", "address", "pipe")
    if pipe is not None and int(pipe.number("mode") or 0) & _OTHERS:
        yield pipe.at("mode")


def _layers(bootstrap: Message) -> list[Message]:
    runtime = bootstrap.message("layered_runtime")
    return runtime.messages("layers") if runtime is not None else []


def _keys(configuration: Configuration) -> set[str]:
    """Return the run-time keys by which a check can be switched off."""
    holders = [*configuration.questions, *configuration.network_questions]
    names = ("filter_enabled", "deny_at_disable")
    found = (one.message(name) for one in holders for name in names)
    return {one.text("runtime_key") for one in found if one is not None} - {""}


def _switched_off(configuration: Configuration) -> Iterator[At]:
    keys = _keys(configuration)
    for bootstrap in configuration.bootstraps:
        for layer in _layers(bootstrap):
            for key, value, at in _static(layer):
                if key in keys and value is not True:
                    yield at


def _guards_off(bootstrap: Message) -> Iterator[At]:
    for layer in _layers(bootstrap):
        for key, value, at in _static(layer):
            if key.startswith(_GUARDS) and value is False:
                yield at


def _static(layer: Message) -> Iterator[tuple[str, object, At]]:
    """Yield what a static layer sets, its nested keys joined by dots."""
    free = layer.fields.get("static_layer")
    if not isinstance(free, Free):
        return
    start = layer.at("static_layer")
    waiting = [("", free.raw, start.path)]
    while waiting:
        prefix, raw, path = waiting.pop()
        if not isinstance(raw.value, dict):
            yield prefix, raw.value, At(layer.source, path, raw.at, f"`{prefix}`")
            continue
        for key, inner in raw.value.items():
            waiting.append((f"{prefix}.{key}" if prefix else key, inner, (*path, key)))


def _switchable(bootstrap: Message) -> Iterator[At]:
    for layer in _layers(bootstrap):
        for name in ("admin_layer", "disk_layer", "rtds_layer"):
            if layer.has(name):
                yield layer.at(name)


def _unbounded(bootstrap: Message) -> Iterator[At]:
    listeners = bootstrap.inside("static_resources")
    dynamic = bootstrap.inside("dynamic_resources", "lds_config")
    if dynamic is None and (listeners is None or not listeners.messages("listeners")):
        return
    manager = bootstrap.message("overload_manager")
    if manager is None or not any(manager.all(_CONNECTIONS)):
        yield bootstrap.at("overload_manager")


RULES: Final = (
    Rule(
        id="EA801",
        severity=ERROR,
        title="the admin interface can be reached over a network",
        why="Whoever reaches it reads every certificate and route, changes run-time switches and "
        "stops the proxy.",
        fix="`admin: {address: {pipe: {path: /run/envoy/admin.sock, mode: 384}}}`",
        judge=each(_bootstraps, _admin_on_network),
    ),
    Rule(
        id="EA802",
        severity=WARNING,
        title="the admin interface can be reached by every account of this machine",
        why="A workload beside the proxy changes run-time switches, drains listeners and stops it.",
        fix="`admin: {address: {pipe: {path: /run/envoy/admin.sock, mode: 384}}}`",
        judge=each(_bootstraps, _admin_on_loopback),
    ),
    Rule(
        id="EA803",
        severity=ERROR,
        title="a run-time value switches the check off",
        why="It overrides what the filter's configuration says.",
        fix="take the key out of `static_layer`",
        judge=_switched_off,
    ),
    Rule(
        id="EA804",
        severity=WARNING,
        title="a guard of Envoy's is switched off",
        why="Most of these flags are there because the behaviour before them was a weakness.",
        fix="take the key out of `static_layer`",
        judge=each(_bootstraps, _guards_off),
    ),
    Rule(
        id="EA805",
        severity=WARNING,
        title="run-time switches can be changed while Envoy runs",
        why="What this file says of them is then not what holds.",
        fix="only layers with `static_layer`",
        judge=each(_bootstraps, _switchable),
    ),
    Rule(
        id="EA806",
        severity=WARNING,
        title="nothing bounds how many connections are held open",
        why="One client opens connections until memory or descriptors run out, for everybody.",
        fix="`overload_manager` with the resource monitor "
        "`envoy.resource_monitors.global_downstream_max_connections`",
        judge=each(_bootstraps, _unbounded),
    ),
)
