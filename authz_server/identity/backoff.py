"""How long to wait before the next attempt to reach a source that failed."""

import random
from typing import Final

FIRST_S: Final = 0.2
LONGEST_S: Final = 30.0  # an agent that comes back is noticed within half a minute


class Backoff:
    """Waits that double from `FIRST_S` to `LONGEST_S`, each shortened by up to half at random.

    Random, so that a fleet does not come back to a restarted agent or endpoint all at once.
    """

    def __init__(self, *, longest_s: float = LONGEST_S) -> None:
        self._longest_s = longest_s
        self._next_s = min(FIRST_S, longest_s)

    def reset(self) -> None:
        """Begin anew: the source answered."""
        self._next_s = min(FIRST_S, self._longest_s)

    def next_s(self) -> float:
        """Return the next wait in seconds."""
        wait_s = self._next_s
        self._next_s = min(2 * wait_s, self._longest_s)
        return wait_s * random.uniform(0.5, 1.0)  # noqa: S311
