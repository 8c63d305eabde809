"""A reloader under observation, and directories that change as Kubernetes changes them."""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from authz_server.core.chain_cache import ChainCache
from authz_server.core.errors import ConfigurationError
from authz_server.core.snapshot import Snapshot
from authz_server.policy.bundle import PolicyBundle
from authz_server.reload.holder import SnapshotHolder
from authz_server.reload.reloader import Reloader, ReloadOutcome
from authz_server.reload.watch import Watcher
from authz_server.settings import Settings

PATIENCE_S = 60  # for a machine that does many other things
NEVER_POLL_S = 3600.0  # so that only a notification can be what was noticed


class Observed:
    """A reloader, what it holds, and what it has reported."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self.holder = SnapshotHolder()
        self.outcomes: list[ReloadOutcome] = []
        self._changed = threading.Condition()
        self.reloader = Reloader(
            settings,
            chains=ChainCache(),
            holder=self.holder,
            on_reload=self._report,
            environ=environ or {},
        )

    def _report(self, outcome: ReloadOutcome) -> None:
        with self._changed:
            self.outcomes.append(outcome)
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_S), self.outcomes[-1:]

    @property
    def snapshot(self) -> Snapshot:
        assert self.holder.current is not None, self.holder.last_error
        return self.holder.current

    @property
    def rules(self) -> list[str]:
        policy = self.snapshot.policies["default"]
        assert isinstance(policy, PolicyBundle)
        return [rule.id for rule in policy.rules]

    def wait_for_rules(self, *ids: str) -> None:
        self.wait_until(lambda: self.holder.last_error is None and self.rules == list(ids))

    def wait_for_failure(self) -> ConfigurationError:
        self.wait_until(lambda: self.holder.last_error is not None)
        assert self.holder.last_error is not None
        return self.holder.last_error


@contextmanager
def watching(
    settings: Settings,
    poll_interval_s: float = NEVER_POLL_S,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Observed]:
    """Watch the files of `settings` from another thread; leaves none behind."""
    observed = Observed(settings, environ)
    watcher = Watcher(observed.reloader, poll_interval_s=poll_interval_s)
    with closing(observed.reloader):
        watcher.start()
        try:
            observed.wait_until(lambda: bool(observed.outcomes))
            yield observed
        finally:
            watcher.stop()
    assert not watcher.is_alive


class ConfigMap:
    """A directory as Kubernetes mounts it: links through `..data`, which is swapped at once."""

    def __init__(self, directory: Path, source: Path) -> None:
        self._directory = directory
        self._version = 0
        files = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
        directory.mkdir(parents=True)
        self.update(files)
        for name in files:
            (directory / name).symlink_to(f"..data/{name}")

    def update(self, files: dict[str, bytes]) -> None:
        old = self._directory / f"..version_{self._version}"
        self._version += 1
        new = self._directory / f"..version_{self._version}"
        content = {p.name: p.read_bytes() for p in old.iterdir()} if old.exists() else {}
        new.mkdir()
        for name, data in (content | files).items():
            (new / name).write_bytes(data)
        link = self._directory / "..data_tmp"
        link.symlink_to(new.name)
        link.rename(self._directory / "..data")
        if old.exists():
            shutil.rmtree(old)
