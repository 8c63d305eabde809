"""Delegation chains: from header lines to the proof that this caller may act for that subject.

Three steps, apart because they depend on different things. `presented_chain` looks at bytes alone.
`verify` proves all that neither caller nor route can change, so its result can be kept
(`chain_cache`); `check_times` repeats the one part of it that time can change. `bind` ties the
chain to one caller on one route.

Wire form and order of checks: `docs/delegation.md`.
"""

import re
from datetime import datetime
from typing import Final

from authz_server.core import limits
from authz_server.core.access_token import presented_access_token, verify_access_token
from authz_server.core.chain import (
    BoundChain,
    DelegationPolicy,
    Grant,
    PresentedChain,
    VerifiedChain,
)
from authz_server.core.delegation_link import LinkContext, verify_link
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.request import Headers
from authz_server.core.root_grant import RootGrant, verify_root
from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.core.trust import RootKind, TrustMaterial

ROOT_HEADER: Final = "txn-token"
CHAIN_HEADER: Final = "delegation-chain"
_JWS = r"[A-Za-z0-9_-]++\.[A-Za-z0-9_-]++\.[A-Za-z0-9_-]++"
_ROOT = re.compile(_JWS)
# RFC 9651 §4.2.1: a List, of Tokens without parameters. A compact JWS is an sf-token: base64url of
# a JSON object begins with a letter, and the rest are tchar. Blanks as the RFC has them.
_LIST = re.compile(rf" *+(?:(?=[A-Za-z]){_JWS}(?:[ \t]*+,[ \t]*+(?=[A-Za-z]){_JWS})*+)?+ *+")


def presented_chain(headers: Headers, policy: DelegationPolicy) -> PresentedChain | None:
    """Return the tokens a request carries, or None when it carries none.

    Counts and sizes come first, before anything is decoded.

    Raises `RequestFault`: `DUPLICATE_HEADER` for a repeated field line, or a comma in `Txn-Token`
    (two lines joined on the way); `CHAIN_BROKEN` for links without a root; `OVERSIZE`;
    `CHAIN_TOO_DEEP` for too many links; `MALFORMED_TOKEN` outside the grammar.
    """
    root = headers.one(ROOT_HEADER)
    # RFC 9651 lets a List span field lines. We do not: nothing of ours writes two, and whoever
    # reads only the first sees another chain.
    chain = headers.one(CHAIN_HEADER)
    if root is None:
        if chain is None:
            return None
        raise RequestFault(Reason.CHAIN_BROKEN, "request has delegation links but no root grant")
    _check_sizes(root, chain or b"", policy)
    return PresentedChain(root=_parse_root(root), links=_parse_links(chain or b""))


def presented_with_access_token(
    headers: Headers, policy: DelegationPolicy
) -> tuple[PresentedChain | None, PresentedChain | None]:
    """Return the chain that a request carries, and the access token beside it; None for neither.

    An access token alone is the chain's root. Beside a `Txn-Token` it is only another proof of
    the same (`check_beside`). Call it only where access tokens are root grants, and never for a
    token that proves who the caller is.

    Raises `RequestFault` as `presented_chain` and `presented_access_token`.
    """
    token = presented_access_token(headers)
    if token is None or headers.lines(ROOT_HEADER):
        chain = presented_chain(headers, policy)
        beside = token and PresentedChain(root=token, links=(), kind=RootKind.ACCESS_TOKEN)
        return chain, beside or None
    links = headers.one(CHAIN_HEADER) or b""
    _check_sizes(token.encode("ascii"), links, policy)
    chain = PresentedChain(root=token, links=_parse_links(links), kind=RootKind.ACCESS_TOKEN)
    return chain, None


def _check_sizes(root: bytes, chain: bytes, policy: DelegationPolicy) -> None:
    if len(root) > limits.TOKEN_BYTES_MAX or len(root) + len(chain) > policy.total_bytes_max:
        raise RequestFault(Reason.OVERSIZE, "delegation headers are too long")
    if b"," in root:
        raise RequestFault(Reason.DUPLICATE_HEADER, "header `txn-token` holds more than one token")
    links = chain.split(b",")
    if len(links) > policy.links_max:
        raise RequestFault(Reason.CHAIN_TOO_DEEP, "delegation chain has too many links")
    if any(len(link.strip(b" \t")) > limits.TOKEN_BYTES_MAX for link in links):
        raise RequestFault(Reason.OVERSIZE, "delegation link is too long")


def _parse_root(line: bytes) -> str:
    text = line.decode("latin-1")  # cannot fail; the pattern admits ASCII alone
    if not _ROOT.fullmatch(text):
        raise RequestFault(Reason.MALFORMED_TOKEN, "header `txn-token` is not one compact JWS")
    return text


def _parse_links(line: bytes) -> tuple[str, ...]:
    text = line.decode("latin-1")
    if not _LIST.fullmatch(text):
        raise RequestFault(
            Reason.MALFORMED_TOKEN, "header `delegation-chain` is not a list of compact JWSs"
        )
    return tuple(link.strip(" \t") for link in text.split(",")) if text.strip(" ") else ()


def verify(
    presented: PresentedChain,
    *,
    trust: TrustMaterial,
    policy: DelegationPolicy,
    trust_domain: TrustDomain,
    now: datetime,
) -> VerifiedChain:
    """Return the chain, with everything proved that depends on neither caller nor route.

    Each token is verified, and found in time, before the next is looked at.

    Raises `RequestFault` and nothing else; see `verify_root`, `verify_link` and `check_times`.
    """
    root = _verified_root(presented, trust, trust_domain)
    _check_depth(root, presented, policy)
    _check_grant_times(root.token.grant, policy.skew_s, now)
    context = LinkContext(trust=trust, policy=policy, now=now)
    tokens = [root.token]
    actors = {*root.prior_actors, str(root.token.grant.delegate)}
    for text in presented.links:
        token = verify_link(text, parent=tokens[-1], actors=frozenset(actors), context=context)
        _check_grant_times(token.grant, policy.skew_s, now)
        actors.add(str(token.grant.delegate))
        tokens.append(token)
    return VerifiedChain(
        grants=tuple(token.grant for token in tokens),
        subject_issuer=root.subject_issuer,
        purpose=root.purpose,
        prior_actors=root.prior_actors,
        actor_profile=root.actor_profile,
    )


def _verified_root(
    presented: PresentedChain, trust: TrustMaterial, trust_domain: TrustDomain
) -> RootGrant:
    match presented.kind:
        case RootKind.TXN_TOKEN:
            return verify_root(presented.root, issuers=trust.issuers, trust_domain=trust_domain)
        case RootKind.ACCESS_TOKEN:
            return verify_access_token(presented.root, issuers=trust.issuers)


def _check_depth(root: RootGrant, presented: PresentedChain, policy: DelegationPolicy) -> None:
    # draft-mcguinness-oauth-actor-profile §4.6: deeper chains MUST be rejected. Prior actors count.
    actors = len(root.prior_actors) + 1 + len(presented.links)
    if len(presented.links) > policy.links_max or actors > policy.actors_max:
        raise RequestFault(Reason.CHAIN_TOO_DEEP, "delegation chain has too many actors")


def check_times(chain: VerifiedChain, policy: DelegationPolicy, now: datetime) -> None:
    """Check that every grant of `chain` counts at `now`, with `policy.skew_s` of leeway.

    Certificates of signers are covered: their bounds are part of each grant's. `policy` must be
    the one `chain` was verified under.

    Raises `RequestFault`: `EXPIRED`, `NOT_YET_VALID`.
    """
    for grant in chain.grants:
        _check_grant_times(grant, policy.skew_s, now)


def _check_grant_times(grant: Grant, skew_s: int, now: datetime) -> None:
    second = now.timestamp()
    # RFC 7519 §4.1.4: on or after `exp` the token MUST NOT be accepted.
    if second >= grant.expires_at + skew_s:
        raise RequestFault(Reason.EXPIRED, "delegation has expired")
    if second < grant.not_before - skew_s:
        raise RequestFault(Reason.NOT_YET_VALID, "delegation is not valid yet")


def bind(
    chain: VerifiedChain,
    *,
    caller: SpiffeId,
    workload_id: SpiffeId | None,
    audience: str | None,
) -> BoundChain:
    """Tie `chain` to the caller and the route; return whose authority counts.

    *Exercise*: the last delegate calls, under the whole chain. *Handoff*: the last delegator calls
    the delegate itself, `workload_id`, under the chain before the link that hands on.
    `audience` is what the route answers to; a root grant is good for the whole trust domain, a link
    only for the audiences it names.

    Raises `RequestFault`: `LEAF_MISMATCH` when it is neither presentation, `WRONG_AUDIENCE`.
    """
    mode, held = _presentation(chain, caller, workload_id)
    authority = held[-1]
    if len(held) > 1 and audience not in authority.audience:
        raise RequestFault(Reason.WRONG_AUDIENCE, "delegation is not for this audience")
    return BoundChain(
        chain=chain,
        mode=mode,
        assurance=_assurance(chain),
        authority=authority,
        actors=tuple(grant.delegate for grant in held),
    )


def check_beside(access_token: VerifiedChain, bound: BoundChain) -> None:
    """Check that an access token beside the chain speaks of the same subject and caller.

    Raises `RequestFault`: `CHAIN_BROKEN` for another subject, `LEAF_MISMATCH` for a token that was
    made out to somebody else.
    """
    if access_token.root.subject != bound.authority.subject:
        raise RequestFault(Reason.CHAIN_BROKEN, "access token and `txn-token` differ in subject")
    if access_token.root.delegate != bound.actors[-1]:
        raise RequestFault(Reason.LEAF_MISMATCH, "access token was not made out to this caller")


def _presentation(
    chain: VerifiedChain, caller: SpiffeId, workload_id: SpiffeId | None
) -> tuple[str, tuple[Grant, ...]]:
    """Return the mode and the grants the caller holds."""
    leaf = chain.grants[-1]
    if leaf.delegate == caller:
        return "exercise", chain.grants
    # INVARIANT: a link's delegator is the delegate of the grant before it, so the caller holds it.
    if len(chain.grants) > 1 and chain.grants[-2].delegate == caller:
        if workload_id is not None and leaf.delegate == workload_id:
            return "handoff", chain.grants[:-1]
        raise RequestFault(
            Reason.LEAF_MISMATCH, "delegation hands on to a workload that is not behind this route"
        )
    raise RequestFault(Reason.LEAF_MISMATCH, "delegation was not made out to this caller")


def _assurance(chain: VerifiedChain) -> str:
    """Return `hop_signed` when every hop is signed by whoever handed on, else `sts`.

    The first hop is always signed by the issuer, later ones by the delegator. Prior actors are
    hops that only the issuer speaks of (RFC 8693 §4.1): the chain is as strong as its weakest.
    """
    return "sts" if chain.prior_actors else "hop_signed"
