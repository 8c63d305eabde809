"""What the last load parsed, so that the next one need not parse again what did not change."""

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

T = TypeVar("T")


class Memo:
    """Keeps the parts of one load for the next, and no longer. One thread uses it at a time.

    A key holds the digest of all that the part is made of. INVARIANT: parts are immutable; they
    are shared by successive snapshots.
    """

    def __init__(self) -> None:
        self._last: dict[Hashable, object] = {}
        self._now: dict[Hashable, object] = {}

    def part(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what was made under `key`, or make it. What `make` raises is not remembered."""
        found = self._now.get(key, self._last.get(key))
        if found is None:
            found = make()
        self._now[key] = found
        return cast(T, found)

    def turn(self) -> None:
        """End a load: forget what it had no use for."""
        self._last, self._now = self._now, {}
