"""Rules on ext_authz itself: what the PDP is shown, and what becomes of its answer."""

from collections.abc import Iterator
from typing import Final

from authz_server.core import limits
from authz_server.envoy_config.lint.configuration import (
    EXT_AUTHZ,
    Configuration,
    HttpChain,
    unique,
)
from authz_server.envoy_config.lint.definitions import Definitions
from authz_server.envoy_config.lint.message import At, Message
from authz_server.envoy_config.lint.rule import (
    ERROR,
    WARNING,
    Rule,
    each,
    exceeds,
    is_not_true,
    is_set,
    is_true,
)

# Envoy's own default is 0.2 s. A caller waits for the check at every step of a task.
TIMEOUT_S_MAX: Final = 5.0
# An MCP call of ordinary size must fit; Envoy's MCP filter by itself reads 8 KiB.
BODY_BYTES_MIN: Final = 8 * 1024


def _questions(configuration: Configuration) -> list[Message]:
    return configuration.questions


def _all_questions(configuration: Configuration) -> list[Message]:
    return [*configuration.questions, *configuration.network_questions]


def _services(configuration: Configuration) -> list[Message]:
    return configuration.services


def _bodies(configuration: Configuration) -> list[Message]:
    """Return every `BufferSettings`: of the filters, and of routes that set their own."""
    holders = [*configuration.questions]
    holders += [
        one for route in configuration.per_route for one in route.messages("check_settings")
    ]
    found = (one.message("with_request_body") for one in holders)
    return unique(one for one in found if one is not None)


def _error_status(question: Message) -> Iterator[At]:
    status = question.message("status_on_error")
    codes = Definitions.load().enum("envoy.type.v3.StatusCode") or {}
    if status is not None and 0 < codes.get(status.text("code"), 0) < 400:
        yield status.at("code", f"`{status.text('code')}`")


def _no_end(service: Message) -> Iterator[At]:
    timeout = service.number("timeout")
    # Envoy cuts it to whole milliseconds.
    if timeout is not None and timeout < 0.001:
        yield service.at("timeout")


# --- switches -----------------------------------------------------------------------------------


def _denies_when_off(question: Message) -> bool:
    flag = question.message("deny_at_disable")
    return flag is not None and flag.flag("default_value") is True


def _always(fraction: Message) -> bool:
    """Tell whether a `RuntimeFractionalPercent` is all requests, at any time."""
    share = fraction.message("default_value")
    if share is None or fraction.text("runtime_key"):
        return False
    whole = {"": 100, "HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000}
    return share.number("numerator") == whole.get(share.text("denominator"))


def _switched(question: Message) -> Iterator[At]:
    if _denies_when_off(question):
        return
    share = question.message("filter_enabled")
    if share is not None and not _always(share):
        yield question.at("filter_enabled")


def _switched_by_metadata(question: Message) -> Iterator[At]:
    if question.has("filter_enabled_metadata") and not _denies_when_off(question):
        yield question.at("filter_enabled_metadata")


def _no_denial_when_off(question: Message) -> Iterator[At]:
    if not _denies_when_off(question):
        yield question.at("deny_at_disable")


def _foreign_namespaces(chain: HttpChain) -> Iterator[At]:
    """Find namespaces that no filter in front of the question writes."""
    written: set[str] = set()
    for one in chain.filters:
        settings = one.settings
        if settings is not None and settings.is_a(EXT_AUTHZ):
            for field in ("metadata_context_namespaces", "typed_metadata_context_namespaces"):
                for name in settings.texts(field):
                    if name not in written and ".listener." not in name and ".network." not in name:
                        yield settings.at(field, f"`{name}`")
            continue
        written.add(one.name)
        if settings is not None:
            written.add(_canonical(settings))
            fields = ("metadata_namespace", "payload_in_metadata", "namespace")
            written |= {inner.text(f) for inner in settings.walk() for f in fields}


def _canonical(settings: Message) -> str:
    """Return the well-known name of a filter, `envoy.filters.http.mcp`, which metadata go under."""
    package = settings.type.removeprefix("envoy.extensions.").partition(".v3.")[0]
    return f"envoy.{package}"


def _no_body(chain: HttpChain) -> Iterator[At]:
    if chain.only_tunnels:
        return
    for one in chain.questions:
        if one.settings is not None and not one.settings.has("with_request_body"):
            yield one.settings.at()


def _small_body(body: Message) -> Iterator[At]:
    most = body.number("max_request_bytes")
    if most is not None and most < BODY_BYTES_MIN:
        yield body.at("max_request_bytes", f"{most:g}")


def _chosen_again(question: Message) -> Iterator[At]:
    for name in ("clear_route_cache", "clear_route_cache_headers"):
        if question.fields.get(name):
            yield question.at(name)


def _asks_otherwise(question: Message) -> Iterator[At]:
    if question.text("transport_api_version") != "V3":
        yield question.at("transport_api_version")


def _guarded(configuration: Configuration) -> list[HttpChain]:
    return configuration.guarded


RULES: Final = (
    Rule(
        id="EA201",
        severity=ERROR,
        title="a request that nobody could judge is allowed",
        why="While the PDP is down, slow or broken every request passes, and whoever can make it "
        "so decides.",
        fix="`failure_mode_allow: false`",
        judge=each(_all_questions, is_true("failure_mode_allow")),
    ),
    Rule(
        id="EA202",
        severity=WARNING,
        title="a request that nobody could judge is answered as if it had succeeded",
        why="The upstream is not reached, and yet an agent is told that its call worked.",
        fix="`status_on_error: {code: ServiceUnavailable}`",
        judge=each(_questions, _error_status),
    ),
    Rule(
        id="EA203",
        severity=ERROR,
        title="the wait for the PDP has no end",
        why="Zero means no limit since Envoy 1.38: a PDP that hangs holds every request, until "
        "connections and memory run out.",
        fix="`timeout: 0.25s` in `grpc_service`",
        judge=each(_services, _no_end),
    ),
    Rule(
        id="EA204",
        severity=WARNING,
        title=f"the wait for the PDP is longer than {TIMEOUT_S_MAX:g} s",
        why="Requests pile up behind a slow PDP, and callers give up and repeat theirs before they "
        "are denied.",
        fix="`timeout: 0.25s` in `grpc_service`",
        judge=each(_services, exceeds("timeout", TIMEOUT_S_MAX)),
    ),
    Rule(
        id="EA205",
        severity=ERROR,
        title="only a share of requests is checked",
        why="The rest passes unchecked; the share can be changed at run time.",
        fix="leave `filter_enabled` out",
        judge=each(_questions, _switched),
    ),
    Rule(
        id="EA206",
        severity=ERROR,
        title="metadata decide whether a request is checked",
        why="What does not have them passes unchecked, and filters write metadata from what a "
        "client sends.",
        fix="leave `filter_enabled_metadata` out",
        judge=each(_all_questions, _switched_by_metadata),
    ),
    Rule(
        id="EA207",
        severity=WARNING,
        title="nothing says what happens when the filter is switched off",
        why="Whoever adds `filter_enabled` later lets what is not checked pass.",
        fix="`deny_at_disable: {default_value: {value: true}, runtime_key: authz.deny_at_disable}`",
        judge=each(_questions, _no_denial_when_off),
    ),
    Rule(
        id="EA208",
        severity=ERROR,
        title="the verdict is not enforced",
        why="In shadow mode Envoy asks, and forwards what was denied.",
        fix="leave `shadow_mode` out; the PDP's own shadow mode (`bundles.mode`) records and marks "
        "what it lets pass",
        judge=each(_all_questions, is_true("shadow_mode")),
    ),
    Rule(
        id="EA209",
        severity=WARNING,
        title="the PDP does not see the body",
        why="Two requests that differ in their bodies get one verdict; a request in JSON-RPC "
        "cannot be judged at all and is denied.",
        fix="`with_request_body: {max_request_bytes: 262144, pack_as_bytes: true}`",
        judge=each(_guarded, _no_body),
    ),
    Rule(
        id="EA210",
        severity=ERROR,
        title="the PDP may see only the beginning of a body",
        why="What stands behind the cut reaches the upstream unjudged.",
        fix="`allow_partial_message: false`: a larger body is answered with 413",
        judge=each(_bodies, is_true("allow_partial_message")),
    ),
    Rule(
        id="EA211",
        severity=ERROR,
        title="the body reaches the PDP as text",
        why="Bytes that are not UTF-8 are replaced: what was judged is not what the upstream gets.",
        fix="`pack_as_bytes: true`",
        judge=each(_bodies, is_not_true("pack_as_bytes")),
    ),
    Rule(
        id="EA212",
        severity=WARNING,
        title=f"bodies are larger than the {limits.BODY_BYTES_MAX} bytes that the PDP reads",
        why="Envoy holds them in memory, and then they are denied.",
        fix=f"`max_request_bytes: {limits.BODY_BYTES_MAX}`",
        judge=each(_bodies, exceeds("max_request_bytes", limits.BODY_BYTES_MAX)),
    ),
    Rule(
        id="EA213",
        severity=WARNING,
        title=f"bodies of {BODY_BYTES_MIN} bytes do not fit",
        why="Ordinary calls of tools are answered with 413, and who operates it is tempted to cut "
        "bodies instead.",
        fix=f"`max_request_bytes: {limits.BODY_BYTES_MAX}`",
        judge=each(_bodies, _small_body),
    ),
    Rule(
        id="EA215",
        severity=ERROR,
        title="the PDP does not see the caller's certificate",
        why="What is left is `source.principal`, in which a DNS name or a subject can look like a "
        "SPIFFE ID; the PDP believes none of it and denies.",
        fix="`include_peer_certificate: true`",
        judge=each(_all_questions, is_not_true("include_peer_certificate")),
    ),
    Rule(
        id="EA216",
        severity=WARNING,
        title="the PDP does not see the TLS server name",
        why="Rules on `r.env.sni` find nothing.",
        fix="`include_tls_session: true`",
        judge=each(_all_questions, is_not_true("include_tls_session")),
    ),
    Rule(
        id="EA219",
        severity=WARNING,
        title="the PDP is sent metadata that no filter in front of ext_authz writes",
        why="It holds them to be Envoy's own reading of the request, and there is none.",
        fix="name only filters that stand in front of ext_authz in this chain",
        judge=each(_guarded, _foreign_namespaces),
    ),
    Rule(
        id="EA222",
        severity=WARNING,
        title="the route is chosen again after the check",
        why="The request may take a route with other context extensions than the one it was judged "
        "for.",
        fix="leave `clear_route_cache` and `clear_route_cache_headers` out",
        judge=each(_questions, _chosen_again),
    ),
    Rule(
        id="EA223",
        severity=ERROR,
        title="the PDP is asked over HTTP",
        why="It speaks gRPC; and any HTTP server that answers 200 allows everything.",
        fix="`grpc_service: {envoy_grpc: {cluster_name: ...}, timeout: 0.25s}`",
        judge=each(_questions, is_set("http_service")),
    ),
    Rule(
        id="EA224",
        severity=WARNING,
        title="the version of the API is left to Envoy",
        why="Only V3 exists; an Envoy that chooses otherwise finds no service and denies "
        "everything.",
        fix="`transport_api_version: V3`",
        judge=each(_all_questions, _asks_otherwise),
    ),
)
