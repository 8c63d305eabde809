"""Inputs of a snapshot that change without any file: live trust bundles and their like."""

from collections.abc import Iterable
from typing import Protocol

from authz_server.core.snapshot import Snapshot


class LiveInput(Protocol):
    """One source whose present state belongs into every snapshot.

    The owner calls `Reloader.renew` after a change, from any thread.
    """

    def apply(self, snapshot: Snapshot) -> Snapshot:
        """Return `snapshot` with this source's present state in it. Never raises."""


def with_inputs(snapshot: Snapshot, inputs: Iterable[LiveInput]) -> Snapshot:
    """Return `snapshot`, made of files alone, with the state of every one of `inputs`."""
    for source in inputs:
        snapshot = source.apply(snapshot)
    return snapshot
