"""What serves, and what is known of why its successor does not."""

import threading
from pathlib import Path

import pytest

from authz_server.core.chain_cache import ChainCache
from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.snapshot import Snapshot
from authz_server.reload.holder import SnapshotHolder
from authz_server.reload.loader import load_snapshot
from authz_server.settings import load_settings
from tests.pdp_site import PdpSite

_ERROR = ConfigurationError([Fault(file="f", message="wrong")])


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    site = PdpSite.create(tmp_path)
    return load_snapshot(load_settings(site.configuration), chains=ChainCache())


def test_at_first_nothing_serves() -> None:
    holder = SnapshotHolder()
    assert holder.current is None
    assert holder.last_error is None


def test_a_failure_keeps_the_last_good_snapshot(snapshot: Snapshot) -> None:
    holder = SnapshotHolder()
    holder.failed(_ERROR)
    assert holder.current is None
    assert holder.last_error is _ERROR
    holder.replace(snapshot)
    assert holder.current is snapshot
    assert holder.last_error is None
    holder.failed(_ERROR)
    assert holder.current is snapshot
    assert holder.last_error is _ERROR


def test_readers_never_miss_the_snapshot(snapshot: Snapshot) -> None:
    holder = SnapshotHolder()
    holder.replace(snapshot)
    missed: list[object] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            if holder.current is not snapshot:
                missed.append(holder.current)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(5_000):
        holder.failed(_ERROR)
        holder.replace(snapshot)
    done.set()
    reader.join()
    assert not missed
