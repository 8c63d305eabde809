"""Trust bundles that arrive from live sources, as one input of every snapshot."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, Protocol

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from authz_server.core.snapshot import Snapshot
from authz_server.core.spiffe import TrustDomain
from authz_server.core.trust import TrustBundle, TrustMaterial

NEVER: Final = datetime.min.replace(tzinfo=UTC)  # good until then: not good at all

Clock = Callable[[], datetime]  # aware, UTC


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveBundles:
    """What a source knows now; `good_until` as in `TrustMaterial`."""

    bundles: Mapping[TrustDomain, TrustBundle]
    good_until: datetime | None = None


class BundleSource(Protocol):
    """A Workload API, a set of bundle endpoints, or a fixed value in a test."""

    @property
    def bundles(self) -> LiveBundles:
        """The present state."""


class LiveTrust:
    """Puts the bundles of every source into a snapshot made of files.

    SECURITY: a domain that a file names is proved by the file alone, and one that an earlier source
    names by that source alone: whoever feeds one source cannot add keys to a domain of another.
    """

    def __init__(self, sources: Sequence[BundleSource]) -> None:
        self._sources = sources

    def apply(self, snapshot: Snapshot) -> Snapshot:
        """Return `snapshot` with the live bundles in its trust material, under a new revision."""
        states = [source.bundles for source in self._sources]
        bundles = dict(snapshot.trust.bundles)
        for state in states:
            bundles = {**state.bundles, **bundles}
        ends = [snapshot.trust.good_until, *(state.good_until for state in states)]
        trust = TrustMaterial(
            revision=_revision(snapshot.trust.revision, bundles),
            bundles=MappingProxyType(bundles),
            issuers=snapshot.trust.issuers,
            good_until=min((end for end in ends if end is not None), default=None),
        )
        policies = snapshot.revision.partition(".")[2]
        return replace(snapshot, trust=trust, revision=f"{trust.revision[:16]}.{policies}")


def _revision(files: str, bundles: Mapping[TrustDomain, TrustBundle]) -> str:
    parts = [files, *(_digest(bundle) for _, bundle in sorted(bundles.items()))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digest(bundle: TrustBundle) -> str:
    """Return a digest that equal content has in whatever order it came."""
    parts = [a.fingerprint(SHA256()).hex() for a in bundle.authorities]
    for kid, key in bundle.jwt_keys.items():
        der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        parts.append(repr((kid, hashlib.sha256(der).hexdigest())))
    return repr((bundle.trust_domain.name, sorted(parts)))
