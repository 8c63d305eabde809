"""Snapshots whose only content is trust: what listeners and live sources look at."""

from types import MappingProxyType

from authz_server.core.chain import DelegationPolicy
from authz_server.core.chain_cache import ChainCache
from authz_server.core.identities import Inventory
from authz_server.core.snapshot import Snapshot
from authz_server.core.spiffe import TrustDomain
from authz_server.core.trust import TrustBundle, TrustMaterial

DOMAIN = TrustDomain.parse("prod.example.org")


def snapshot(*bundles: TrustBundle, revision: str = "r") -> Snapshot:
    """Return a snapshot that holds `bundles` and nothing else."""
    return Snapshot(
        revision=f"{revision}.policies",
        trust_domain=DOMAIN,
        trust=TrustMaterial(
            revision=revision,
            bundles=MappingProxyType({bundle.trust_domain: bundle for bundle in bundles}),
            issuers=MappingProxyType({}),
        ),
        delegation=DelegationPolicy(require=False, delegator_trust_domains=frozenset()),
        inventory=Inventory.of([]),
        policies=MappingProxyType({}),
        chains=ChainCache(),
    )
