"""Bring what is on disk into service, whenever its content has changed, and what is live too."""

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

from authz_server.core.chain_cache import ChainCache
from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.snapshot import Snapshot
from authz_server.reload.content import fingerprint
from authz_server.reload.holder import SnapshotHolder
from authz_server.reload.live_input import LiveInput, with_inputs
from authz_server.reload.loader import load_snapshot
from authz_server.reload.memo import Memo
from authz_server.reload.tables import PolicyTables
from authz_server.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadOutcome:
    """What came of one load: a new snapshot that serves, or the faults that kept it out."""

    snapshot: Snapshot | None
    error: ConfigurationError | None
    load_s: float


class Reloader:
    """Loads the files named by the configuration into a holder, with the live inputs over them."""

    def __init__(  # noqa: PLR0913 -- what it loads from, and whom it tells
        self,
        settings: Settings,
        *,
        chains: ChainCache,
        holder: SnapshotHolder,
        on_reload: Callable[[ReloadOutcome], None],
        inputs: Sequence[LiveInput] = (),
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`on_reload` is told of every load, but only once of faults that stay the same.

        It is called in the thread that calls `refresh`, after the holder has changed. `environ`
        has the URLs of the databases with policy rows.
        """
        self.settings = settings
        self._chains = chains
        self._holder = holder
        self._on_reload = on_reload
        self._inputs = inputs
        self._loaded: Snapshot | None = None  # the last that loaded, from files alone
        self._tables = PolicyTables(environ, changed=self.refresh)
        self._memo = Memo()
        self._loading = threading.Lock()  # held for a whole load: seconds, with a slow database
        self._swapping = threading.Lock()  # held while the holder changes; taken second
        self._tried: object = None  # what the last load was made of, whatever came of it

    def close(self) -> None:
        """Let go of the databases. Call it when nothing refreshes any more."""
        self._tables.close()

    def refresh(self) -> None:
        """Load if the content differs from what was loaded last; swap on success.

        Never raises for what is on disk: the holder and `on_reload` have the error.
        """
        with self._loading:
            content = fingerprint(self.settings).content
            if (content, self._tables.poll()) == self._tried:
                return
            loaded = self._load()
            self._memo.turn()
            self._tables.turn()
            self._tried = (content, self._tables.seen)
            known = self._holder.last_error
            outcome = self._swap(loaded)
            if known is None or outcome.error is None or known.faults != outcome.error.faults:
                self._on_reload(outcome)

    def _swap(self, outcome: ReloadOutcome) -> ReloadOutcome:
        """Have the holder say what came of a load; return it with the snapshot that serves."""
        with self._swapping:
            if outcome.error is not None:
                self._holder.failed(outcome.error)
            if outcome.snapshot is None:
                return outcome
            self._loaded = outcome.snapshot
            serving = with_inputs(outcome.snapshot, self._inputs)
            self._holder.replace(serving)
            return replace(outcome, snapshot=serving)

    def renew(self) -> None:
        """Serve the last files that loaded with the present state of the live inputs.

        No file is read and no load is waited for, so a key that was taken back is out of service
        within milliseconds.
        """
        with self._swapping:
            if self._loaded is not None:
                self._holder.refresh(with_inputs(self._loaded, self._inputs))

    def _load(self) -> ReloadOutcome:
        started = time.perf_counter()
        snapshot, error = None, None
        try:
            with _collector_paused():
                snapshot = load_snapshot(
                    self.settings, chains=self._chains, tables=self._tables, memo=self._memo
                )
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


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the cyclic collector from visiting what is only being built, over and over.

    A collection in the middle of a load of 10,000 rules visits 200,000 objects in one piece and
    holds up every request for 30 ms; one after it finds 30,000 and takes 4 ms. What requests leave
    behind meanwhile is freed by reference count.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
