"""What the SPIFFE Workload API sends, turned into values of ours.

A message is the full state: what it does not name is withdrawn (Workload API §4.3, §5.2.1). A part
that cannot be read is treated as withdrawn too, and reported: one federated domain's broken bundle
must neither stay in service nor take the others down.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Protocol, TypeVar

from cryptography import x509

from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import TrustDomain
from authz_server.core.trust import VerificationKey
from authz_server.identity.own_svid import OwnSvid
from authz_server.identity.spiffe_bundle import parse_authorities, parse_jwt_keys

_Part = TypeVar("_Part")

Authorities = Mapping[TrustDomain, tuple[x509.Certificate, ...]]
JwtKeys = Mapping[TrustDomain, Mapping[str, VerificationKey]]
# Told what could not be read and why; one lower-case sentence without values.
Report = Callable[[str], None]


class SvidMessage(Protocol):
    """`X509SVID` of the Workload API."""

    spiffe_id: str
    x509_svid: bytes
    x509_svid_key: bytes
    bundle: bytes


class SvidResponse(Protocol):
    """`X509SVIDResponse` of the Workload API."""

    @property
    def svids(self) -> "list[SvidMessage]":
        """The SVIDs, the default one first."""

    @property
    def federated_bundles(self) -> Mapping[str, bytes]:
        """DER authorities by the id of their trust domain."""


def own_svid(response: SvidResponse, report: Report) -> OwnSvid | None:
    """Return the default SVID (Workload API §5.3: the first), or None where there is none."""
    if not response.svids:
        return None
    message = response.svids[0]
    try:
        svid = OwnSvid.from_der(message.x509_svid, message.x509_svid_key)
        if str(svid.spiffe_id) != message.spiffe_id:
            raise InvalidValueError("SVID is for another id than its message names")
    except InvalidValueError as error:
        report(f"the agent's SVID is refused: {error}")
        return None
    return svid


def authorities(response: SvidResponse, report: Report) -> Authorities:
    """Return the X.509 authorities of every trust domain the response names."""
    sent = list(response.federated_bundles.items())
    # The id of an SVID names the domain that its bundle belongs to. They come last: nothing that
    # is sent as federated may stand in for our own domain.
    sent += [(_domain_part(message.spiffe_id), message.bundle) for message in response.svids]
    return _by_domain(sent, parse_authorities, (), report)


def jwt_keys(bundles: Mapping[str, bytes], report: Report) -> JwtKeys:
    """Return the JWT-SVID keys of every trust domain in `JWTBundlesResponse.bundles`."""
    return _by_domain(bundles.items(), parse_jwt_keys, MappingProxyType({}), report)


def _by_domain(
    sent: Iterable[tuple[str, bytes]],
    parse: Callable[[bytes], _Part],
    nothing: _Part,
    report: Report,
) -> Mapping[TrustDomain, _Part]:
    found: dict[TrustDomain, _Part] = {}
    for name, data in sent:
        try:
            domain = TrustDomain.parse(_domain_part(name))
        except InvalidValueError as error:
            report(f"a bundle is ignored: {error}")
            continue
        try:
            found[domain] = parse(data)
        except InvalidValueError as error:
            # SECURITY: the domain stays known and proves nothing, rather than keep its older keys.
            found[domain] = nothing
            report(f"the bundle of `{domain}` is refused: {error}")
    return MappingProxyType(found)


def _domain_part(uri: str) -> str:
    return uri.removeprefix("spiffe://").partition("/")[0]
