"""Rules on clusters: whether the PDP is the PDP, and whether the upstream has other doors."""

from collections.abc import Iterator, Mapping
from typing import Final

from authz_server.envoy_config.lint.configuration import (
    HTTP_OPTIONS,
    UPSTREAM_TLS,
    Configuration,
    addresses,
    endpoints,
    is_local,
    unique,
)
from authz_server.envoy_config.lint.message import At, Free, Message
from authz_server.envoy_config.lint.rule import ERROR, WARNING, Rule, each
from authz_server.envoy_config.lint.rules_tls import contexts, proves_nothing


def _pdp(configuration: Configuration) -> list[Message]:
    return configuration.pdp_clusters


def _remote(cluster: Message) -> bool:
    """Tell whether a cluster leads to another machine, or may: its endpoints are not given."""
    return not all(is_local(address) for address in endpoints(cluster)) or not any(
        endpoints(cluster)
    )


def _tls(cluster: Message) -> list[Message]:
    sockets = cluster.messages("transport_socket")
    sockets += cluster.messages("transport_socket_matches")
    return [tls for socket in sockets for tls in socket.all(UPSTREAM_TLS)]


def _in_the_clear(cluster: Message) -> Iterator[At]:
    if not _remote(cluster):
        return
    if not _tls(cluster):
        yield cluster.at("transport_socket")
        return
    # An endpoint is spoken to by its first match, and as `transport_socket` says if it has none.
    for socket in cluster.messages("transport_socket_matches"):
        if not any(socket.all(UPSTREAM_TLS)):
            yield socket.at()
    default = cluster.message("transport_socket")
    if default is None or not any(default.all(UPSTREAM_TLS)):
        yield from _unmatched(cluster)


def _unmatched(cluster: Message) -> Iterator[At]:
    """Yield the remote endpoints that no entry of `transport_socket_matches` is for."""
    wanted = [
        _texts(one.fields.get("match")) for one in cluster.messages("transport_socket_matches")
    ]
    assignment = cluster.message("load_assignment")
    for locality in assignment.messages("endpoints") if assignment else ():
        for endpoint in locality.messages("lb_endpoints"):
            labels = [_match_labels(endpoint), _match_labels(locality)]
            found = any(one.items() <= having.items() for one in wanted for having in labels)
            if not found and not all(is_local(text) for text, _ in _addresses_of(endpoint)):
                yield endpoint.at()


def _addresses_of(endpoint: Message) -> Iterator[tuple[str, At]]:
    inner = endpoint.message("endpoint")
    return addresses(inner.messages("address") if inner else ())


def _match_labels(holder: Message) -> Mapping[str, str]:
    metadata = holder.message("metadata")
    found = metadata.map("filter_metadata") if metadata else {}
    return _texts(found.get("envoy.transport_socket_match"))


def _texts(free: object) -> Mapping[str, str]:
    """Return the members of a `Struct`, as they are compared: lists and mappings equal nothing."""
    members = free.raw.value if isinstance(free, Free) else None
    return (
        {key: repr(one.value) for key, one in members.items()} if isinstance(members, dict) else {}
    )


def _anybody(cluster: Message) -> Iterator[At]:
    for tls in _tls(cluster):
        if proves_nothing(tls):
            yield (tls.message("common_tls_context") or tls).at()
            continue
        names = ("match_typed_subject_alt_names", "match_subject_alt_names")
        pins = ("verify_certificate_hash", "verify_certificate_spki")
        if not any(one.has(name) for one in contexts(tls) for name in (*names, *pins)):
            yield (tls.message("common_tls_context") or tls).at()


def _untrusted(cluster: Message) -> Iterator[At]:
    for tls in _tls(cluster):
        for context in contexts(tls):
            if context.text("trust_chain_verification") == "ACCEPT_UNTRUSTED":
                yield context.at("trust_chain_verification")


_OWN: Final = (
    "tls_certificates",
    "tls_certificate_sds_secret_configs",
    "tls_certificate_provider_instance",
    "custom_tls_certificate_selector",
)


def _unnamed(cluster: Message) -> Iterator[At]:
    for tls in _tls(cluster):
        common = tls.message("common_tls_context")
        if common is None or not any(common.has(name) for name in _OWN):
            yield (common or tls).at()


def _not_http2(cluster: Message) -> Iterator[At]:
    options = cluster.map("typed_extension_protocol_options").get(HTTP_OPTIONS)
    if isinstance(options, Message):
        wanted = ("http2_protocol_options", "http3_protocol_options")
        if any(one.has(name) for one in options.walk() for name in wanted):
            return
    if not cluster.has("http2_protocol_options"):
        yield cluster.at("typed_extension_protocol_options")


def _unwatched(cluster: Message) -> Iterator[At]:
    several = len(list(endpoints(cluster))) > 1 or cluster.text("type") in {"STRICT_DNS", "EDS"}
    if several and not cluster.has("health_checks") and not cluster.has("outlier_detection"):
        yield cluster.at()


def _google(service: Message) -> Iterator[At]:
    google = service.message("google_grpc")
    if google is None:
        return
    target = google.text("target_uri")
    credentials = google.message("channel_credentials")
    local = target.startswith("unix:") or is_local(target)
    if not local and (credentials is None or not credentials.has("ssl_credentials")):
        yield google.at("target_uri")


def _services(configuration: Configuration) -> list[Message]:
    return configuration.services


def _upstreams(configuration: Configuration) -> list[Message]:
    names = {name for chain in configuration.asking for name in configuration.targets(chain)}
    found = (configuration.clusters.get(name) for name in sorted(names))
    return unique(one for one in found if one is not None)


def _open_to_others(cluster: Message) -> Iterator[At]:
    remote = [address for address in endpoints(cluster) if not is_local(address)]
    if remote and not _tls(cluster):
        yield cluster.at("load_assignment", f"`{remote[0]}`")


RULES: Final = (
    Rule(
        id="EA701",
        severity=ERROR,
        title="the PDP is asked over a network in the clear",
        why="Whoever is on the way answers for it: one forged byte allows a request.",
        fix="`transport_socket` with `UpstreamTlsContext`, or a PDP on a Unix socket or loopback",
        judge=each(_pdp, _in_the_clear),
    ),
    Rule(
        id="EA702",
        severity=ERROR,
        title="anybody with a certificate may be the PDP",
        why="Without the one name that it must prove, any workload of the trust domain that gets "
        "the connection decides.",
        fix="`match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: <its SPIFFE ID>}}]`",
        judge=each(_pdp, _anybody),
    ),
    Rule(
        id="EA703",
        severity=ERROR,
        title="a PDP whose certificate nobody signed is believed",
        why="Whoever gets the connection signs itself the PDP's name, and decides.",
        fix="leave `trust_chain_verification` out",
        judge=each(_pdp, _untrusted),
    ),
    Rule(
        id="EA704",
        severity=WARNING,
        title="Envoy shows the PDP no certificate",
        why="A PDP that answers whoever asks tells anyone on the network what policy allows.",
        fix="`tls_certificates` or `tls_certificate_sds_secret_configs` with this Envoy's SVID",
        judge=each(_pdp, _unnamed),
    ),
    Rule(
        id="EA705",
        severity=WARNING,
        title="the PDP is not spoken to by HTTP/2",
        why="gRPC needs it: every check fails, and every request is denied.",
        fix="`explicit_http_config: {http2_protocol_options: {}}` in `HttpProtocolOptions`",
        judge=each(_pdp, _not_http2),
    ),
    Rule(
        id="EA706",
        severity=WARNING,
        title="several PDPs, and none is taken out when it fails",
        why="Its share of the requests is denied until somebody notices.",
        fix="`health_checks` with `grpc_health_check`, or `outlier_detection`",
        judge=each(_pdp, _unwatched),
    ),
    Rule(
        id="EA707",
        severity=ERROR,
        title="the PDP is asked over a network in the clear, by Google's gRPC",
        why="Whoever is on the way answers for it: one forged byte allows a request.",
        fix="`envoy_grpc` with a cluster that has TLS",
        judge=each(_services, _google),
    ),
    Rule(
        id="EA710",
        severity=WARNING,
        title="the protected workload listens on a network, without TLS",
        why="Whoever reaches that address needs no Envoy, and nobody is asked.",
        fix="let it listen on loopback or a Unix socket, or require this Envoy's certificate",
        judge=each(_upstreams, _open_to_others),
    ),
)
