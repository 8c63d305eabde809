"""Rules on filter chains: whether the PDP is asked, for every request, and last of all."""

from collections.abc import Iterator
from typing import Final

from authz_server.core.request import SECURITY_HEADERS
from authz_server.envoy_config.lint.configuration import (
    EXT_AUTHZ,
    Chain,
    Configuration,
    Filter,
    HttpChain,
    listens_locally,
)
from authz_server.envoy_config.lint.message import At, Message
from authz_server.envoy_config.lint.rule import ERROR, WARNING, Rule, each

_HTTP: Final = "envoy.extensions.filters.http."

# Behind the check these can give the upstream another path, host, body or route than was judged.
# Some do so by configuration alone; a script or a service does what it likes.
_CHANGING: Final = frozenset(
    {
        "ai_protocol_manager",
        "aws_lambda",
        "composite",
        "connect_grpc_bridge",
        "decompressor",
        "dynamic_modules",
        "ext_proc",
        "filter_chain",
        "grpc_http1_bridge",
        "grpc_http1_reverse_bridge",
        "grpc_json_reverse_transcoder",
        "grpc_json_transcoder",
        "grpc_web",
        "ip_tagging",
        "lua",
        "mcp_json_rest_bridge",
        "mcp_router",
        "on_demand",
        "proto_api_scrubber",
        "transform",
        "wasm",
    }
)
# These let the request alone, or end it, or add what the upstream proves Envoy's own identity with.
_HARMLESS: Final = frozenset(
    {
        "a2a",
        "adaptive_concurrency",
        "admission_control",
        "alternate_protocols_cache",
        "api_key_auth",
        "aws_eventstream_parser",
        "aws_request_signing",
        "bandwidth_limit",
        "bandwidth_share",
        "basic_auth",
        "body_size_limit",
        "buffer",
        "cache",
        "cache_v2",
        "cdn_loop",
        "compressor",
        "cors",
        "credential_injector",
        "csrf",
        "custom_response",
        "dynamic_forward_proxy",
        "ext_authz",
        "fault",
        "file_system_buffer",
        "gcp_authn",
        "geoip",
        "grpc_field_extraction",
        "grpc_stats",
        "health_check",
        "json_to_metadata",
        "local_ratelimit",
        "mcp",
        "oauth2",
        "original_src",
        "proto_message_extraction",
        "rate_limit_quota",
        "ratelimit",
        "rbac",
        "router",
        "set_metadata",
        "sse_to_metadata",
        "stateful_session",
        "tap",
        "thrift_to_metadata",
        "upstream_codec",
    }
)
# These add headers or metadata, and choose the route anew if they are told to.
_RECONSIDERING: Final = frozenset({"header_to_metadata", "jwt_authn"})
# These answer by themselves what they have at hand.
_ANSWERING: Final = (
    "cache.v3.CacheConfig",
    "cache_v2.v3.CacheV2Config",
    "file_server.v3.FileServer",
)


_UDP_QUESTION: Final = ("udp_proxy.session.ext_authz.v3.FilterConfig",)


def changes_requests(settings: Message) -> bool | None:
    """Tell whether a filter may change what was judged; None where that is not known."""
    if not settings.type.startswith(_HTTP):
        return None
    name = settings.type.removeprefix(_HTTP).partition(".")[0]
    if name == "header_mutation":
        return _mutates(settings)
    if name in _RECONSIDERING:
        return any(one.flag("clear_route_cache") for one in settings.walk())
    return True if name in _CHANGING else False if name in _HARMLESS else None


def _mutates(settings: Message) -> bool:
    """Tell whether a header mutation touches the query, or a header that counts.

    Path, method and host it cannot change: Envoy refuses such a configuration.
    """
    mutations = settings.message("mutations")
    if mutations is None:
        return False
    if mutations.messages("query_parameter_mutations"):
        return True
    for one in mutations.messages("request_mutations"):
        header = one.inside("append", "header")
        name = header.text("key") if header is not None else one.text("remove")
        if one.has("remove_on_match") or name.lower() in SECURITY_HEADERS:
            return True
    return False


# --- is there a question ------------------------------------------------------------------------


def _unguarded(configuration: Configuration) -> Iterator[tuple[Chain | HttpChain, At]]:
    """Yield every chain to an upstream in which nobody is asked, outbound ones included."""
    for http in configuration.http:
        if http.leads_somewhere and not http.questions:
            yield http, http.manager.at("http_filters")
    for chain in configuration.chains:
        if chain.ends_elsewhere and not chain.question:
            yield chain, chain.message.at("filters")
    for chain in configuration.datagrams:
        if not any(one.is_a(*_UDP_QUESTION) for one in chain.message.walk()):
            yield chain, chain.message.at()


def _listener_of(chain: Chain | HttpChain) -> Message | None:
    return (chain.chain if isinstance(chain, HttpChain) else chain).listener


def _second_doors(configuration: Configuration) -> Iterator[tuple[Chain | HttpChain, At, str]]:
    """Yield the unguarded chains that lead to what a guarded one protects, and its name."""
    names: set[str] = set()
    for asking in configuration.asking:
        names |= configuration.targets(asking)
    protected = configuration.destinations(names)
    for chain, at in _unguarded(configuration):
        shared = protected & configuration.destinations(configuration.targets(chain))
        if shared:
            yield chain, at, min(shared)


def _is_outbound(listener: Message | None) -> bool:
    """Tell whether a listener is for workloads on this machine to go out through.

    Who receives asks: the enforcement point of an outbound call is in front of what is called.
    """
    if listener is None or listener.text("traffic_direction") != "OUTBOUND":
        return False
    return listens_locally(listener) or listener.flag("bind_to_port") is False


def _no_question(configuration: Configuration, *, http: bool) -> Iterator[At]:
    doors = {id(chain) for chain, _, _ in _second_doors(configuration)}
    for chain, at in _unguarded(configuration):
        fits = isinstance(chain, HttpChain) is http
        if fits and id(chain) not in doors and not _is_outbound(_listener_of(chain)):
            yield at


def _bypasses(configuration: Configuration) -> Iterator[At]:
    for _, at, shared in _second_doors(configuration):
        yield At(at.source, at.path, at.place, f"`{shared}`")


# --- is it the last thing before the router -------------------------------------------------------


def _behind(chain: HttpChain) -> list[Filter]:
    """Return the filters behind the last question."""
    places = [n for n, one in enumerate(chain.filters) if one.is_a(EXT_AUTHZ)]
    return [one for one in chain.filters[places[-1] + 1 :] if one.settings is not None]


def _changed_behind(chain: HttpChain) -> Iterator[At]:
    for one in _behind(chain):
        assert one.settings is not None
        if changes_requests(one.settings):
            yield one.entry.at(note=f"`{one.name}`")
        for setting in _of_routes(chain, one.name):
            if changes_requests(setting):
                yield setting.at(note=f"for `{one.name}`")


def _of_routes(chain: HttpChain, name: str) -> Iterator[Message]:
    """Yield what routes set for the filter called `name`."""
    for table in chain.tables:
        for level in table.walk():
            setting = level.map("typed_per_filter_config").get(name)
            if isinstance(setting, Message):
                yield setting


def _unknown_behind(chain: HttpChain) -> Iterator[At]:
    for one in _behind(chain):
        assert one.settings is not None
        if changes_requests(one.settings) is None:
            yield one.entry.at(note=f"`{one.name}`")


def _behind_router(chain: HttpChain) -> Iterator[At]:
    ended = False
    for one in chain.filters:
        if ended and one.is_a(EXT_AUTHZ):
            yield one.entry.at()
        ended |= one.is_a("router.v3.Router")


def _answers_before(chain: HttpChain) -> Iterator[At]:
    for one in chain.filters:
        if one.is_a(EXT_AUTHZ):
            return
        if one.is_a(*_ANSWERING):
            yield one.entry.at(note=f"`{one.name}`")


def _inside_another(configuration: Configuration) -> Iterator[At]:
    for chain in configuration.http:
        for one in chain.filters:
            if one.settings is None or one.is_a(EXT_AUTHZ):
                continue
            for nested in one.settings.all(EXT_AUTHZ):
                yield nested.at(note=f"inside `{one.name}`")


def _optional(configuration: Configuration) -> Iterator[At]:
    """Find an entry that Envoy may leave out, also where that is why lint cannot read it."""
    for chain in configuration.http:
        for one in chain.filters:
            named = "ext_authz" in one.name and (one.settings is None or not one.settings.known)
            if one.entry.flag("is_optional") and (one.is_a(EXT_AUTHZ) or named):
                yield one.entry.at("is_optional")


def _left_disabled(chain: HttpChain) -> Iterator[At]:
    """Find what stays unchecked: a disabled filter runs where a route has settings for it."""
    if not all(one.entry.flag("disabled") for one in chain.questions):
        return
    names = [one.name for one in chain.questions]
    if not chain.complete:
        yield chain.questions[-1].entry.at("disabled", "routes are not known")
    for routed in chain.routed():
        if not any(routed.sets(name) for name in names):
            yield routed.route.at(note="not for this route")


def _upgrades_without(chain: HttpChain) -> Iterator[At]:
    for upgrade in chain.manager.messages("upgrade_configs"):
        own = upgrade.messages("filters")
        if own and not any(True for one in own for _ in one.all(EXT_AUTHZ)):
            yield upgrade.at("filters", f"`{upgrade.text('upgrade_type')}`")


def _upstream_filters(configuration: Configuration) -> Iterator[At]:
    holders = []
    for chain in configuration.guarded:
        for name in configuration.targets(chain):
            cluster = configuration.clusters.get(name)
            if cluster is not None:
                options = cluster.map("typed_extension_protocol_options").values()
                holders += [(one, "http_filters") for one in options if isinstance(one, Message)]
        routers = [one for one in chain.filters if one.is_a("router.v3.Router")]
        holders += [(one.settings, "upstream_http_filters") for one in routers if one.settings]
    seen: set[int] = set()
    for holder, field in holders:
        for entry in holder.messages(field):
            settings = entry.message("typed_config")
            if settings is not None and id(entry) not in seen and changes_requests(settings):
                seen.add(id(entry))
                yield entry.at(note=f"`{entry.text('name')}`")


def _guarded(configuration: Configuration) -> list[HttpChain]:
    return configuration.guarded


RULES: Final = (
    Rule(
        id="EA101",
        severity=ERROR,
        title="nobody is asked: HTTP goes to an upstream without ext_authz",
        why="Whoever reaches this filter chain reaches the upstream, whatever policy says.",
        fix="put `envoy.filters.http.ext_authz` directly in front of the router; a listener for "
        "local workloads to call out through says `traffic_direction: OUTBOUND`",
        judge=lambda configuration: _no_question(configuration, http=True),
    ),
    Rule(
        id="EA102",
        severity=ERROR,
        title="nobody is asked: connections go to an upstream without ext_authz",
        why="Whoever connects to this filter chain reaches the upstream, whatever policy says.",
        fix="put `envoy.filters.network.ext_authz` in front of the filter that connects",
        judge=lambda configuration: _no_question(configuration, http=False),
    ),
    Rule(
        id="EA103",
        severity=ERROR,
        title="a second way to a protected upstream, on which nobody is asked",
        why="The check in front of one listener is worth nothing where another leads to the same "
        "upstream without it.",
        fix="put ext_authz into this filter chain too, or take the chain away",
        judge=_bypasses,
    ),
    Rule(
        id="EA104",
        severity=ERROR,
        title="a filter behind ext_authz may change what was judged",
        why="The upstream gets the path, host, body or route that this filter makes, not the one "
        "that the PDP allowed.",
        fix="move the filter in front of ext_authz, so that the router is all that follows",
        judge=each(_guarded, _changed_behind),
    ),
    Rule(
        id="EA105",
        severity=WARNING,
        title="a filter behind ext_authz of which it is not known what it changes",
        why="If it changes path, host, body or route, the upstream gets another request than the "
        "one that was judged.",
        fix="move the filter in front of ext_authz, or make sure that it changes no request",
        judge=each(_guarded, _unknown_behind),
    ),
    Rule(
        id="EA106",
        severity=ERROR,
        title="ext_authz stands behind the router",
        why="The router ends the chain: what is behind it is never run, and Envoy refuses the "
        "configuration.",
        fix="move ext_authz in front of the router",
        judge=each(_guarded, _behind_router),
    ),
    Rule(
        id="EA107",
        severity=ERROR,
        title="a filter in front of ext_authz answers by itself",
        why="What it has stored for one caller it hands to the next without a check.",
        fix="move the filter behind ext_authz",
        judge=each(_guarded, _answers_before),
    ),
    Rule(
        id="EA108",
        severity=ERROR,
        title="ext_authz is disabled, and not every route enables it",
        why="Requests on every route that has no settings for the filter pass unchecked.",
        fix="leave `disabled` out of the filter's entry",
        judge=each(_guarded, _left_disabled),
    ),
    Rule(
        id="EA109",
        severity=ERROR,
        title="ext_authz is optional",
        why="An Envoy that was built without the filter, or does not know the type that is "
        "written, leaves it out without a word and forwards everything.",
        fix="leave `is_optional` out of the filter's entry",
        judge=_optional,
    ),
    Rule(
        id="EA110",
        severity=ERROR,
        title="ext_authz stands inside another filter, which decides whether it runs",
        why="A request that the surrounding filter matches otherwise is forwarded unchecked.",
        fix="make ext_authz a filter of the chain itself, without a condition",
        judge=_inside_another,
    ),
    Rule(
        id="EA111",
        severity=ERROR,
        title="an upgrade has a filter chain of its own, without ext_authz",
        why="A request that asks for this upgrade is handled by that chain instead, unchecked.",
        fix="leave `filters` out of the upgrade, so that it takes the chain of all requests",
        judge=each(_guarded, _upgrades_without),
    ),
    Rule(
        id="EA112",
        severity=ERROR,
        title="a filter on the way to the upstream may change what was judged",
        why="Filters of a cluster or of the router run after the check, once the route is chosen.",
        fix="take it out of `http_filters` of the cluster's `HttpProtocolOptions`, or of the "
        "router's `upstream_http_filters`",
        judge=_upstream_filters,
    ),
)
