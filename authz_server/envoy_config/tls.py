"""Envoy's two TLS sockets: towards callers, and towards the PDP. SVIDs from files or from an agent.

From an agent they come by SDS, so that rotation and revocation need no restart. The resource names
are those of SPIRE: an SVID by its SPIFFE ID, and `ALL` for the bundles of every trust domain, as a
validator that holds a certificate against the bundle of its own domain.
"""

from typing import Final

from authz_server.core.attributes import Protocol
from authz_server.core.spiffe import SpiffeId
from authz_server.envoy_config.enforcement_point import (
    EnforcementPoint,
    PdpTls,
    SvidFiles,
    SvidFromAgent,
)
from authz_server.envoy_config.tree import Tree, extension

AGENT_CLUSTER: Final = "spire_agent"
_ALL_BUNDLES: Final = "ALL"


def server_socket(point: EnforcementPoint) -> Tree:
    """Return the TLS socket: 1.3, and a client certificate proved by its SPIFFE trust bundle."""
    common: Tree = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
        **_certificates(point.svid),
        **_validation(point.svid, point.workload_id, match=None),
    }
    if point.protocol is not Protocol.TCP:
        common["alpn_protocols"] = ["h2", "http/1.1"]
    return extension(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
        {"require_client_certificate": True, "common_tls_context": common},
    )


def pdp_socket(pdp: PdpTls) -> Tree:
    """Return the TLS socket towards the PDP, which must prove exactly one SPIFFE ID."""
    common: Tree = {
        # As a client Envoy stops at 1.2 unless told otherwise.
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        **_certificates(pdp.svid),
        **_validation(pdp.svid, pdp.spiffe_id, match=pdp.spiffe_id),
        "alpn_protocols": ["h2"],
    }
    return extension(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.UpstreamTlsContext",
        {"common_tls_context": common},
    )


def _certificates(svid: SvidFiles | SvidFromAgent) -> Tree:
    if isinstance(svid, SvidFromAgent):
        return {"tls_certificate_sds_secret_configs": [_secret(str(svid.spiffe_id))]}
    certificate = {
        "certificate_chain": {"filename": str(svid.certificate)},
        "private_key": {"filename": str(svid.private_key)},
    }
    return {"tls_certificates": [certificate]}


def _validation(svid: SvidFiles | SvidFromAgent, of: SpiffeId, *, match: SpiffeId | None) -> Tree:
    """Return what peers are held against; with `match`, the one URI name they must have.

    `of` is a workload of the trust domain whose bundle is in the files.
    """
    names: Tree = {}
    if match is not None:
        exactly = {"san_type": "URI", "matcher": {"exact": str(match)}}
        names = {"match_typed_subject_alt_names": [exactly]}
    if isinstance(svid, SvidFromAgent):
        bundles = _secret(_ALL_BUNDLES)
        if not names:
            return {"validation_context_sds_secret_config": bundles}
        combined = {
            "default_validation_context": names,
            "validation_context_sds_secret_config": bundles,
        }
        return {"combined_validation_context": combined}
    return {"validation_context": {"custom_validator_config": _validator(svid, of), **names}}


def _validator(svid: SvidFiles, of: SpiffeId) -> Tree:
    trust_domain = {
        "name": str(of.trust_domain),
        "trust_bundle": {"filename": str(svid.trust_bundle)},
    }
    return extension(
        "envoy.tls.cert_validator.spiffe",
        "transport_sockets.tls.v3.SPIFFECertValidatorConfig",
        {"trust_domains": [trust_domain]},
    )


def _secret(name: str) -> Tree:
    service = {"envoy_grpc": {"cluster_name": AGENT_CLUSTER}}
    source = {
        "resource_api_version": "V3",
        # Without SVID and bundle there is nothing to serve; SPIRE's agent answers within seconds.
        "initial_fetch_timeout": "0s",
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": True,
            "grpc_services": [service],
        },
    }
    return {"name": name, "sds_config": source}
