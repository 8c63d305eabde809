"""Load a snapshot from the files that the configuration names: everything, or every fault."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from authz_server.core.callers import CallerPolicy
from authz_server.core.chain import DelegationPolicy
from authz_server.core.chain_cache import ChainCache
from authz_server.core.enforcement import Mode
from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.identities import Inventory
from authz_server.core.snapshot import Policy, Snapshot
from authz_server.core.spiffe import TrustDomain
from authz_server.core.trust import Issuer, TrustBundle, TrustMaterial, VerificationKey
from authz_server.identity.bundle_files import TRUST_BUNDLE_BYTES_MAX, trust_bundle
from authz_server.identity.file_content import FileContent, read_all
from authz_server.identity.inventory_file import INVENTORY_BYTES_MAX, parse_inventory
from authz_server.identity.issuer_keys import JWKS_BYTES_MAX, issuer_of, keys_in_file
from authz_server.reload.bundles import load_tested_bundles
from authz_server.reload.content import fingerprint
from authz_server.reload.memo import Memo
from authz_server.reload.tables import PolicyTables
from authz_server.settings import Settings
from authz_server.settings.model import IssuerSettings

ATTEMPTS_MAX: Final = 5  # a swap takes microseconds; files that change five times are not settled
FAULTS_MAX: Final = 500  # a generated file can be wrong in every line


def load_snapshot(
    settings: Settings,
    *,
    chains: ChainCache,
    tables: PolicyTables | None = None,
    memo: Memo | None = None,
) -> Snapshot:
    """Return the snapshot made of all files that `settings` names, and of the tables these name.

    `tables` and `memo` are kept from load to load by whoever loads again. Raises
    `ConfigurationError` with the faults of all files at once, failed policy tests included; then
    nothing is loaded.

    INVARIANT: all parts were on disk together. A file that changes while others are read makes a
    mixture (new model, old policy), which is thrown away, be it sound or faulty, and read again.
    A table is read in one transaction, which no file can be part of.
    """
    with contextlib.ExitStack() as stack:
        if tables is None:
            tables = stack.enter_context(contextlib.closing(PolicyTables(os.environ)))
        sources = _Sources(tables=tables, memo=memo or Memo())
        return _settled(settings, chains, sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """What is behind the files, and what is known of them from the last load."""

    tables: PolicyTables
    memo: Memo


def _settled(settings: Settings, chains: ChainCache, sources: _Sources) -> Snapshot:
    for _ in range(ATTEMPTS_MAX):
        before = fingerprint(settings)
        faults = _Faults()
        snapshot = _snapshot(settings, chains, sources, faults)
        if fingerprint(settings) != before:
            continue
        if snapshot is None:
            raise ConfigurationError(faults.found[:FAULTS_MAX])
        return snapshot
    message = f"files changed during each of {ATTEMPTS_MAX} attempts to read them"
    raise ConfigurationError([Fault(file=str(settings.bundles.dir), message=message)])


class _Faults:
    """The faults of every part, so that one faulty part does not hide the next."""

    def __init__(self) -> None:
        self.found: list[Fault] = []

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep the faults of what is done inside, and go on after it."""
        try:
            yield
        except ConfigurationError as error:
            self.found.extend(error.faults)


def _snapshot(
    settings: Settings, chains: ChainCache, sources: _Sources, faults: _Faults
) -> Snapshot | None:
    trust = _trust(settings, faults)
    inventory, inventory_sha256 = _inventory(settings, sources, faults)
    policies = _policies(settings, sources, faults)
    if faults.found:
        return None
    delegation = _delegation_policy(settings)
    callers = _caller_policy(settings)
    admit_unregistered = settings.identity.unregistered == "allow"
    bind_txn = settings.approvals.bind_txn
    revision = _digest(
        sorted((name, policy.revision) for name, policy in policies.items()),
        sorted(settings.bundles.mode.items()),
        inventory_sha256,
        settings.trust_domain.name,
        sorted(domain.name for domain in delegation.delegator_trust_domains),
        settings.delegation.require,
        sorted(settings.delegation.limits.model_dump().items()),
        [pattern.text for pattern in callers.trusted_proxies],
        sorted(callers.jwt_svid_audiences),
        admit_unregistered,
        bind_txn,
    )
    return Snapshot(
        revision=f"{trust.revision[:16]}.{revision[:16]}",
        trust_domain=settings.trust_domain,
        trust=trust,
        delegation=delegation,
        inventory=inventory,
        policies=policies,
        chains=chains,
        callers=callers,
        admit_unregistered=admit_unregistered,
        bind_txn=bind_txn,
        modes=MappingProxyType({name: Mode(m) for name, m in settings.bundles.mode.items()}),
    )


def _trust(settings: Settings, faults: _Faults) -> TrustMaterial:
    bundles: dict[TrustDomain, TrustBundle] = {}
    issuers: dict[str, Issuer] = {}
    content: list[object] = []  # all that a proof depends on: a change makes a new revision
    for domain, paths in sorted(settings.identity.trust_bundles.files.items()):
        with faults.collecting():
            files = read_all(paths, bytes_max=TRUST_BUNDLE_BYTES_MAX)
            bundles[domain] = trust_bundle(domain, files)
            content.append((domain.name, [file.sha256 for file in files]))
    for given in sorted(settings.delegation.issuers, key=lambda issuer: issuer.issuer):
        with faults.collecting():
            # Keys that have an address are a live input: here the issuer has none yet.
            keys, sha256 = _issuer_keys(given)
            issuers[given.issuer] = issuer_of(given, keys)
            content.append((*_terms(given), sha256))
    return TrustMaterial(
        revision=_digest(*content),
        bundles=MappingProxyType(bundles),
        issuers=MappingProxyType(issuers),
    )


def _terms(given: IssuerSettings) -> tuple[object, ...]:
    """Return all that a proof depends on, besides the keys."""
    agents = sorted((client, str(agent)) for client, agent in given.agents.items())
    sets = (sorted(given.algorithms), sorted(given.audiences), agents)
    return given.issuer, given.kind, given.max_lifetime_s, given.subject_claim, *sets


def _issuer_keys(given: IssuerSettings) -> tuple[Mapping[str, VerificationKey], str]:
    if given.jwks_file is None:
        return MappingProxyType({}), ""
    file = FileContent.read(given.jwks_file, bytes_max=JWKS_BYTES_MAX)
    return keys_in_file(file, given.algorithms), file.sha256


def _inventory(settings: Settings, sources: _Sources, faults: _Faults) -> tuple[Inventory, str]:
    with faults.collecting():
        if settings.identity.inventory is not None:
            file = FileContent.read(settings.identity.inventory, bytes_max=INVENTORY_BYTES_MAX)
            key = (file.path, file.sha256)
            return sources.memo.part(key, lambda: parse_inventory(file)), file.sha256
    return Inventory.of([]), ""


def _policies(settings: Settings, sources: _Sources, faults: _Faults) -> Mapping[str, Policy]:
    root = settings.bundles.dir
    with faults.collecting():
        policies = load_tested_bundles(root, tables=sources.tables, memo=sources.memo)
        unknown = sorted(settings.bundles.mode.keys() - policies.keys())
        if unknown:
            named = ", ".join(f"`{name}`" for name in unknown)
            message = f"no policy bundle is called {named}, as `bundles.mode` has it"
            raise ConfigurationError([Fault(file=str(root), message=message)])
        return policies
    return {}


def _delegation_policy(settings: Settings) -> DelegationPolicy:
    given = settings.delegation
    domains = given.delegator_trust_domains
    return DelegationPolicy(
        require=given.require,
        delegator_trust_domains=frozenset((settings.trust_domain,) if domains is None else domains),
        **given.limits.model_dump(),
    )


def _caller_policy(settings: Settings) -> CallerPolicy:
    identity = settings.identity
    return CallerPolicy(
        trusted_proxies=identity.trusted_proxies,
        jwt_svid_audiences=frozenset(identity.bearer.jwt_svid.audiences),
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
