"""The snapshot that serves: swapped as one reference, kept when its successor is refused."""

from dataclasses import dataclass, replace

from authz_server.core.errors import ConfigurationError
from authz_server.core.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class _State:
    current: Snapshot | None = None
    last_error: ConfigurationError | None = None


class SnapshotHolder:
    """Holds the snapshot to decide by. Any thread may read it; one thread writes.

    INVARIANT: a reader sees one whole state, because a state is never changed, only replaced.
    """

    def __init__(self) -> None:
        self._state = _State()

    @property
    def current(self) -> Snapshot | None:
        """The last snapshot that loaded, or None before the first one."""
        return self._state.current

    @property
    def last_error(self) -> ConfigurationError | None:
        """Why the files on disk do not serve, or None while they do."""
        return self._state.last_error

    def replace(self, snapshot: Snapshot) -> None:
        """Serve `snapshot` from the next request on."""
        self._state = _State(current=snapshot)

    def refresh(self, snapshot: Snapshot) -> None:
        """Serve `snapshot`, in which a live input changed; what the files are at stays as it is."""
        self._state = replace(self._state, current=snapshot)

    def failed(self, error: ConfigurationError) -> None:
        """Take note that the files on disk cannot be used; the last good snapshot serves on."""
        self._state = replace(self._state, last_error=error)
