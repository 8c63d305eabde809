"""Rules on routes: whether they are checked, what the PDP learns of them, what they change."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from authz_server.core.attributes import Protocol
from authz_server.core.errors import RequestFault
from authz_server.core.protocols.http import TARGET_OVERRIDES
from authz_server.core.request import SECURITY_HEADERS, RouteContext
from authz_server.envoy_config.lint.configuration import (
    PER_ROUTE,
    REDACTED,
    Configuration,
    Routed,
    unique,
)
from authz_server.envoy_config.lint.message import At, Message
from authz_server.envoy_config.lint.rule import (
    ERROR,
    WARNING,
    Rule,
    each,
    is_set,
    is_true,
)

_PATH_REWRITES: Final = ("prefix_rewrite", "regex_rewrite", "path_rewrite_policy", "path_rewrite")
_CHOSEN_HOSTS: Final = ("host_rewrite_header", "host_rewrite_path_regex")
_FIXED_HOSTS: Final = ("host_rewrite_literal", "auto_host_rewrite", "host_rewrite")


def _per_route(configuration: Configuration) -> list[Message]:
    return configuration.per_route


def _checks(configuration: Configuration) -> list[Message]:
    return [one for route in configuration.per_route for one in route.messages("check_settings")]


def _keeps_bodies_back(checks: Message) -> Iterable[At]:
    """Find the flag where a body could be judged: a client that streams over gRPC has no end."""
    if checks.map("context_extensions").get("protocol") == Protocol.GRPC:
        return []
    return is_true("disable_request_body_buffering")(checks)


def _actions(configuration: Configuration) -> list[Message]:
    return unique(one for level in configuration.levels for one in level.messages("route"))


def _levels(configuration: Configuration) -> list[Message]:
    return configuration.levels


def _names(configuration: Configuration) -> set[str]:
    """Return the names under which routes configure a filter that asks."""
    names = {one.name for chain in configuration.guarded for one in chain.questions}
    return names or {"envoy.filters.http.ext_authz"}


def _wrapped(configuration: Configuration) -> Iterator[Message]:
    """Yield every `FilterConfig` that a route has for a filter that asks."""
    names = _names(configuration)
    for level in configuration.levels:
        for name, value in level.map("typed_per_filter_config").items():
            if name in names and isinstance(value, Message) and value.is_a("v3.FilterConfig"):
                yield value


def _under_no_filter(configuration: Configuration) -> Iterator[At]:
    names = _names(configuration)
    for level in configuration.levels:
        for name, value in level.map("typed_per_filter_config").items():
            if name not in names and isinstance(value, Message) and any(value.all(PER_ROUTE)):
                yield value.at(note=f"no filter is called `{name}`")


# --- what the PDP learns ------------------------------------------------------------------------


def _contexts(configuration: Configuration) -> Iterator[tuple[Routed, dict[str, str] | None]]:
    for routed in configuration.routed:
        yield routed, routed.extensions(routed.chain.questions[-1].name)


def _without_context(configuration: Configuration) -> Iterator[At]:
    for routed, extensions in _contexts(configuration):
        if extensions is None:
            yield routed.route.at()


def _not_understood(configuration: Configuration) -> Iterator[At]:
    for routed, extensions in _contexts(configuration):
        try:
            RouteContext.parse(_readable(extensions or {}))
        except RequestFault as fault:
            yield _where(routed).at("context_extensions", fault.detail)


def _readable(extensions: Mapping[str, str]) -> dict[str, str]:
    """Return `extensions` without the values that a dump hides; of those the keys are judged."""
    return {key: value for key, value in extensions.items() if value != REDACTED or _strange(key)}


def _strange(key: str) -> bool:
    """Tell whether no route may have `key`, whatever its value."""
    try:
        RouteContext.parse({key: ""})
    except RequestFault as fault:
        return "unknown context extension" in fault.detail
    return False


def _where(routed: Routed) -> Message:
    """Return the innermost `CheckSettings` that gives `routed` context extensions."""
    for level in reversed(routed.levels):
        for value in level.map("typed_per_filter_config").values():
            for checks in value.all("CheckSettings") if isinstance(value, Message) else ():
                if checks.has("context_extensions"):
                    return checks
    return routed.route


def _lacking(configuration: Configuration, key: str) -> Iterator[At]:
    for routed, extensions in _contexts(configuration):
        if extensions is not None and not extensions.get(key):
            yield _where(routed).at("context_extensions")


def _not_buffered(configuration: Configuration) -> Iterator[At]:
    """Find `body: whole` where the filter buffers no bodies, or the route has it not do so."""
    for routed, extensions in _contexts(configuration):
        settings = routed.chain.questions[-1].settings
        if extensions is None or extensions.get("body") != "whole" or settings is None:
            continue
        checks = _where(routed)
        if not settings.has("with_request_body") and not checks.has("with_request_body"):
            yield checks.at("context_extensions", "no `with_request_body`")
        elif checks.flag("disable_request_body_buffering"):
            yield checks.at("context_extensions", "`disable_request_body_buffering`")


def _no_delegation(configuration: Configuration) -> Iterator[At]:
    for routed, extensions in _contexts(configuration):
        if extensions is not None and extensions.get("require_delegation") not in {
            "true",
            REDACTED,
        }:
            yield _where(routed).at("context_extensions")


def _other_service(checks: Message) -> Iterator[At]:
    for name in ("grpc_service", "http_service"):
        if checks.has(name):
            yield checks.at(name)


# --- what they change ---------------------------------------------------------------------------


def _rewritten(names: tuple[str, ...], action: Message) -> Iterator[At]:
    for name in names:
        if action.fields.get(name) not in (None, False, ""):
            yield action.at(name)


def _plugged(action: Message) -> Iterator[At]:
    for name in ("cluster_specifier_plugin", "inline_cluster_specifier_plugin"):
        if action.has(name):
            yield action.at(name)


def _guarded_headers(level: Message) -> Iterator[At]:
    for option in level.messages("request_headers_to_add"):
        header = option.message("header")
        name = header.text("key").lower() if header is not None else ""
        if name in SECURITY_HEADERS | TARGET_OVERRIDES:
            yield option.at(note=f"`{name}`")
    for name in level.texts("request_headers_to_remove"):
        if name.lower() in SECURITY_HEADERS:
            yield level.at("request_headers_to_remove", f"`{name}`")


def _any_host(level: Message) -> Iterator[At]:
    if "*" in level.texts("domains"):
        yield level.at("domains")


def _mirrors(level: Message) -> Iterator[At]:
    if level.messages("request_mirror_policies"):
        yield level.at("request_mirror_policies")


def _mirroring(configuration: Configuration) -> list[Message]:
    return [*configuration.levels, *_actions(configuration)]


def _upgrades(action: Message) -> Iterator[At]:
    for upgrade in action.messages("upgrade_configs"):
        kind = upgrade.text("upgrade_type")
        if upgrade.flag("enabled") is not False and kind.upper() != "CONNECT":
            yield upgrade.at("upgrade_type", f"`{kind}`")


def _client_destinations(configuration: Configuration) -> Iterator[At]:
    for chain in configuration.guarded:
        for name in configuration.targets(chain):
            cluster = configuration.clusters.get(name)
            if cluster is None:
                continue
            for options in cluster.messages("original_dst_lb_config"):
                if options.flag("use_http_header"):
                    yield options.at("use_http_header")


def _open_ended(configuration: Configuration) -> Iterator[At]:
    for chain in configuration.asking:
        for name in sorted(configuration.targets(chain)):
            cluster = configuration.clusters.get(name)
            if cluster is None:
                continue
            proxies = cluster.all("dynamic_forward_proxy.v3.ClusterConfig")
            if cluster.text("type") == "ORIGINAL_DST" or any(proxies):
                yield cluster.at("type" if cluster.has("type") else "cluster_type")


RULES: Final = (
    Rule(
        id="EA301",
        severity=ERROR,
        title="a route is not checked",
        why="Every request that takes this route passes; and a client chooses its route, by "
        "spelling the path as the router reads it and the upstream does not.",
        fix="leave `disabled` out; allow the path by a rule of the policy instead",
        judge=each(_per_route, is_true("disabled")),
    ),
    Rule(
        id="EA302",
        severity=ERROR,
        title="a route switches ext_authz off",
        why="Every request that takes this route passes unchecked.",
        fix="leave `disabled` out of the `FilterConfig`; allow the path by a rule of the policy",
        judge=each(_wrapped, is_true("disabled")),
    ),
    Rule(
        id="EA303",
        severity=WARNING,
        title="settings of a route are optional",
        why="Where Envoy cannot read them it leaves them out: the check then lacks what they say "
        "of the route.",
        fix="leave `is_optional` out of the `FilterConfig`",
        judge=each(_wrapped, is_true("is_optional")),
    ),
    Rule(
        id="EA304",
        severity=ERROR,
        title="settings of a route belong to no filter of its chain",
        why="They are found by the name of the filter's entry: under another name they are "
        "ignored, and the check lacks what they say of the route.",
        fix="use as key the `name` that the ext_authz entry has in `http_filters`",
        judge=_under_no_filter,
    ),
    Rule(
        id="EA305",
        severity=ERROR,
        title="a route keeps its bodies from the PDP",
        why="Two requests that differ in their bodies get one verdict; a request in JSON-RPC is "
        "denied.",
        fix="leave `disable_request_body_buffering` out, but for gRPC methods whose client streams",
        judge=each(_checks, _keeps_bodies_back),
    ),
    Rule(
        id="EA306",
        severity=WARNING,
        title="a route asks another service than the filter does",
        why="Its verdicts are not those of the PDP in front of everything else, and are not in the "
        "same ledger.",
        fix="leave `grpc_service` and `http_service` out of `check_settings`",
        judge=each(_checks, _other_service),
    ),
    Rule(
        id="EA310",
        severity=WARNING,
        title="a route tells the PDP nothing of itself",
        why="It is judged by the policy bundle `default`, without resource, audience or workload, "
        "and no delegation is required unless the server says so.",
        fix="`context_extensions` in the `check_settings` of the virtual host or route",
        judge=_without_context,
    ),
    Rule(
        id="EA311",
        severity=ERROR,
        title="a route's context is not understood",
        why="The PDP denies every request of the route: a misspelt key must not switch a check "
        "off.",
        fix="keys `bundle`, `resource`, `audience`, `workload_id`, `protocol`, "
        "`require_delegation`, `strip_delegation`, `body`, `label.<name>`",
        judge=_not_understood,
    ),
    Rule(
        id="EA312",
        severity=WARNING,
        title="a route names no policy bundle",
        why="It is judged by the bundle `default`, whatever stands behind it.",
        fix="`bundle: <name>` in `context_extensions`",
        judge=lambda configuration: _lacking(configuration, "bundle"),
    ),
    Rule(
        id="EA313",
        severity=WARNING,
        title="a route requires no delegation",
        why="A caller that presents none acts by its own right alone, if the server's "
        "configuration does not require one.",
        fix='`require_delegation: "true"` in `context_extensions`',
        judge=_no_delegation,
    ),
    Rule(
        id="EA314",
        severity=WARNING,
        title="a route names no audience",
        why="A delegation with links is denied here: none is for an audience that nobody names.",
        fix="`audience: <URL of the workload>` in `context_extensions`",
        judge=lambda configuration: _lacking(configuration, "audience"),
    ),
    Rule(
        id="EA315",
        severity=WARNING,
        title="a route does not say which workload stands behind it",
        why="A delegation that is handed over to the workload itself is denied: the PDP cannot "
        "tell that it is the delegate.",
        fix="`workload_id: <SPIFFE ID>` in `context_extensions`",
        judge=lambda configuration: _lacking(configuration, "workload_id"),
    ),
    Rule(
        id="EA316",
        severity=ERROR,
        title="a route says that bodies are buffered, and they are not",
        why="The PDP takes a request whose body it was not shown for one that has none: an "
        "approval covers any body, and no rule sees what is in it.",
        fix="leave `body: whole` out of `context_extensions`, or `with_request_body` in the filter",
        judge=_not_buffered,
    ),
    Rule(
        id="EA320",
        severity=ERROR,
        title="the path is rewritten after it was judged",
        why="Rules are written for one path, and the upstream serves another.",
        fix="let the upstream serve the path that callers use",
        judge=each(_actions, lambda action: _rewritten(_PATH_REWRITES, action)),
    ),
    Rule(
        id="EA321",
        severity=ERROR,
        title="a client chooses the host that the upstream sees",
        why="A header or the path, both the client's, replaces the host that was judged.",
        fix="leave the rewrite out, or write a host: `host_rewrite_literal`",
        judge=each(_actions, lambda action: _rewritten(_CHOSEN_HOSTS, action)),
    ),
    Rule(
        id="EA322",
        severity=WARNING,
        title="the host is rewritten after it was judged",
        why="Rules are written for one host, and the upstream serves another.",
        fix="let the upstream serve the host that callers use",
        judge=each(_actions, lambda action: _rewritten(_FIXED_HOSTS, action)),
    ),
    Rule(
        id="EA323",
        severity=ERROR,
        title="a client chooses the cluster",
        why="The value of a request header names where the request goes: to any cluster that this "
        "Envoy has.",
        fix="`cluster: <name>`",
        judge=each(_actions, is_set("cluster_header")),
    ),
    Rule(
        id="EA324",
        severity=ERROR,
        title="headers that count are changed after the check",
        why="The upstream acts on a header that was never judged, or misses one that was.",
        fix="take the header out of `request_headers_to_add` and `request_headers_to_remove`",
        judge=each(_levels, _guarded_headers),
    ),
    Rule(
        id="EA325",
        severity=WARNING,
        title="any host is served",
        why="An upstream that tells tenants or services apart by host is reached under names that "
        "no rule is about.",
        fix="`domains: [<the names that callers use>]`",
        judge=each(_levels, _any_host),
    ),
    Rule(
        id="EA326",
        severity=WARNING,
        title="requests are copied to another cluster",
        why="A caller that was allowed one workload has its request, credentials included, sent to "
        "a second that nobody asked about.",
        fix="leave `request_mirror_policies` out",
        judge=each(_mirroring, _mirrors),
    ),
    Rule(
        id="EA327",
        severity=WARNING,
        title="a route lets a connection become something else",
        why="Only the first request is checked; what is sent on the upgraded connection is not.",
        fix="leave `upgrade_configs` out, or set `enabled: false`",
        judge=each(_actions, _upgrades),
    ),
    Rule(
        id="EA328",
        severity=ERROR,
        title="a client chooses the address",
        why="`x-envoy-original-dst-host` of a request names where it goes: to anything that this "
        "Envoy can reach.",
        fix="leave `use_http_header` out of the cluster's `original_dst_lb_config`",
        judge=_client_destinations,
    ),
    Rule(
        id="EA329",
        severity=WARNING,
        title="the upstream is wherever the client wanted to go",
        why="Of a cluster of this type the address comes from the connection or the host: ports "
        "and hosts that no rule is about are reached too.",
        fix="a cluster with the workload's own address: `type: STATIC`, `STRICT_DNS` or `EDS`",
        judge=_open_ended,
    ),
    Rule(
        id="EA330",
        severity=WARNING,
        title="a plugin chooses the cluster",
        why="Where the request goes is decided by code that lint does not read, from what the "
        "client sent.",
        fix="`cluster: <name>`",
        judge=each(_actions, _plugged),
    ),
)
