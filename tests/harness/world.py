"""The world the decision cases live in: a trust domain, an issuer of roots, SVIDs on demand.

Nothing is stored: every key is made in memory when a test asks for it. Tokens are signed with
PyJWT here and not with the SDK, because most cases need tokens the SDK refuses to make.
"""

import base64
import functools
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from authz_server.agent.svid import Svid
from authz_server.core.chain import DelegationPolicy
from authz_server.core.chain_cache import ChainCache
from authz_server.core.identities import Inventory
from authz_server.core.jose import parse_jwks
from authz_server.core.snapshot import Policy, Revocations, Snapshot
from authz_server.core.spiffe import TrustDomain
from authz_server.core.trust import Issuer, TrustMaterial
from authz_server.demo.authority import TrustDomainAuthority
from authz_server.identity.file_content import FileContent
from authz_server.identity.inventory_file import parse_inventory
from authz_server.policy.bundle import load_bundles

CASES = Path(__file__).parent.parent / "cases"
DOMAIN = TrustDomain.parse("cases.example.org")
ISSUER = "https://sts.cases.example.org"
KID = "sts-1"
PEOPLE = {"alice": "alice@example.org", "bob": "bob@example.org"}

Claims = Mapping[str, Any]


@functools.cache
def shipped_policies() -> Mapping[str, Policy]:
    """Load the bundles of the cases once."""
    return load_bundles(CASES / "bundles")


@functools.cache
def inventory() -> Inventory:
    """Load the inventory of the cases once."""
    path = CASES / "identities.yaml"
    return parse_inventory(FileContent(path=path, data=path.read_bytes()))


@dataclass(kw_only=True)
class World:
    """One trust domain, its issuer, and another trust domain that nobody federated with.

    `now` is when tokens are made; certificates are valid around the real time as well, because
    a real Envoy checks them.
    """

    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    authority: TrustDomainAuthority = field(
        default_factory=lambda: TrustDomainAuthority.create(DOMAIN)
    )
    other: TrustDomainAuthority = field(
        default_factory=lambda: TrustDomainAuthority.create("other.example.org")
    )
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    _svids: dict[str, Svid] = field(default_factory=dict)

    def svid(self, name: str) -> Svid:
        """Return the SVID of `agent/x` (or of a whole id), the same one each time."""
        if name not in self._svids:
            self._svids[name] = self.authority.issue_svid(spiffe_id(name))
        return self._svids[name]

    def jwks(self) -> bytes:
        """Return the issuer's public key as a JWK Set."""
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        jwk.pop("key_ops", None)
        return json.dumps({"keys": [{**jwk, "kid": KID, "use": "sig", "alg": "ES256"}]}).encode()

    def snapshot(self, revocations: Revocations | None = None, **changes: Any) -> Snapshot:
        """Return a snapshot of this world with the bundles of the cases."""
        issuer = Issuer(
            issuer=ISSUER,
            algorithms=frozenset({"ES256"}),
            max_lifetime_s=300,
            keys=parse_jwks(self.jwks()),
        )
        trust = TrustMaterial(
            revision=hashlib.sha256(self.jwks()).hexdigest()[:16],
            bundles={DOMAIN: self.authority.bundle},
            issuers={ISSUER: issuer},
        )
        values: dict[str, Any] = {
            "revision": "test",
            "trust_domain": DOMAIN,
            "trust": trust,
            "delegation": DelegationPolicy(
                require=True, delegator_trust_domains=frozenset({DOMAIN})
            ),
            "inventory": inventory(),
            "policies": shipped_policies(),
            "chains": ChainCache(),
            "revocations": revocations or Revocations(),
        }
        return Snapshot(**(values | changes))

    def root(self, spec: Claims) -> str:
        """Mint a root: `sub, to, scope`, and `dlg, age_s, lifetime_s, claims, header, forged`."""
        issued_at = int((self.now - timedelta(seconds=spec.get("age_s", 0))).timestamp())
        actor = spiffe_id(spec["to"])
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": DOMAIN.uri,
            "iat": issued_at,
            "exp": issued_at + spec.get("lifetime_s", 300),
            "txn": spec.get("txn", str(uuid.uuid4())),
            "jti": str(uuid.uuid4()),
            "sub": PEOPLE.get(spec["sub"], spec["sub"]),
            "scope": spec["scope"],
            "req_wl": actor,
            "act": {"iss": DOMAIN.uri, "sub": actor},
            "dlg": spec.get("dlg", 0),
            "tctx": {"purpose": "support-case"},
        }
        header = {"alg": "ES256", "typ": "txntoken+jwt", "kid": KID}
        key = ec.generate_private_key(ec.SECP256R1()) if spec.get("forged") else self.key
        return sign(header | spec.get("header", {}), changed(claims, spec), key)

    def link(self, spec: Claims, parent: str, root: str) -> str:
        """Mint a link after `parent`: `by, to, audience, scope`, and the changes of `root`."""
        first = jwt.decode(root, options={"verify_signature": False})
        before = jwt.decode(parent, options={"verify_signature": False})
        issued_at = int((self.now - timedelta(seconds=spec.get("age_s", 0))).timestamp())
        svid = self.svid(spec.get("signed_by", spec["by"]))
        claims: dict[str, Any] = {
            "iss": spiffe_id(spec["by"]),
            "sub": first["sub"],
            "txn": first["txn"],
            "may_act": {"sub": spiffe_id(spec["to"])},
            "aud": spec["audience"],
            "scope": spec["scope"],
            "iat": issued_at,
            "exp": min(issued_at + spec.get("lifetime_s", 240), before["exp"]),
            "jti": str(uuid.uuid4()),
            "prh": hash_of(parent),
            "dlg": spec.get("dlg", max(before.get("dlg", 0) - 1, 0)),
        }
        x5c = [base64.b64encode(c.public_bytes(Encoding.DER)).decode() for c in svid.certificates]
        header = {"alg": "ES256", "typ": "delegation-link+jwt", "x5c": x5c}
        return sign(header | spec.get("header", {}), changed(claims, spec), svid.key)

    def chain(self, root: Claims, links: Sequence[Claims] = ()) -> tuple[str, ...]:
        """Mint a root and its links, root first."""
        tokens = [self.root(root)]
        for spec in links:
            tokens.append(self.link(spec, tokens[-1], tokens[0]))
        return tuple(tokens)


def spiffe_id(name: str) -> str:
    """Return a name as a SPIFFE ID of the cases' trust domain."""
    return name if name.startswith("spiffe:") else f"{DOMAIN.uri}/{name}"


def hash_of(token: str) -> str:
    """Return what the next link's `prh` must say."""
    digest = hashlib.sha256(token.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def changed(claims: dict[str, Any], spec: Claims) -> dict[str, Any]:
    """Apply `spec["claims"]`; a null removes the claim."""
    merged = claims | spec.get("claims", {})
    return {name: value for name, value in merged.items() if value is not None}


def sign(header: Mapping[str, Any], claims: Mapping[str, Any], key: Any) -> str:
    """Sign whatever is asked for."""
    extra = {name: value for name, value in header.items() if name not in {"alg"}}
    return jwt.encode(dict(claims), key, algorithm=header["alg"], headers=extra)
