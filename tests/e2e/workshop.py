"""Tools to bend one thing of a chain that is otherwise valid.

The caller is `narrow`; a chain with a link runs from `other` to `narrow`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from tests.e2e.forge import Forge, Svid, jws, spiffe

NARROW, OTHER, WIDE = (spiffe(f"agent/{name}") for name in ("narrow", "other", "wide"))
ABSENT = object()  # as a changed member: leave it out


@dataclass(frozen=True, slots=True)
class Workshop:
    """The forge and the callers' SVIDs, with one-line ways to bend a token."""

    forge: Forge
    narrow: Svid
    other: Svid

    def root(
        self,
        changes: dict[str, object] | None = None,
        header: dict[str, object] | None = None,
        key: ec.EllipticCurvePrivateKey | bytes | object | None = ABSENT,
    ) -> str:
        """Return a root for `narrow` with members changed."""
        return jws(
            _changed(self.forge.root_header(), header),
            _changed(self.forge.root_claims(NARROW), changes),
            self.forge.issuer_key if key is ABSENT else key,  # type: ignore[arg-type]
        )

    def parent(self, hops: int = 1) -> str:
        """Return a root for `other`, who may hand on."""
        return self.forge.root(OTHER, hops=hops)

    def link(
        self,
        parent: str,
        changes: dict[str, object] | None = None,
        header: dict[str, object] | None = None,
        signer: Svid | None = None,
    ) -> str:
        """Return a link from `other` to `narrow` with members changed."""
        signer = signer or self.other
        return jws(
            _changed(self.forge.link_header(signer), header),
            _changed(self.forge.link_claims(parent, OTHER, NARROW), changes),
            signer.key,
        )


def _changed(members: dict[str, object], changes: dict[str, object] | None) -> dict[str, object]:
    merged = members | (changes or {})
    return {name: value for name, value in merged.items() if value is not ABSENT}


Chain = tuple[str, list[str]]
Make = Callable[[Workshop], str | Chain]


def now() -> int:
    """Return Unix seconds."""
    return int(time.time())


def flipped(token: str, part: int) -> str:
    """Return the token with one character in the middle of a part changed."""
    parts = token.split(".")
    middle = len(parts[part]) // 2
    parts[part] = (
        parts[part][:middle]
        + ("A" if parts[part][middle] != "A" else "B")
        + parts[part][middle + 1 :]
    )
    return ".".join(parts)
