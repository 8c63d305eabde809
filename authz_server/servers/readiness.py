"""Whether this server should be sent calls now, and if not, why: what probes are told.

A server that is not ready still answers every call, with denials.
"""

from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Protocol

from authz_server.core.errors import ConfigurationError, LedgerError
from authz_server.core.snapshot import Snapshot
from authz_server.servers.admin_http import Page


class PolicyState(Protocol):
    """What is loaded. `reload.holder.SnapshotHolder` is the implementation."""

    @property
    def current(self) -> Snapshot | None:
        """The serving snapshot, or None."""

    @property
    def last_error(self) -> ConfigurationError | None:
        """Why the files on disk were refused last time, or None while they serve."""


class Readiness:
    """Gathers the reasons why not.

    Written from the event loop, read from the admin threads: each attribute is one reference,
    replaced as a whole.
    """

    def __init__(
        self,
        policy: PolicyState,
        *,
        trust_fault: Callable[[Snapshot | None], str | None] = lambda _snapshot: None,
        is_watching: Callable[[], bool] = lambda: True,
    ) -> None:
        """`trust_fault` says why trust material or revocations of a snapshot cannot be decided by.

        `is_watching` says whether a change of policy or trust would be noticed.
        """
        self._policy = policy
        self._trust_fault = trust_fault
        self._is_watching = is_watching
        self._ledger_fault: str | None = None
        self._draining = False

    def drain(self) -> None:
        """Say from now on that the server is leaving."""
        self._draining = True

    def ledger(self, error: LedgerError | None) -> None:
        """Take note of how the last ledger transaction ended."""
        self._ledger_fault = None if error is None else str(error)

    @property
    def why_not(self) -> tuple[str, ...]:
        """Every reason not to be ready; empty when ready."""
        reasons = []
        if self._draining:
            reasons.append("draining")
        if self._policy.current is None:
            reasons.append("no valid policy is loaded")
        if (fault := self._trust_fault(self._policy.current)) is not None:
            reasons.append(fault)
        if not self._is_watching():
            # Whoever is taken out of the policy from now on would stay in it here.
            reasons.append("policy and trust on disk are no longer watched")
        if self._ledger_fault is not None:
            reasons.append(f"ledger unavailable: {self._ledger_fault}")
        return tuple(reasons)

    @property
    def revision(self) -> str | None:
        """The revision that serves."""
        snapshot = self._policy.current
        return snapshot.revision if snapshot else None

    def page(self) -> Page:
        """Return the `/readyz` page: 200 or 503, and the detail for people either way."""
        why_not = self.why_not
        status = HTTPStatus.SERVICE_UNAVAILABLE if why_not else HTTPStatus.OK
        return Page.json(status, {"ready": not why_not, "why_not": list(why_not), **self._detail()})

    def _detail(self) -> dict[str, object]:
        snapshot, error = self._policy.current, self._policy.last_error
        return {
            "draining": self._draining,
            "ledger": self._ledger_fault or "ok",
            "revision": self.revision,
            "revocations": _revocations(snapshot) if snapshot else {},
            "bundles": _bundles(snapshot) if snapshot else {},
            # Said apart from `mode`, so that a person sees it without reading every bundle.
            "not_enforced": list(snapshot.shadowed) if snapshot else [],
            # Where and why; not the faulty lines themselves, which are policy text.
            "reload_faults": [str(replace(fault, source="")) for fault in error.faults]
            if error
            else [],
        }


def _revocations(snapshot: Snapshot) -> dict[str, object]:
    return {"revision": snapshot.revocations.revision, "in_force": snapshot.revocations.count}


def _bundles(snapshot: Snapshot) -> dict[str, object]:
    return {
        name: {
            "domain": policy.domain,
            "revision": policy.revision,
            "mode": snapshot.mode_of(name),
        }
        for name, policy in sorted(snapshot.policies.items())
    }
