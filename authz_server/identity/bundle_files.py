"""Trust bundles from files: PEM, or SPIFFE bundle documents."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from cryptography import x509

from authz_server.core import svid
from authz_server.core.errors import ConfigurationError, Fault, InvalidValueError
from authz_server.core.spiffe import TrustDomain
from authz_server.core.trust import TrustBundle, VerificationKey
from authz_server.identity.file_content import FileContent
from authz_server.identity.spiffe_bundle import parse_document

TRUST_BUNDLE_BYTES_MAX: Final = 1024 * 1024  # some 500 certificates; real bundles have two or three


def trust_bundle(trust_domain: TrustDomain, files: Sequence[FileContent]) -> TrustBundle:
    """Return the bundle of `trust_domain`: the authorities and keys of every file, each once.

    A file that begins with `{` is a SPIFFE bundle document, which may be empty and then proves
    nothing; any other is PEM. Raises `ConfigurationError` with a fault for every file that is not
    wholly made of CA certificates, or whose document is refused. Validity periods are judged at
    each request, not here.
    """
    authorities: dict[x509.Certificate, None] = {}
    jwt_keys: dict[str, VerificationKey] = {}
    faults: list[Fault] = []
    for file in files:
        try:
            found = _read(trust_domain, file.data)
        except InvalidValueError as error:
            faults.append(file.fault(str(error)))
            continue
        authorities.update(dict.fromkeys(found.authorities))
        jwt_keys.update(found.jwt_keys)
    if faults:
        raise ConfigurationError(faults)
    return TrustBundle(
        trust_domain=trust_domain,
        authorities=tuple(authorities),
        jwt_keys=MappingProxyType(jwt_keys),
    )


def _read(trust_domain: TrustDomain, data: bytes) -> TrustBundle:
    if data.lstrip().startswith(b"{"):
        return parse_document(data, trust_domain).bundle
    return TrustBundle(trust_domain=trust_domain, authorities=svid.parse_authorities(data))
