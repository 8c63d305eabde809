"""The delegations of a story, as data, and the minting of them.

A `Grant` says what the STS gave to whom, and how it was handed on. The honest links are minted
with the same `Delegator` that an agent's code uses; a forged one is signed by hand, because that
class refuses to hand on what it does not hold.
"""

import base64
import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from authz_server.agent.delegator import Delegator
from authz_server.agent.signing import algorithm_for, sign
from authz_server.core.delegation import CHAIN_HEADER, ROOT_HEADER
from authz_server.core.delegation_link import LINK_TYPE
from authz_server.core.jose import CompactJws, encode_base64url
from authz_server.core.root_grant import ROOT_TYPE
from authz_server.demo.mesh import Mesh

_LIFETIME_S = 300


class Root(StrEnum):
    """What stands at the head of the request."""

    AGENT = "a root grant made out to an agent"
    PERSON = "a root grant that names no agent"
    ACCESS_TOKEN = "a person's own access token"  # noqa: S105


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One hop: to the workload at path `to`, for some audiences and scopes.

    `forged`: signed without a look at what the delegator holds. `cut`: minted, and then left out
    of what is presented.
    """

    to: str
    audience: tuple[str, ...]
    scope: tuple[str, ...]
    forged: bool = False
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A delegation by `subject` to the workload at path `agent`, then along `links`."""

    subject: str
    agent: str
    scope: tuple[str, ...]
    purpose: str | None = None
    root: Root = Root.AGENT
    links: tuple[Link, ...] = ()


class Wallet:
    """Mints each grant at first use, and hands out the headers that present it."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._minted: dict[Grant, Mapping[str, str]] = {}

    def headers(self, grant: Grant | None) -> Mapping[str, str]:
        """Return the request headers that present `grant`; none for None."""
        if grant is None:
            return {}
        if grant not in self._minted:
            self._minted[grant] = self._mint(grant)
        return self._minted[grant]

    def _mint(self, grant: Grant) -> dict[str, str]:
        match grant.root:
            case Root.ACCESS_TOKEN:
                return {"authorization": f"Bearer {self._without_actor(grant, 'at+jwt')}"}
            case Root.PERSON:
                return {ROOT_HEADER: self._without_actor(grant, ROOT_TYPE)}
            case Root.AGENT:
                return self._chain(grant)

    def _chain(self, grant: Grant) -> dict[str, str]:
        root = self._mesh.exchange(
            grant.agent,
            grant.subject,
            scope=grant.scope,
            purpose=grant.purpose,
            hops=len(grant.links),
        )
        chain: list[str] = []
        delegator = grant.agent
        for position, link in enumerate(grant.links):
            hops = len(grant.links) - position - 1
            mint = self._forge if link.forged else self._link
            chain.append(mint(delegator, root, chain, link, hops))
            delegator = link.to
        shown = [token for token, link in zip(chain, grant.links, strict=True) if not link.cut]
        return {ROOT_HEADER: root} | ({CHAIN_HEADER: ", ".join(shown)} if shown else {})

    def _link(self, delegator: str, root: str, chain: list[str], link: Link, hops: int) -> str:
        """Return the link that the delegator's own code would mint."""
        return Delegator(self._mesh.svid(delegator)).link(
            root,
            chain,
            to=self._mesh.plan.spiffe_id(link.to),
            audience=link.audience,
            scope=link.scope,
            hops=hops,
        )

    def _forge(self, delegator: str, root: str, chain: list[str], link: Link, hops: int) -> str:
        """Return a link with a true signature over whatever the delegator would like to hold."""
        svid = self._mesh.svid(delegator)
        parent = (chain or [root])[-1]
        claims = CompactJws.parse(root).payload
        leaf = base64.b64encode(svid.leaf.public_bytes(Encoding.DER)).decode()
        header = {"alg": algorithm_for(svid.key), "typ": LINK_TYPE, "x5c": [leaf]}
        payload = {
            "iss": str(svid.spiffe_id),
            "sub": claims["sub"],
            "txn": claims["txn"],
            "may_act": {"sub": str(self._mesh.plan.spiffe_id(link.to))},
            "aud": list(link.audience),
            "scope": " ".join(link.scope),
            "iat": int(time.time()),
            "exp": claims["exp"],
            "jti": secrets.token_urlsafe(16),
            "prh": encode_base64url(hashlib.sha256(parent.encode()).digest()),
            "dlg": hops,
        }
        return sign(header, payload, svid.key)

    def _without_actor(self, grant: Grant, kind: str) -> str:
        """Return a token that the STS really signed, for a person and no agent."""
        now = int(time.time())
        payload = {
            "iss": self._mesh.issuer.issuer,
            "aud": self._mesh.plan.trust_domain.uri,
            "sub": grant.subject,
            "scope": " ".join(grant.scope),
            "iat": now,
            "exp": now + _LIFETIME_S,
            "txn": secrets.token_urlsafe(16),
            "req_wl": str(self._mesh.plan.spiffe_id(grant.agent)),
        }
        key = load_pem_private_key(self._mesh.issuer.key_pem, password=None)
        assert isinstance(key, EllipticCurvePrivateKey), "the issuer's own key is P-256"
        header = {"alg": algorithm_for(key), "typ": kind, "kid": self._mesh.issuer.kid}
        return sign(header, payload, key)
