"""Notice changes on disk and have them loaded, in a thread of its own.

The kernel's notifications say *when* to look, the digest of the content says *whether* anything
changed, and a look every few seconds covers file systems that do not notify (network mounts) and
notifications that were missed. So a Kubernetes `..data` swap, an atomic rename, an edit in place
and a file that a symlink points to are all the same case.
"""

import threading
import time
from pathlib import Path
from typing import Final, Protocol

from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

from authz_server.reload.content import concerns, watched_directories
from authz_server.reload.reloader import Reloader

POLL_INTERVAL_S: Final = 5.0  # the longest that a change can go unseen
_QUIET_MS: Final = 100  # a burst is over when nothing more happens for this long
_BURST_MS: Final = 500  # a burst that does not end is looked at nevertheless
STOP_TIMEOUT_S: Final = 2.0  # a load in progress may take longer; its thread ends with the process


class _Changes(Protocol):
    """Waits for something to happen in the watched directories."""

    def watch(
        self, debounce_ms: int, step_ms: int, timeout_ms: int, stop_event: threading.Event
    ) -> set[tuple[int, str]] | str:
        """Return the changed paths, or why there are none: `timeout`, `stop`."""

    def close(self) -> None:
        """Stop watching."""


class _PollOnly:
    """Stands in when the kernel cannot notify us (no inotify watches left): only time passes."""

    def watch(
        self, debounce_ms: int, step_ms: int, timeout_ms: int, stop_event: threading.Event
    ) -> str:
        del debounce_ms, step_ms
        return "stop" if stop_event.wait(timeout_ms / 1000) else "timeout"

    def close(self) -> None:
        pass


class Watcher:
    """Calls `Reloader.refresh` after every change on disk until stopped."""

    def __init__(self, reloader: Reloader, *, poll_interval_s: float = POLL_INTERVAL_S) -> None:
        self._reloader = reloader
        self._poll_interval_s = poll_interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reload-watch", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether changes are being watched for."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to watch; the first look at the disk comes at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch and wait for it, no longer than `STOP_TIMEOUT_S`."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            directories = watched_directories(self._reloader.settings)
            changes = _changes_in([path for path, _, _ in directories])
            try:
                # The watch stands before the look: what changes in between is seen by one of them.
                self._reloader.refresh()
                while self._wait(changes):
                    self._reloader.refresh()
                    if watched_directories(self._reloader.settings) != directories:
                        break  # a directory came, went or was replaced: watch the new ones
            finally:
                changes.close()

    def _wait(self, changes: _Changes) -> bool:
        """Return True when it is time to look at the disk, False when it is time to stop."""
        deadline = time.monotonic() + self._poll_interval_s
        while not self._stopping.is_set():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return True
            try:
                seen = changes.watch(_BURST_MS, _QUIET_MS, int(left_s * 1000) + 1, self._stopping)
            except WatchfilesRustInternalError:
                self._stopping.wait(left_s)  # no notifications, then: look when it is time
                continue
            if not isinstance(seen, str) and self._concern_us(seen):
                return True
        return False

    def _concern_us(self, seen: set[tuple[int, str]]) -> bool:
        return any(concerns(self._reloader.settings, Path(path)) for _, path in seen)


def _changes_in(directories: list[Path]) -> _Changes:
    paths = [str(path) for path in directories]
    try:
        return RustNotify(
            paths,
            debug=False,
            force_polling=False,
            poll_delay_ms=0,
            recursive=False,
            ignore_permission_denied=True,
        )
    except (OSError, WatchfilesRustInternalError):
        return _PollOnly()
