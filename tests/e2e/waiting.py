"""Wait for a condition, never for a time."""

import time
from collections.abc import Callable

CONDITION_TIMEOUT_S = 30.0


def until(condition: Callable[[], bool], what: str) -> None:
    """Return once `condition()` is true; fail the test if it never comes to be."""
    deadline = time.monotonic() + CONDITION_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.01)
