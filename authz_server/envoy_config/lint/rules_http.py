"""Rules on the HTTP connection manager: one reading of each request, and bounds on each caller."""

from collections.abc import Callable, Iterator
from typing import Final

from authz_server.envoy_config.lint.configuration import Configuration, HttpChain, unique
from authz_server.envoy_config.lint.message import At, Message
from authz_server.envoy_config.lint.rule import (
    ERROR,
    WARNING,
    Rule,
    each,
    exceeds,
    is_not_true,
    is_one_of,
    is_set,
    is_true,
)

# What a PDP accepts leaves room above Envoy's default of 60 and the 48 that we render.
HEADERS_KB_MAX: Final = 96


def _managers(configuration: Configuration) -> list[Message]:
    return unique(chain.manager for chain in configuration.guarded)


def _guarded(configuration: Configuration) -> list[HttpChain]:
    return configuration.guarded


def _part(name: str) -> Callable[[Configuration], list[Message]]:
    """Return a selector of one message of every manager."""

    def select(configuration: Configuration) -> list[Message]:
        found = (one.message(name) for one in _managers(configuration))
        return [one for one in found if one is not None]

    return select


def _slashes(manager: Message) -> Iterator[At]:
    fine = {"REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD"}
    if manager.text("path_with_escaped_slashes_action") not in fine:
        yield manager.at("path_with_escaped_slashes_action")


def _ports(chain: HttpChain) -> Iterator[At]:
    manager = chain.manager
    stripped = manager.flag("strip_any_host_port") or manager.flag("strip_matching_host_port")
    if not stripped and not chain.only_tunnels:
        yield manager.at("strip_any_host_port")


def _underscores(manager: Message) -> Iterator[At]:
    options = manager.message("common_http_protocol_options")
    action = options.text("headers_with_underscores_action") if options is not None else ""
    if action not in {"REJECT_REQUEST", "DROP_HEADER"}:
        holder = options if options is not None else manager
        yield holder.at("headers_with_underscores_action")


def _trusted_hops(manager: Message) -> Iterator[At]:
    if manager.number("xff_num_trusted_hops"):
        yield manager.at("xff_num_trusted_hops")
    if manager.messages("original_ip_detection_extensions"):
        yield manager.at("original_ip_detection_extensions")


def _unnamed_certificate(manager: Message) -> Iterator[At]:
    mode = manager.text("forward_client_cert_details")
    details = manager.message("set_current_client_cert_details")
    if mode in {"SANITIZE_SET", "APPEND_FORWARD"} and not (details and details.flag("uri")):
        yield manager.at("set_current_client_cert_details")


def _upgrades(manager: Message) -> Iterator[At]:
    for upgrade in manager.messages("upgrade_configs"):
        kind = upgrade.text("upgrade_type")
        if upgrade.flag("enabled") is not False and kind.upper() != "CONNECT":
            yield upgrade.at("upgrade_type", f"`{kind}`")


def _connects(configuration: Configuration) -> Iterator[At]:
    for chain in configuration.guarded:
        routers = [one.settings for one in chain.filters if one.is_a("router.v3.Router")]
        if any(
            one is not None and one.flag("reject_connect_request_early_data") for one in routers
        ):
            continue
        upgrades = [*chain.manager.messages("upgrade_configs")]
        upgrades += [one for action in chain.actions for one in action.messages("upgrade_configs")]
        for upgrade in upgrades:
            connect = upgrade.text("upgrade_type").upper() in {"CONNECT", "CONNECT-UDP"}
            if connect and upgrade.flag("enabled") is not False:
                yield upgrade.at("upgrade_type")


def _extended_connect(manager: Message) -> Iterator[At]:
    wanted = {one.text("upgrade_type").upper() for one in manager.messages("upgrade_configs")}
    for name in ("http2_protocol_options", "http3_protocol_options"):
        options = manager.message(name)
        for flag in ("allow_connect", "allow_extended_connect"):
            if options is not None and options.flag(flag) and not wanted:
                yield options.at(flag)


def _no_age(manager: Message) -> Iterator[At]:
    options = manager.message("common_http_protocol_options")
    if options is None or not options.number("max_connection_duration"):
        yield (options or manager).at("max_connection_duration")


def _idle_for_ever(manager: Message) -> Iterator[At]:
    options = manager.message("common_http_protocol_options")
    if options is not None and options.number("idle_timeout") == 0:
        yield options.at("idle_timeout")
    if manager.number("stream_idle_timeout") == 0:
        yield manager.at("stream_idle_timeout")


def _forged_answers(manager: Message) -> Iterator[At]:
    """Find a manager that does not take `x-authz-*` off requests before anything reads them."""
    for extension in manager.messages("early_header_mutation_extensions"):
        for removal in extension.all("HeaderMutation.RemoveOnMatch", "HeaderMutation"):
            for matcher in removal.messages("key_matcher"):
                if matcher.text("prefix") and "x-authz-".startswith(matcher.text("prefix")):
                    return
    yield manager.at("early_header_mutation_extensions")


RULES: Final = (
    Rule(
        id="EA401",
        severity=ERROR,
        title="`.` and `..` in paths are not resolved",
        why="`/open/../closed` is judged, and routed, as something below `/open`; the upstream "
        "serves `/closed`.",
        fix="`normalize_path: true`",
        judge=each(_managers, is_not_true("normalize_path")),
    ),
    Rule(
        id="EA402",
        severity=ERROR,
        title="repeated slashes in paths are left",
        why="`//closed` is judged as another path than `/closed`; most upstreams serve one for the "
        "other.",
        fix="`merge_slashes: true`",
        judge=each(_managers, is_not_true("merge_slashes")),
    ),
    Rule(
        id="EA403",
        severity=ERROR,
        title="escaped slashes in paths are left",
        why="`/open%2f..%2fclosed` is judged as one segment below `/`; an upstream that decodes it "
        "serves `/closed`.",
        fix="`path_with_escaped_slashes_action: REJECT_REQUEST`",
        judge=each(_managers, _slashes),
    ),
    Rule(
        id="EA405",
        severity=WARNING,
        title="a port in the host is left",
        why="`crm.example:8443` is another host than `crm.example` to rules and routes, and the "
        "same to an upstream.",
        fix="`strip_any_host_port: true`",
        judge=each(_guarded, _ports),
    ),
    Rule(
        id="EA406",
        severity=WARNING,
        title="a dot behind the host is left",
        why="`crm.example.` is another host than `crm.example` to rules and routes, and the same "
        "to an upstream.",
        fix="`strip_trailing_host_dot: true`",
        judge=each(_managers, is_not_true("strip_trailing_host_dot")),
    ),
    Rule(
        id="EA407",
        severity=WARNING,
        title="header names with underscores are let through",
        why="Upstreams of the CGI family read `txn_token` and `txn-token` as one header; the PDP "
        "sees only the second.",
        fix="`common_http_protocol_options: {headers_with_underscores_action: REJECT_REQUEST}`",
        judge=each(_managers, _underscores),
    ),
    Rule(
        id="EA410",
        severity=ERROR,
        title="what clients say of where they come from is passed on",
        why="`x-forwarded-for` and `x-envoy-*` of a request reach the upstream as they came, "
        "`x-envoy-original-path` and `x-envoy-external-address` among them.",
        fix="`use_remote_address: true`",
        judge=each(_managers, is_not_true("use_remote_address")),
    ),
    Rule(
        id="EA411",
        severity=WARNING,
        title="the client's address is taken from what a request says",
        why="Unless exactly so many proxies of yours stand in front, a client writes the address "
        "that filters and the upstream take for its own.",
        fix="`xff_num_trusted_hops: 0`, and no `original_ip_detection_extensions`",
        judge=each(_managers, _trusted_hops),
    ),
    Rule(
        id="EA412",
        severity=ERROR,
        title="addresses are declared internal",
        why="Callers from there have their `x-envoy-*` headers believed, `x-envoy-original-path` "
        "among them; even an empty list makes loopback internal.",
        fix="leave `internal_address_config` out",
        judge=each(_managers, is_set("internal_address_config")),
    ),
    Rule(
        id="EA413",
        severity=ERROR,
        title="a caller's `x-forwarded-client-cert` is passed on as it came",
        why="Whoever connects writes there whom it wants to be taken for.",
        fix="`forward_client_cert_details: SANITIZE_SET`",
        judge=each(
            _managers,
            is_one_of("forward_client_cert_details", "FORWARD_ONLY", "ALWAYS_FORWARD_ONLY"),
        ),
    ),
    Rule(
        id="EA414",
        severity=WARNING,
        title="a caller's `x-forwarded-client-cert` is kept in front of Envoy's own",
        why="All elements but the last are the caller's word: right only where every caller is a "
        "proxy named in `identity.trusted_proxies`.",
        fix="`forward_client_cert_details: SANITIZE_SET`, unless callers come through such proxies",
        judge=each(_managers, is_one_of("forward_client_cert_details", "APPEND_FORWARD")),
    ),
    Rule(
        id="EA415",
        severity=WARNING,
        title="`x-forwarded-client-cert` names no SPIFFE ID",
        why="The workload behind, and a PDP further on, cannot tell who called.",
        fix="`set_current_client_cert_details: {uri: true}`",
        judge=each(_managers, _unnamed_certificate),
    ),
    Rule(
        id="EA416",
        severity=ERROR,
        title="a request decides what becomes of `x-forwarded-client-cert`",
        why="A client that finds what is matched has its own header passed on.",
        fix="leave `forward_client_cert_matcher` out; `forward_client_cert_details: SANITIZE_SET`",
        judge=each(_managers, is_set("forward_client_cert_matcher")),
    ),
    Rule(
        id="EA417",
        severity=WARNING,
        title="headers that only the PDP may set are taken from clients",
        why="A request with `x-authz-verdict` of its own reaches the workload with it, wherever "
        "the PDP does not set the same header.",
        fix="an `early_header_mutation_extensions` entry that removes the prefix `x-authz-`",
        judge=each(_managers, _forged_answers),
    ),
    Rule(
        id="EA420",
        severity=WARNING,
        title="connections may become something else",
        why="Only the first request is checked; what is sent on the upgraded connection is not.",
        fix="leave `upgrade_configs` out",
        judge=each(_managers, _upgrades),
    ),
    Rule(
        id="EA421",
        severity=WARNING,
        title="bytes behind a CONNECT are taken before the tunnel stands",
        why="A client that does not wait for the answer leaves bytes in a connection whose tunnel "
        "may be refused (CVE-2025-64763).",
        fix="`reject_connect_request_early_data: true` in the router",
        judge=_connects,
    ),
    Rule(
        id="EA422",
        severity=WARNING,
        title="CONNECT over HTTP/2 or HTTP/3 is let in, and nothing uses it",
        why="A CONNECT has no path: rules on paths do not see where it leads.",
        fix="`allow_connect: false`",
        judge=each(_managers, _extended_connect),
    ),
    Rule(
        id="EA423",
        severity=WARNING,
        title="HTTP/1.0 is accepted",
        why="Such a request needs no host: routes and rules are chosen by a default.",
        fix="`http_protocol_options: {accept_http_10: false}`",
        judge=each(_part("http_protocol_options"), is_true("accept_http_10")),
    ),
    Rule(
        id="EA424",
        severity=ERROR,
        title="a request may have a length and chunks",
        why="Envoy reads it by one, and an upstream that reads it by the other finds a second "
        "request in the body, which nobody judged.",
        fix="leave `allow_chunked_length` out",
        judge=each(_part("http_protocol_options"), is_true("allow_chunked_length")),
    ),
    Rule(
        id="EA425",
        severity=WARNING,
        title="a connection may live for ever",
        why="A certificate is proved when a connection begins: one that has expired, or was "
        "withdrawn, is used until it ends.",
        fix="`common_http_protocol_options: {max_connection_duration: 3600s}`",
        judge=each(_managers, _no_age),
    ),
    Rule(
        id="EA426",
        severity=WARNING,
        title="an idle connection or request is never ended",
        why="Clients that open many and say nothing take what others need.",
        fix="`idle_timeout: 300s`, `stream_idle_timeout: 300s`",
        judge=each(_managers, _idle_for_ever),
    ),
    Rule(
        id="EA427",
        severity=WARNING,
        title=f"headers of more than {HEADERS_KB_MAX} KiB are accepted",
        why="Every check carries all of them, in memory, to the PDP.",
        fix="`max_request_headers_kb: 48`",
        judge=each(_managers, exceeds("max_request_headers_kb", HEADERS_KB_MAX)),
    ),
)
