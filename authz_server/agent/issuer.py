"""An issuer of root grants for development, demonstrations and tests.

It has one key in memory and asks nobody for anything: whoever holds it can act for anyone. In
production the root comes from a security token service that authenticates the subject and the
agent (RFC 8693 token exchange).
"""

import json
import secrets
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from authz_server.agent.signing import algorithm_for, sign
from authz_server.agent.svid import SigningKey
from authz_server.core.errors import InvalidValueError
from authz_server.core.jose import ALGORITHMS
from authz_server.core.root_grant import ROOT_TYPE
from authz_server.core.spiffe import SpiffeId, TrustDomain

LIFETIME_S: Final = 300  # transaction tokens live for minutes


class DevelopmentIssuer:
    """Signs whatever root grant it is asked for. SECURITY: for development only."""

    def __init__(
        self, *, issuer: str, trust_domain: TrustDomain, key: SigningKey, kid: str
    ) -> None:
        self.issuer = issuer
        self.trust_domain = trust_domain
        self.kid = kid
        self._key = key

    @classmethod
    def create(cls, *, issuer: str, trust_domain: TrustDomain, kid: str = "dev-1") -> Self:
        """Return an issuer with a new P-256 key."""
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(issuer=issuer, trust_domain=trust_domain, key=key, kid=kid)

    @classmethod
    def parse(
        cls, key_pem: bytes, *, issuer: str, trust_domain: TrustDomain, kid: str = "dev-1"
    ) -> Self:
        """Return an issuer with the unencrypted PEM key given.

        Raises `InvalidValueError` when it is not such a key, of P-256, P-384 or RSA.
        """
        try:
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError) as error:
            raise InvalidValueError("issuer key is not an unencrypted PEM key") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise InvalidValueError("issuer key is neither EC nor RSA")
        algorithm_for(key)
        return cls(issuer=issuer, trust_domain=trust_domain, key=key, kid=kid)

    @property
    def key_pem(self) -> bytes:
        """The private key as unencrypted PKCS #8 PEM, for a file of mode 0600."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def jwks(self) -> str:
        """Return the public key as a JWK Set (RFC 7517 §5), the content of a `jwks_file`."""
        algorithm = algorithm_for(self._key)
        jwk = dict(ALGORITHMS[algorithm].to_jwk(self._key.public_key(), as_dict=True))
        jwk.pop("key_ops", None)  # RFC 7517 §4.3: not together with `use`
        return json.dumps({"keys": [jwk | {"kid": self.kid, "use": "sig", "alg": algorithm}]})

    def issue_root(  # noqa: PLR0913 - one keyword for each claim a caller may set
        self,
        *,
        subject: str,
        actor: SpiffeId,
        scope: Collection[str],
        lifetime_s: int = LIFETIME_S,
        hops: int = 0,
        details: Sequence[Mapping[str, object]] | None = None,
        purpose: str | None = None,
        txn: str | None = None,
        prior_actors: Sequence[SpiffeId] = (),
        now: float | None = None,
    ) -> str:
        """Return a `Txn-Token` that lets `actor` act for `subject`.

        `hops` is how many links may follow (`dlg`); `prior_actors` become inner `act` entries,
        oldest first; `now` is in Unix seconds, the system clock by default.
        """
        issued_at = int(time.time() if now is None else now)
        payload: dict[str, object] = {
            "iss": self.issuer,
            "aud": self.trust_domain.uri,
            "iat": issued_at,
            "exp": issued_at + lifetime_s,
            "txn": txn or str(uuid.uuid4()),
            "jti": secrets.token_urlsafe(16),
            "sub": subject,
            "scope": " ".join(sorted(set(scope))),
            "req_wl": str(actor),
            "act": _act((*prior_actors, actor)),
            "dlg": hops,
        }
        if details is not None:
            payload["authorization_details"] = [dict(entry) for entry in details]
        if purpose is not None:
            payload["tctx"] = {"purpose": purpose}
        header = {"alg": algorithm_for(self._key), "typ": ROOT_TYPE, "kid": self.kid}
        return sign(header, payload, self._key)


def _act(actors: Sequence[SpiffeId]) -> dict[str, object]:
    """Nest `actors`, oldest first, as RFC 8693 §4.1 has them: the current one outermost."""
    nested: dict[str, object] = {}
    for actor in actors:
        entry: dict[str, object] = {"iss": actor.trust_domain.uri, "sub": str(actor)}
        nested = entry | ({"act": nested} if nested else {})
    return nested
