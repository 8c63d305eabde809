"""An issuer's public keys from a JWKS file."""

from collections.abc import Collection
from typing import Final

from authz_server.core import jose
from authz_server.core.errors import ConfigurationError, InvalidValueError
from authz_server.core.trust import Issuer
from authz_server.identity.file_content import FileContent

JWKS_BYTES_MAX: Final = 256 * 1024  # as `jose.parse_jwks`


def issuer_from_jwks(
    file: FileContent, *, issuer: str, algorithms: Collection[str], max_lifetime_s: int
) -> Issuer:
    """Return the issuer with the keys of `file` (RFC 7517).

    An empty key set is legal: it takes every grant of the issuer back. Raises `ConfigurationError`
    for a malformed set, and for one whose keys all serve other algorithms than the admitted ones.
    """
    try:
        keys = jose.parse_jwks(file.data)
    except InvalidValueError as error:
        raise ConfigurationError([file.fault(str(error))]) from error
    fitting = [k for k in keys.values() if any(jose.fits(a, k) for a in algorithms)]
    if keys and not fitting:
        named = ", ".join(f"`{algorithm}`" for algorithm in sorted(algorithms))
        raise ConfigurationError([file.fault(f"has no key for {named}")])
    return Issuer(
        issuer=issuer, algorithms=frozenset(algorithms), max_lifetime_s=max_lifetime_s, keys=keys
    )
