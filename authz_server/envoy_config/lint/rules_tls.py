"""Rules on listeners: how a caller proves who it is."""

from collections.abc import Iterator
from typing import Final

from authz_server.envoy_config.lint.configuration import (
    DOWNSTREAM_TLS,
    Chain,
    Configuration,
    listens_locally,
)
from authz_server.envoy_config.lint.message import At, Message
from authz_server.envoy_config.lint.rule import (
    ERROR,
    WARNING,
    Rule,
    each,
    is_not_true,
    is_one_of,
    is_true,
)

_VALIDATORS: Final = ("validation_context", "combined_validation_context")
_BY_REFERENCE: Final = (
    "validation_context_sds_secret_config",
    "validation_context_certificate_provider",
    "validation_context_certificate_provider_instance",
)


def _asking_chains(configuration: Configuration) -> list[Chain]:
    chains = [one.chain for one in configuration.guarded] + configuration.guarded_tcp
    return list({id(one): one for one in chains}.values())


def _tls(configuration: Configuration) -> list[Message]:
    return [
        tls
        for chain in _asking_chains(configuration)
        for tls in chain.message.walk()
        if chain.listener is not None and tls.is_a(DOWNSTREAM_TLS)
    ]


def _in_the_clear(configuration: Configuration) -> Iterator[At]:
    for chain in _asking_chains(configuration):
        if chain.listener is None or listens_locally(chain.listener):
            continue
        socket = chain.message.message("transport_socket")
        encrypted = socket is not None and any(socket.all(DOWNSTREAM_TLS))
        # STARTTLS begins in the clear, and stays there unless a filter says otherwise.
        if not encrypted or any(chain.message.all("starttls.v3.StartTlsConfig")):
            yield chain.message.at("transport_socket")


def contexts(tls: Message) -> list[Message]:
    """Return the `CertificateValidationContext`s that stand in a TLS context."""
    common = tls.message("common_tls_context")
    return list(common.all("tls.v3.CertificateValidationContext")) if common is not None else []


def _contexts(configuration: Configuration) -> list[Message]:
    found = [context for tls in _tls(configuration) for context in contexts(tls)]
    # Those that come by name: of whom they judge is not looked into, all are to be sound.
    return found + [one for secret in configuration.secrets for one in _held(secret)]


def _held(secret: Message) -> list[Message]:
    return secret.messages("validation_context")


_ANCHORS: Final = (
    "trusted_ca",
    "ca_certificate_provider_instance",
    "system_root_certs",
    "custom_validator_config",
    "verify_certificate_hash",
    "verify_certificate_spki",
)


def proves_nothing(tls: Message) -> bool:
    """Tell whether nothing says which certificates of a peer are good."""
    common = tls.message("common_tls_context")
    if common is None:
        return True
    if any(common.has(name) for name in _BY_REFERENCE):
        return False
    if common.has("combined_validation_context"):
        return False  # its second half comes by reference
    return not any(context.has(name) for context in contexts(tls) for name in _ANCHORS)


def _unproved(tls: Message) -> Iterator[At]:
    if proves_nothing(tls):
        yield (tls.message("common_tls_context") or tls).at("validation_context")


def _any_of_authority(context: Message) -> Iterator[At]:
    names = ("custom_validator_config", "match_typed_subject_alt_names", "match_subject_alt_names")
    pins = ("verify_certificate_hash", "verify_certificate_spki")
    if context.has("trusted_ca") and not any(context.has(one) for one in (*names, *pins)):
        yield context.at("trusted_ca")


def _version(tls: Message) -> str:
    parameters = tls.inside("common_tls_context", "tls_params")
    return parameters.text("tls_minimum_protocol_version") if parameters is not None else ""


def _before_12(tls: Message) -> Iterator[At]:
    if _version(tls) in {"TLSv1_0", "TLSv1_1"}:
        yield _parameters(tls).at("tls_minimum_protocol_version")


def _before_13(tls: Message) -> Iterator[At]:
    if _version(tls) in {"", "TLS_AUTO", "TLSv1_2"}:
        yield _parameters(tls).at("tls_minimum_protocol_version")


def _parameters(tls: Message) -> Message:
    common = tls.message("common_tls_context")
    return (common and common.message("tls_params")) or common or tls


def _proxied(configuration: Configuration) -> Iterator[At]:
    for listener in {
        id(one.listener): one.listener for one in _asking_chains(configuration)
    }.values():
        for one in listener.messages("listener_filters") if listener is not None else ():
            settings = one.message("typed_config")
            if settings is not None and settings.is_a("proxy_protocol.v3.ProxyProtocol"):
                yield one.at()
    for chain in _asking_chains(configuration):
        if chain.message.flag("use_proxy_proto"):
            yield chain.message.at("use_proxy_proto")


RULES: Final = (
    Rule(
        id="EA501",
        severity=ERROR,
        title="callers from other machines come without TLS",
        why="Nobody proves who calls, and whoever is on the network reads and changes what passes.",
        fix="a `transport_socket` with `DownstreamTlsContext`, or an address on loopback",
        judge=_in_the_clear,
    ),
    Rule(
        id="EA502",
        severity=ERROR,
        title="a client certificate is not required",
        why="A caller without one has no identity. (The SPIFFE validator requires one all the "
        "same; nothing else does.)",
        fix="`require_client_certificate: true`",
        judge=each(_tls, is_not_true("require_client_certificate")),
    ),
    Rule(
        id="EA503",
        severity=ERROR,
        title="nothing says which client certificates are good",
        why="Envoy then asks for none, even where one is required: callers have no identity.",
        fix="`validation_context` with the SPIFFE validator and the bundles of your trust domains",
        judge=each(_tls, _unproved),
    ),
    Rule(
        id="EA504",
        severity=ERROR,
        title="certificates that nobody signed are taken",
        why="`ACCEPT_UNTRUSTED` lets every certificate in: a caller signs itself the identity that "
        "it wants.",
        fix="leave `trust_chain_verification` out",
        judge=each(_contexts, is_one_of("trust_chain_verification", "ACCEPT_UNTRUSTED")),
    ),
    Rule(
        id="EA505",
        severity=ERROR,
        title="expired certificates are taken",
        why="A key that leaked once opens for ever, and a workload that was withdrawn still calls.",
        fix="leave `allow_expired_certificate` out",
        judge=each(_contexts, is_true("allow_expired_certificate")),
    ),
    Rule(
        id="EA506",
        severity=WARNING,
        title="any certificate of the authority is taken, whatever its trust domain",
        why="An authority that signs for two trust domains lets one speak as the other; only the "
        "SPIFFE validator holds a domain against its own bundle.",
        fix="`custom_validator_config` with `SPIFFECertValidatorConfig`",
        judge=each(_contexts, _any_of_authority),
    ),
    Rule(
        id="EA507",
        severity=ERROR,
        title="TLS before 1.2 is spoken",
        why="Its handshakes and ciphers are broken (RFC 8996).",
        fix="`tls_params: {tls_minimum_protocol_version: TLSv1_3}`",
        judge=each(_tls, _before_12),
    ),
    Rule(
        id="EA508",
        severity=WARNING,
        title="TLS before 1.3 is spoken",
        why="TLS 1.2 shows the client's certificate, its SPIFFE ID, to whoever listens.",
        fix="`tls_params: {tls_minimum_protocol_version: TLSv1_3}`",
        judge=each(_tls, _before_13),
    ),
    Rule(
        id="EA509",
        severity=WARNING,
        title="the source address is taken from a PROXY header",
        why="Whoever connects writes it: right only where nothing but your own proxies can "
        "connect.",
        fix="leave the `proxy_protocol` listener filter out, or keep everybody else from the port",
        judge=_proxied,
    ),
)
