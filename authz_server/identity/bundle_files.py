"""Trust bundles from PEM files."""

from collections.abc import Sequence
from typing import Final

from cryptography import x509

from authz_server.core import svid
from authz_server.core.errors import ConfigurationError, Fault, InvalidValueError
from authz_server.core.spiffe import TrustDomain
from authz_server.core.trust import TrustBundle
from authz_server.identity.file_content import FileContent

TRUST_BUNDLE_BYTES_MAX: Final = 1024 * 1024  # some 500 certificates; real bundles have two or three


def trust_bundle(trust_domain: TrustDomain, files: Sequence[FileContent]) -> TrustBundle:
    """Return the authorities of `trust_domain`: those of every file, each once.

    Raises `ConfigurationError` with a fault for every file that is not wholly made of CA
    certificates. Validity periods are judged at each request, not here.
    """
    authorities: dict[x509.Certificate, None] = {}
    faults: list[Fault] = []
    for file in files:
        try:
            authorities.update(dict.fromkeys(svid.parse_authorities(file.data)))
        except InvalidValueError as error:
            faults.append(file.fault(str(error)))
    if faults:
        raise ConfigurationError(faults)
    return TrustBundle(trust_domain=trust_domain, authorities=tuple(authorities))
