"""Who takes part: caller, actors and subject, as the inventory knows them."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final

from authz_server.core.attributes import (
    ChainAttributes,
    Kind,
    PartyAttributes,
    Role,
    no_attributes,
)
from authz_server.core.callers import ProvedCaller, prove_caller
from authz_server.core.chain import BoundChain, VerifiedChain
from authz_server.core.decision import ChainRecord, HopRecord, PrincipalRecord
from authz_server.core.errors import InvalidValueError, Reason, RequestFault
from authz_server.core.identities import Identity, Inventory
from authz_server.core.request import AccessRequest
from authz_server.core.snapshot import Snapshot
from authz_server.core.spiffe import SpiffeId

# draft-mcguinness-oauth-actor-profile: what an actor is. Values it does not define say nothing.
_KINDS: Final[Mapping[str, frozenset[Kind]]] = MappingProxyType(
    {
        "ai_agent": frozenset({Kind.AGENT}),
        "service": frozenset({Kind.SERVICE, Kind.TOOL, Kind.PROXY}),
        "user": frozenset({Kind.HUMAN}),
    }
)
# Also what `identities borrowed` looks for in the ledger.
PROFILE_CONTRADICTED: Final = "the issuer and the inventory disagree on what the first actor is"
_NO_CHAIN = ChainAttributes(present=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The principal: proved by `callers`, described by the inventory."""

    spiffe_id: SpiffeId
    proof: ProvedCaller
    attributes: PartyAttributes
    record: PrincipalRecord
    registered: bool

    def require_registered(self, snapshot: Snapshot) -> None:
        """Raise `RequestFault` unless the inventory knows the caller or admits strangers."""
        if not (self.registered or snapshot.admit_unregistered):
            raise RequestFault(
                Reason.UNREGISTERED_IDENTITY, "the caller is not in the identity inventory"
            )


def identify_caller(request: AccessRequest, snapshot: Snapshot, now: datetime) -> Caller:
    """Return who calls, by certificate, through a trusted proxy, or by bearer token.

    Raises `RequestFault` as `callers.prove_caller` does. Signature and expiry of the certificate
    are Envoy's to check at the handshake; the PDP is never shown the chain.
    """
    proof = prove_caller(request, snapshot.callers, snapshot.trust, now)
    spiffe_id = proof.spiffe_id
    identity = snapshot.inventory.find(spiffe_id)
    attributes = _workload(spiffe_id, identity, Role.CALLER, assurance=proof.assurance)
    return Caller(
        spiffe_id=spiffe_id,
        proof=proof,
        attributes=attributes,
        registered=identity is not None,
        record=PrincipalRecord(
            spiffe_id=str(spiffe_id),
            trust_domain=spiffe_id.trust_domain.name,
            kind=attributes.kind,
            assurance=proof.assurance,
            certificate_sha256=proof.certificate_sha256,
            proxies=tuple(map(str, proof.proxies)),
        ),
    )


def chain_parties(
    bound: BoundChain | None, caller: Caller, snapshot: Snapshot
) -> tuple[tuple[PartyAttributes, ...], PartyAttributes | None]:
    """Return the chain's actors, root first, and its subject.

    Raises `RequestFault`: `UNREGISTERED_IDENTITY` for an actor that the inventory does not know
    (registration is required of the principal and of every actor), `CHAIN_BROKEN` for a first actor
    that the issuer took for something else than the inventory does.
    """
    if bound is None:
        return (), None
    inventory = snapshot.inventory
    _check_profile(bound, inventory)
    actors = []
    for spiffe_id in bound.actors:
        identity = inventory.find(spiffe_id)
        if identity is None and not snapshot.admit_unregistered:
            raise RequestFault(
                Reason.UNREGISTERED_IDENTITY, "an actor of the chain is not in the inventory"
            )
        assurance = caller.proof.assurance if spiffe_id == caller.spiffe_id else None
        actors.append(_workload(spiffe_id, identity, Role.ACTOR, assurance=assurance))
    return tuple(actors), _subject(bound.authority.subject, inventory)


def _check_profile(bound: BoundChain, inventory: Inventory) -> None:
    # SECURITY: the issuer authenticated the first actor. If it met an AI agent where the inventory
    # has a service, either is wrong or the agent goes by a borrowed identity.
    expected = _KINDS.get(bound.chain.actor_profile or "")
    identity = inventory.find(bound.chain.root.delegate)
    if expected and identity is not None and identity.kind not in expected:
        raise RequestFault(Reason.CHAIN_BROKEN, PROFILE_CONTRADICTED)


def _workload(
    spiffe_id: SpiffeId, identity: Identity | None, role: Role, *, assurance: str | None
) -> PartyAttributes:
    return PartyAttributes(
        id=str(spiffe_id),
        kind=identity.kind.value if identity else None,
        role=role.value,
        trust_domain=spiffe_id.trust_domain.name,
        path=spiffe_id.path,
        owner=identity.owner if identity else None,
        purpose=identity.purpose if identity else None,
        labels=identity.labels if identity else no_attributes(),
        assurance=assurance,
    )


def _subject(subject: str, inventory: Inventory) -> PartyAttributes:
    """Return the subject; one that no entry matches is taken as human (interface section 4)."""
    if subject.startswith("spiffe:"):
        with contextlib.suppress(InvalidValueError):
            spiffe_id = SpiffeId.parse(subject)
            return _workload(spiffe_id, inventory.find(spiffe_id), Role.SUBJECT, assurance=None)
    identity = inventory.find_subject(subject)
    if identity is None:
        return PartyAttributes(id=subject, kind=Kind.HUMAN.value, role=Role.SUBJECT.value)
    return PartyAttributes(
        id=subject,
        kind=identity.kind.value,
        role=Role.SUBJECT.value,
        owner=identity.owner,
        purpose=identity.purpose,
        labels=identity.labels,
    )


def chain_attributes(bound: BoundChain | None, now_s: int) -> ChainAttributes:
    """Return what a matcher may read of the chain."""
    if bound is None:
        return _NO_CHAIN
    chain, authority = bound.chain, bound.authority
    actors = tuple(map(str, bound.actors))
    return ChainAttributes(
        present=True,
        assurance=bound.assurance,
        mode=bound.mode,
        depth=len(actors),
        subject=authority.subject,
        subject_issuer=chain.subject_issuer,
        actors=actors,
        leaf=actors[-1],
        scope=authority.scope,
        purpose=chain.purpose,
        txn=authority.txn,
        age_s=now_s - chain.root.issued_at,
        expires_in_s=authority.expires_at - now_s,
    )


def chain_record(
    chain: VerifiedChain | None, bound: BoundChain | None, inventory: Inventory
) -> ChainRecord | None:
    """Return the chain for the record; `bound` is None while the caller is not known to own it."""
    if chain is None:
        return None
    root = chain.root
    authority = bound.authority if bound else chain.grants[-1]
    actors = bound.actors if bound else tuple(grant.delegate for grant in chain.grants)
    return ChainRecord(
        subject=root.subject,
        subject_issuer=chain.subject_issuer,
        actors=tuple(map(str, actors)),
        txn=root.txn,
        assurance=bound.assurance if bound else "none",
        mode=bound.mode if bound else "none",
        token_sha256=tuple(grant.token_sha256 for grant in chain.grants),
        scope=tuple(sorted(authority.scope)),
        purpose=chain.purpose,
        hops=tuple(
            HopRecord(
                delegator=grant.delegator,
                delegate=str(grant.delegate),
                proof=grant.proof,
                scope=tuple(sorted(grant.scope)),
                audience=tuple(sorted(grant.audience)),
                issued_at=grant.issued_at,
                expires_at=grant.expires_at,
                owner=_owner(inventory, grant.delegate),
            )
            for grant in chain.grants
        ),
    )


def _owner(inventory: Inventory, spiffe_id: SpiffeId) -> str | None:
    identity = inventory.find(spiffe_id)
    return identity.owner if identity else None
