"""A trust domain, an issuer and valid chains to bend: what the delegation tests share.

Everything is minted at import, at a fixed instant; nothing is stored. `Chain` is a valid chain as
data: change a claim, sign again, and see what the verifier says.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.agent.signing import algorithm_for, sign
from authz_server.agent.svid import SigningKey, Svid
from authz_server.core import delegation
from authz_server.core.chain import DelegationPolicy, PresentedChain, VerifiedChain
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.jose import encode_base64url
from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.core.trust import Issuer, TrustMaterial
from authz_server.demo.authority import TrustDomainAuthority, rsa_key

NOW: Final = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
SECOND: Final = int(NOW.timestamp())
DOMAIN: Final = TrustDomain.parse("td.example")
PARTNER: Final = TrustDomain.parse("partner.example")
STRANGER: Final = TrustDomain.parse("stranger.example")
STS: Final = "https://sts.td.example"
SUBJECT: Final = "alice@example.org"
TXN: Final = "9f0c2b6e-6f0a-4f0e-9b77-0d8f4d5c1e11"
CRM: Final = "https://crm.td.example"
MAIL: Final = "https://mail.td.example"
SCOPE: Final = "crm.read crm.export tickets.read"
DETAIL: Final[Mapping[str, object]] = {
    "type": "mcp_tool",
    "locations": [CRM],
    "actions": ["tools/call", "tools/list"],
    "identifier": "crm_export",
}


def workload(name: str, domain: TrustDomain = DOMAIN) -> SpiffeId:
    """Return the id of a workload by its name."""
    return SpiffeId.parse(f"{domain.uri}/{name}")


ASSISTANT, RESEARCH, TOOL = (
    workload("agent/assistant"),
    workload("agent/research"),
    workload("tool/crm"),
)
AUTHORITY: Final = TrustDomainAuthority.create(DOMAIN, now=NOW)
PARTNER_AUTHORITY: Final = TrustDomainAuthority.create(PARTNER, now=NOW)
ROOT_KEY: Final = ec.generate_private_key(ec.SECP256R1())
ISSUER: Final = DevelopmentIssuer(issuer=STS, trust_domain=DOMAIN, key=ROOT_KEY, kid="sts-1")
POLICY: Final = DelegationPolicy(require=True, delegator_trust_domains=frozenset({DOMAIN, PARTNER}))
TRUST: Final = TrustMaterial(
    revision="r1",
    bundles={DOMAIN: AUTHORITY.bundle, PARTNER: PARTNER_AUTHORITY.bundle},
    issuers={
        STS: Issuer(
            issuer=STS,
            algorithms=frozenset({"ES256"}),
            max_lifetime_s=300,
            keys={"sts-1": ROOT_KEY.public_key()},
        )
    },
)


@cache
def svid(spiffe_id: SpiffeId) -> Svid:
    """Return the one SVID of a workload, from its own domain's authority."""
    authority = {DOMAIN: AUTHORITY, PARTNER: PARTNER_AUTHORITY}[spiffe_id.trust_domain]
    return authority.issue_svid(spiffe_id, now=NOW)


@cache
def rsa_2048() -> rsa.RSAPrivateKey:
    """Return the one RSA key of the test run; they are slow to make."""
    return rsa_key(2048)


def root_claims(**changes: object) -> dict[str, object]:
    """Return the claims of a valid root, with changes; None removes a claim."""
    claims: dict[str, object] = {
        "iss": STS,
        "aud": DOMAIN.uri,
        "iat": SECOND,
        "exp": SECOND + 300,
        "txn": TXN,
        "jti": "root-1",
        "sub": SUBJECT,
        "scope": SCOPE,
        "req_wl": str(ASSISTANT),
        "act": {"iss": DOMAIN.uri, "sub": str(ASSISTANT), "sub_profile": "ai_agent"},
        "authorization_details": [DETAIL],
        "tctx": {"purpose": "support-case", "case": "C-4711"},
        "dlg": 3,
    }
    return _changed(claims, changes)


def root_token(
    claims: Mapping[str, object] | None = None,
    *,
    key: SigningKey = ROOT_KEY,
    **header: object,
) -> str:
    """Return a signed root; header members can be set, or removed with None."""
    members = {"alg": algorithm_for(key), "typ": "txntoken+jwt", "kid": "sts-1"}
    return sign(_changed(members, header), root_claims() if claims is None else claims, key)


def link_claims(parent: str, *, by: SpiffeId, to: SpiffeId, **changes: object) -> dict[str, object]:
    """Return the claims of a valid link after `parent`, with changes; None removes a claim."""
    claims: dict[str, object] = {
        "iss": str(by),
        "sub": SUBJECT,
        "txn": TXN,
        "may_act": {"sub": str(to), "sub_profile": "ai_agent"},
        "aud": [CRM],
        "scope": "crm.read",
        "iat": SECOND,
        "exp": SECOND + 240,
        "jti": f"link-{to.path}",
        "prh": encode_base64url(hashlib.sha256(parent.encode()).digest()),
        "dlg": 0,
    }
    return _changed(claims, changes)


def link_token(claims: Mapping[str, object], signer: Svid, **header: object) -> str:
    """Return a link signed with the SVID of `signer`; header members can be set or removed."""
    members = {
        "alg": algorithm_for(signer.key),
        "typ": "delegation-link+jwt",
        "x5c": [
            base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
            for certificate in signer.certificates
        ],
    }
    return sign(_changed(members, header), claims, signer.key)


def link(parent: str, *, by: SpiffeId, to: SpiffeId, **changes: object) -> str:
    """Return a link of `by` to `to` after `parent`, signed with the SVID of `by`."""
    return link_token(link_claims(parent, by=by, to=to, **changes), svid(by))


@cache
def three_hops() -> tuple[str, str, str]:
    """Return a valid chain: root to the assistant, then the research agent, then the tool."""
    root = root_token()
    first = link(
        root, by=ASSISTANT, to=RESEARCH, dlg=1, aud=[CRM, MAIL], scope="crm.read tickets.read"
    )
    return root, first, link(first, by=RESEARCH, to=TOOL)


def verify(
    *tokens: str,
    now: datetime = NOW,
    policy: DelegationPolicy = POLICY,
    trust: TrustMaterial = TRUST,
) -> VerifiedChain:
    """Verify a chain, root first."""
    return delegation.verify(
        PresentedChain(root=tokens[0], links=tokens[1:]),
        trust=trust,
        policy=policy,
        trust_domain=DOMAIN,
        now=now,
    )


def reason_of(call: Callable[[], object]) -> Reason | None:
    """Return the reason `call` is refused with, or None when it is not."""
    try:
        call()
    except RequestFault as caught:
        fault = caught
    else:
        return None
    assert 0 < len(fault.detail) < 200, "a denial says why, in a sentence"
    assert not fault.detail.endswith(".")
    return fault.reason


def reason(*tokens: str, now: datetime = NOW, policy: DelegationPolicy = POLICY) -> Reason | None:
    """Return the reason a chain is refused with, or None when it verifies."""
    return reason_of(lambda: verify(*tokens, now=now, policy=policy))


def _changed(members: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    merged = {**members, **changes}
    return {name: value for name, value in merged.items() if value is not None}
