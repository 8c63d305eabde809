"""The inventory of identities: who is registered, what kind they are, and who answers for them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from authz_server.core.attributes import Kind
from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import SpiffeId, SpiffeIdPattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One entry of `identities.yaml`. `id` is a SPIFFE ID, a pattern, or a subject name."""

    id: str
    kind: Kind
    owner: str | None = None
    purpose: str | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Look-up from an id to its entry; the most specific pattern wins.

    INVARIANT: no two patterns of equal specificity match one id (checked at load by
    `conflicts`), so the answer never depends on file order.
    """

    exact: Mapping[str, Identity]
    patterns: tuple[tuple[SpiffeIdPattern, Identity], ...]  # most specific first

    @classmethod
    def of(cls, identities: Iterable[Identity]) -> "Inventory":
        """Build the look-up. Raises `InvalidValueError` for an id given twice or a bad pattern."""
        exact: dict[str, Identity] = {}
        patterns: list[tuple[SpiffeIdPattern, Identity]] = []
        for identity in identities:
            if identity.id in exact or any(identity.id == p.text for p, _ in patterns):
                raise InvalidValueError(f"identity `{identity.id}` is listed twice")
            if "*" in identity.id:
                patterns.append((SpiffeIdPattern.parse(identity.id), identity))
            else:
                if identity.id.startswith("spiffe:"):
                    SpiffeId.parse(identity.id)
                exact[identity.id] = identity
        patterns.sort(key=lambda pair: pair[0].specificity, reverse=True)
        return cls(exact=MappingProxyType(exact), patterns=tuple(patterns))

    def find(self, spiffe_id: SpiffeId) -> Identity | None:
        """Return the most specific entry for a workload, or None when it is unregistered."""
        found = self.exact.get(str(spiffe_id))
        if found is not None:
            return found
        for pattern, identity in self.patterns:
            if pattern.matches(spiffe_id):
                return identity
        return None

    def find_subject(self, subject: str) -> Identity | None:
        """Return the entry of a subject that is not a workload, by exact name."""
        return self.exact.get(subject)
