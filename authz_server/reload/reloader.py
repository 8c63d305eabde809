"""Bring what is on disk into service, whenever its content has changed, and what is live too."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from authz_server.core.chain_cache import ChainCache
from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.snapshot import Snapshot
from authz_server.reload.content import fingerprint
from authz_server.reload.holder import SnapshotHolder
from authz_server.reload.live_input import LiveInput, with_inputs
from authz_server.reload.loader import load_snapshot
from authz_server.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadOutcome:
    """What came of one load: a new snapshot that serves, or the faults that kept it out."""

    snapshot: Snapshot | None
    error: ConfigurationError | None
    load_s: float


class Reloader:
    """Loads the files named by the configuration into a holder, with the live inputs over them."""

    def __init__(
        self,
        settings: Settings,
        *,
        chains: ChainCache,
        holder: SnapshotHolder,
        on_reload: Callable[[ReloadOutcome], None],
        inputs: Sequence[LiveInput] = (),
    ) -> None:
        """`on_reload` is told of every load, but only once of faults that stay the same.

        It is called in the thread that calls `refresh`, after the holder has changed.
        """
        self.settings = settings
        self._chains = chains
        self._holder = holder
        self._on_reload = on_reload
        self._inputs = inputs
        self._loaded: Snapshot | None = None  # the last that loaded, from files alone
        self._lock = threading.Lock()
        self._tried: str | None = None  # content of the last load, whatever came of it

    def refresh(self) -> None:
        """Load if the content differs from what was loaded last; swap on success.

        Never raises for what is on disk: the holder and `on_reload` have the error.
        """
        with self._lock:
            content = fingerprint(self.settings).content
            if content == self._tried:
                return
            self._tried = content
            outcome = self._load()
            known = self._holder.last_error
            if outcome.snapshot is not None:
                self._loaded = outcome.snapshot
                serving = with_inputs(outcome.snapshot, self._inputs)
                self._holder.replace(serving)
                outcome = replace(outcome, snapshot=serving)
            elif outcome.error is not None:
                self._holder.failed(outcome.error)
                if known is not None and known.faults == outcome.error.faults:
                    return
            self._on_reload(outcome)

    def renew(self) -> None:
        """Serve the last files that loaded with the present state of the live inputs.

        No file is read, so a key that was taken back is out of service within milliseconds.
        """
        with self._lock:
            if self._loaded is not None:
                self._holder.refresh(with_inputs(self._loaded, self._inputs))

    def _load(self) -> ReloadOutcome:
        started = time.perf_counter()
        snapshot, error = None, None
        try:
            snapshot = load_snapshot(self.settings, chains=self._chains)
        except ConfigurationError as fault:
            error = fault
        except Exception as bug:  # noqa: BLE001
            # A defect of ours must not end the thread that watches: the server would go on with
            # this policy for ever and nobody would know. The cause is kept for the log.
            error = ConfigurationError([self._internal(bug)])
            error.__cause__ = bug
        return ReloadOutcome(snapshot=snapshot, error=error, load_s=time.perf_counter() - started)

    def _internal(self, bug: Exception) -> Fault:
        message = f"cannot be loaded: internal error `{type(bug).__name__}`"
        return Fault(file=str(self.settings.bundles.dir), message=message)
