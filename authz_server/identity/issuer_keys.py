"""An issuer as the configuration has it, and its public keys from a JWK Set (RFC 7517)."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

from authz_server.core import jose
from authz_server.core.errors import ConfigurationError, InvalidValueError
from authz_server.core.trust import Issuer, RootKind, VerificationKey
from authz_server.identity.file_content import FileContent
from authz_server.settings.model import IssuerSettings

JWKS_BYTES_MAX: Final = jose.JWKS_BYTES_MAX


def keys_for(data: bytes, algorithms: Collection[str]) -> Mapping[str, VerificationKey]:
    """Return the keys of the JWK Set `data` by `kid`.

    An empty key set is legal: it takes every grant of the issuer back. Raises `InvalidValueError`
    for a malformed set, and for one whose keys all serve other algorithms than the admitted ones.
    """
    keys = jose.parse_jwks(data)
    if keys and not any(jose.fits(a, key) for key in keys.values() for a in algorithms):
        named = ", ".join(f"`{algorithm}`" for algorithm in sorted(algorithms))
        raise InvalidValueError(f"has no key for {named}")
    return keys


def keys_in_file(file: FileContent, algorithms: Collection[str]) -> Mapping[str, VerificationKey]:
    """Return what `keys_for` does of a file. Raises `ConfigurationError`."""
    try:
        return keys_for(file.data, algorithms)
    except InvalidValueError as error:
        raise ConfigurationError([file.fault(str(error))]) from error


def issuer_of(given: IssuerSettings, keys: Mapping[str, VerificationKey]) -> Issuer:
    """Return the issuer that `given` configures, with `keys`."""
    return Issuer(
        issuer=given.issuer,
        algorithms=frozenset(given.algorithms),
        max_lifetime_s=given.max_lifetime_s,
        keys=keys,
        kind=RootKind(given.kind),
        audiences=frozenset(given.audiences),
        agents=MappingProxyType(dict(given.agents)),
        subject_claim=given.subject_claim,
    )
