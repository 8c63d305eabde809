"""A server's view of the revocations: every change, every end, and its own age."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from authz_server.core.revocation import RevocationKind
from authz_server.core.snapshot import Snapshot
from authz_server.ledger.revocation_feed import RevocationFeed
from authz_server.ledger.revocations import Handle, RevocationStore
from authz_server.ledger.store import Ledger
from tests.harness.world import World

TIMEOUT_S = 20.0
AGENT = Handle(kind=RevocationKind.SPIFFE_ID, value="spiffe://cases.example.org/agent/a")
JTI = Handle(kind=RevocationKind.JTI, value="j1")
SNAPSHOT = World().snapshot()


class Watched:
    """A feed on a ledger file, with a clock that can be set."""

    def __init__(self, url: str, *, max_stale_s: float = 3600) -> None:
        self.shift = timedelta(0)
        self.changes = 0
        self.reports: list[str] = []
        self.feed = RevocationFeed(
            url,
            max_stale_s=max_stale_s,
            clock=self.now,
            changed=self._count,
            report=self.reports.append,
        )

    def now(self) -> datetime:
        return datetime.now(UTC) + self.shift

    def _count(self) -> None:
        self.changes += 1

    def wait_for_change_after(self, seen: int) -> None:
        wait_until(lambda: self.changes > seen)

    @property
    def snapshot(self) -> Snapshot:
        return self.feed.apply(SNAPSHOT)

    @property
    def is_good(self) -> bool:
        return self.feed.why_not(self.snapshot) is None


@contextmanager
def following(url: str, **options: float) -> Iterator[Watched]:
    watched = Watched(url, **options)
    watched.feed.start()
    try:
        yield watched
    finally:
        watched.feed.stop()
        assert not [t for t in threading.enumerate() if t.name == "revocations" and t.is_alive()]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/authz.db"
    Ledger.open(url, approval_ttl_s=60).close()
    return url


def test_before_the_first_answer_nothing_can_be_decided(url: str) -> None:
    watched = Watched(url)
    assert not watched.is_good
    assert watched.snapshot.revocations.good_until is not None


def test_every_change_arrives_under_a_revision_of_its_own(url: str) -> None:
    store = RevocationStore.open(url)
    now = datetime.now(UTC)
    with following(url) as watched:
        watched.feed.wait_for_first(TIMEOUT_S)
        assert watched.is_good
        assert watched.snapshot.revision == SNAPSHOT.revision, "nothing revoked, nothing added"
        _, one = store.add(AGENT, by="bob", now=now)
        wait_until(lambda: watched.snapshot.revocations.revision == one)
        assert watched.snapshot.revocations.spiffe_id == {AGENT.value}
        first = watched.snapshot.revision
        _, two = store.add(JTI, by="bob", now=now)
        wait_until(lambda: watched.snapshot.revocations.revision == two)
        assert watched.snapshot.revocations.jti == {JTI.value}
        assert watched.snapshot.revocations.count == 2
        assert len({SNAPSHOT.revision, first, watched.snapshot.revision}) == 3
        _, three = store.remove(JTI, by="bob", now=now)
        wait_until(lambda: watched.snapshot.revocations.revision == three)
        assert watched.snapshot.revision == first, "the same content, the same name"


def test_what_expires_ends_without_a_change(url: str) -> None:
    store = RevocationStore.open(url)
    now = datetime.now(UTC)
    store.add(JTI, by="bob", now=now, expires_at=now + timedelta(minutes=10))
    with following(url) as watched:
        wait_until(lambda: watched.snapshot.revocations.jti == {JTI.value})
        watched.shift = timedelta(minutes=11)
        wait_until(lambda: watched.snapshot.revocations.count == 0)
        assert watched.snapshot.revocations.revision == 1


def test_what_is_served_is_renewed_while_the_ledger_answers(url: str) -> None:
    with following(url, max_stale_s=60) as watched:
        wait_until(lambda: watched.is_good)
        end = watched.snapshot.revocations.good_until
        assert end is not None
        for minutes in (2, 100, -100):  # a clock that jumps ahead, and one that is put back
            watched.shift = timedelta(minutes=minutes)
            before = watched.changes
            watched.wait_for_change_after(before)
            assert watched.is_good
            found = watched.snapshot.revocations.good_until
            assert found is not None
            assert abs(found - watched.now() - timedelta(seconds=60)) < timedelta(seconds=30)


def test_a_ledger_that_is_away_ends_what_was_read_of_it(url: str, tmp_path: Path) -> None:
    store = RevocationStore.open(url)
    store.add(AGENT, by="bob", now=datetime.now(UTC))
    path = tmp_path / "authz.db"
    with following(url, max_stale_s=60) as watched:
        wait_until(lambda: watched.is_good)
        path.rename(tmp_path / "away.db")
        wait_until(lambda: bool(watched.reports))
        assert watched.is_good, "for a while the last state serves"
        assert watched.snapshot.revocations.spiffe_id == {AGENT.value}
        watched.shift = timedelta(seconds=61)
        assert not watched.is_good
        assert "too old" in str(watched.feed.why_not(watched.snapshot))
        (tmp_path / "away.db").rename(path)
        wait_until(lambda: watched.is_good)
        assert len(watched.reports) == 1, "said once"


def test_another_file_in_its_place_is_read(url: str, tmp_path: Path) -> None:
    """The naive reader would keep its connection, and with it the file that is gone."""
    store = RevocationStore.open(url)
    other = f"sqlite:///{tmp_path}/other.db"
    Ledger.open(other, approval_ttl_s=60).close()
    RevocationStore.open(other).add(JTI, by="bob", now=datetime.now(UTC))
    store.add(AGENT, by="bob", now=datetime.now(UTC))  # the same revision in both
    with following(url) as watched:
        wait_until(lambda: watched.snapshot.revocations.spiffe_id == {AGENT.value})
        (tmp_path / "other.db").replace(tmp_path / "authz.db")
        for suffix in ("-wal", "-shm"):
            (tmp_path / f"authz.db{suffix}").unlink(missing_ok=True)
        wait_until(lambda: watched.snapshot.revocations.jti == {JTI.value})
        assert not watched.snapshot.revocations.spiffe_id


def test_a_hung_reader_does_not_serve_for_ever(url: str) -> None:
    """Without an end in the snapshot itself, whoever hangs would serve the last state for ever."""
    with following(url, max_stale_s=60) as watched:
        wait_until(lambda: watched.is_good)
        snapshot = watched.snapshot
    watched.shift = timedelta(seconds=61)
    assert watched.feed.why_not(snapshot) is not None
