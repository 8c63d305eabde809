"""Envoy's two TLS sockets: towards callers, and towards the PDP. SVIDs from files or from an agent.

From an agent they come by SDS, so that rotation and revocation need no restart. The resource names
are those of SPIRE: an SVID by its SPIFFE ID, and `ALL` for the bundles of every trust domain, as a
validator that holds a certificate against the bundle of its own domain.
"""

from datetime import timedelta
from typing import Final

from envoy_data_plane.envoy.config.core.v3 import (
    ApiConfigSource,
    ApiConfigSourceApiType,
    ApiVersion,
    ConfigSource,
    DataSource,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    TransportSocket,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    CommonTlsContextCombinedCertificateValidationContext,
    DownstreamTlsContext,
    SdsSecretConfig,
    SpiffeCertValidatorConfig,
    SpiffeCertValidatorConfigTrustDomain,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    TlsCertificate,
    TlsParameters,
    TlsParametersTlsProtocol,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher

from authz_server.core.spiffe import SpiffeId
from authz_server.envoy_config.enforcement_point import (
    EnforcementPoint,
    PdpTls,
    SvidFiles,
    SvidFromAgent,
)
from authz_server.envoy_config.messages import packed

AGENT_CLUSTER: Final = "spire_agent"
_ALL_BUNDLES: Final = "ALL"
_TLS_SOCKET: Final = "envoy.transport_sockets.tls"
# libpq that begins with TLS (`sslnegotiation=direct`) insists on this name. Who asks for another
# one, or for none, gets none.
_RAW_ALPN: Final = ["postgresql"]
_TLS_1_3: Final = TlsParametersTlsProtocol.TLSv1_3


def server_socket(point: EnforcementPoint) -> TransportSocket:
    """Return the TLS socket: 1.3, and a client certificate proved by its SPIFFE trust bundle."""
    context = DownstreamTlsContext(
        require_client_certificate=True,
        common_tls_context=_common(
            point.svid,
            peers_of=point.workload_id,
            expected=None,
            params=TlsParameters(tls_minimum_protocol_version=_TLS_1_3),
            alpn=_RAW_ALPN if point.is_raw else ["h2", "http/1.1"],
        ),
    )
    return TransportSocket(name=_TLS_SOCKET, typed_config=packed(context))


def pdp_socket(pdp: PdpTls) -> TransportSocket:
    """Return the TLS socket towards the PDP, which must prove exactly one SPIFFE ID."""
    return peer_socket(pdp.spiffe_id, pdp.svid, alpn=["h2"])


def peer_socket(
    peer: SpiffeId,
    svid: SvidFiles | SvidFromAgent,
    *,
    alpn: list[str],
    server_name: str | None = None,
) -> TransportSocket:
    """Return the TLS socket towards `peer`, which must prove exactly that SPIFFE ID."""
    context = UpstreamTlsContext(
        sni=server_name or "",
        common_tls_context=_common(
            svid,
            peers_of=peer,
            expected=peer,
            params=TlsParameters(
                tls_minimum_protocol_version=_TLS_1_3,
                # As a client Envoy stops at 1.2 unless told otherwise.
                tls_maximum_protocol_version=_TLS_1_3,
            ),
            alpn=alpn,
        ),
    )
    return TransportSocket(name=_TLS_SOCKET, typed_config=packed(context))


def _common(
    svid: SvidFiles | SvidFromAgent,
    *,
    peers_of: SpiffeId,
    expected: SpiffeId | None,
    params: TlsParameters,
    alpn: list[str],
) -> CommonTlsContext:
    """Return what both sockets share: an SVID of our own, and what peers are held against.

    `peers_of` is a workload of the trust domain whose bundle is in the files. With `expected`,
    peers must have exactly that one URI name.
    """
    names = [] if expected is None else [_exactly(expected)]
    if isinstance(svid, SvidFiles):
        return CommonTlsContext(
            tls_params=params,
            tls_certificates=[_certificate(svid)],
            validation_context=CertificateValidationContext(
                custom_validator_config=_validator(svid, peers_of),
                match_typed_subject_alt_names=names,
            ),
            alpn_protocols=alpn,
        )
    bundles = _secret(_ALL_BUNDLES)
    combined = CommonTlsContextCombinedCertificateValidationContext(
        default_validation_context=CertificateValidationContext(
            match_typed_subject_alt_names=names
        ),
        validation_context_sds_secret_config=bundles,
    )
    return CommonTlsContext(
        tls_params=params,
        tls_certificate_sds_secret_configs=[_secret(str(svid.spiffe_id))],
        combined_validation_context=combined if names else None,
        validation_context_sds_secret_config=None if names else bundles,
        alpn_protocols=alpn,
    )


def _certificate(svid: SvidFiles) -> TlsCertificate:
    return TlsCertificate(
        certificate_chain=DataSource(filename=str(svid.certificate)),
        private_key=DataSource(filename=str(svid.private_key)),
    )


def _exactly(name: SpiffeId) -> SubjectAltNameMatcher:
    return SubjectAltNameMatcher(
        san_type=SubjectAltNameMatcherSanType.URI, matcher=StringMatcher(exact=str(name))
    )


def _validator(svid: SvidFiles, of: SpiffeId) -> TypedExtensionConfig:
    trust_domain = SpiffeCertValidatorConfigTrustDomain(
        name=str(of.trust_domain), trust_bundle=DataSource(filename=str(svid.trust_bundle))
    )
    return TypedExtensionConfig(
        name="envoy.tls.cert_validator.spiffe",
        typed_config=packed(SpiffeCertValidatorConfig(trust_domains=[trust_domain])),
    )


def _secret(name: str) -> SdsSecretConfig:
    agent = GrpcService(envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=AGENT_CLUSTER))
    source = ConfigSource(
        resource_api_version=ApiVersion.V3,
        # Without SVID and bundle there is nothing to serve; SPIRE's agent answers within seconds.
        initial_fetch_timeout=timedelta(0),
        api_config_source=ApiConfigSource(
            api_type=ApiConfigSourceApiType.GRPC,
            transport_api_version=ApiVersion.V3,
            set_node_on_first_message_only=True,
            grpc_services=[agent],
        ),
    )
    return SdsSecretConfig(name=name, sds_config=source)
