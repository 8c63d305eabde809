"""The one immutable value that a decision may depend on besides the request and the time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Protocol

from authz_server.core.arguments import Declaration
from authz_server.core.attributes import Attributes
from authz_server.core.callers import CallerPolicy
from authz_server.core.chain import DelegationPolicy
from authz_server.core.chain_cache import ChainCache
from authz_server.core.decision import Evaluation
from authz_server.core.enforcement import Mode
from authz_server.core.identities import Inventory
from authz_server.core.spiffe import TrustDomain
from authz_server.core.trust import TrustMaterial


class Policy(Protocol):
    """One compiled policy bundle. `policy.bundle.PolicyBundle` is the implementation."""

    @property
    def name(self) -> str:
        """Name of the bundle, the value of the `bundle` context extension."""

    @property
    def domain(self) -> str:
        """Enforcement domain: application, infrastructure, data or ai_workload."""

    @property
    def revision(self) -> str:
        """Digest of the bundle's files; equal files give equal revisions."""

    @property
    def arguments(self) -> Declaration:
        """Which arguments its rules read out of a request's body, and where they are in it."""

    @property
    def approver_groups(self) -> frozenset[str]:
        """Groups that its rules may ask for an approval."""

    def evaluate(self, attributes: Attributes) -> Evaluation:
        """Judge every party the bundle names; the strictest verdict wins. Never raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocations:
    """What has been taken back, by kind of handle.

    `revision` is the ledger's: it grows with every revocation added or removed. `good_until` is
    when this state is too old to decide by; None where it does not age. Neither is content.
    """

    txn: frozenset[str] = frozenset()
    jti: frozenset[str] = frozenset()
    spiffe_id: frozenset[str] = frozenset()
    subject: frozenset[str] = frozenset()
    kid: frozenset[str] = frozenset()
    revision: int = 0
    good_until: datetime | None = None

    @property
    def count(self) -> int:
        """How many handles are revoked."""
        return sum(map(len, (self.txn, self.jti, self.spiffe_id, self.subject, self.kid)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Compiled policies, trust, inventory and revocations under one revision.

    `chains` verifies delegation chains and remembers good ones; it is shared by successive
    snapshots and keyed by trust revision, so it never changes what a decision says.

    `revision` is `<trust revision>.<policy revision>`-like text that names this exact content, so
    a recorded decision can be replayed.
    """

    revision: str
    trust_domain: TrustDomain
    trust: TrustMaterial
    delegation: DelegationPolicy
    inventory: Inventory
    policies: Mapping[str, Policy]
    chains: ChainCache = field(repr=False)
    callers: CallerPolicy = field(default_factory=CallerPolicy)
    admit_unregistered: bool = False
    bind_txn: bool = False
    revocations: Revocations = field(default_factory=Revocations)
    modes: Mapping[str, Mode] = field(default_factory=lambda: MappingProxyType({}))

    def mode_of(self, bundle: str) -> Mode:
        """Return the mode of a policy bundle; one that is not listed, or not loaded, enforces."""
        return self.modes.get(bundle, Mode.ENFORCE) if bundle in self.policies else Mode.ENFORCE

    @property
    def shadowed(self) -> tuple[str, ...]:
        """The names of the bundles whose verdicts are not enforced, sorted."""
        return tuple(sorted(name for name in self.policies if self.mode_of(name) is Mode.SHADOW))
