"""Files that change under a running server: swapped, half-written, broken, back again.

Real files and the real kernel; each test waits for what must come, and nothing asserts on a time.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from authz_server.core.snapshot import Snapshot
from authz_server.demo.authority import TrustDomainAuthority
from authz_server.policy.bundle import PolicyBundle
from authz_server.reload.loader import load_snapshot
from authz_server.reload.watch import Watcher
from authz_server.settings import Settings, load_settings
from tests.harness.reloading import PATIENCE_S, ConfigMap, Observed, watching
from tests.pdp_site import RULES, TRUST_DOMAIN, PdpSite


@pytest.fixture
def site(tmp_path: Path) -> PdpSite:
    directory = tmp_path / "site"
    directory.mkdir()
    return PdpSite.create(directory)


@pytest.fixture
def settings(site: PdpSite) -> Settings:
    return load_settings(site.configuration)


_ALL = tuple(rule.split(", ")[1] for rule in RULES)


# --- how files change ------------------------------------------------------------------------


def test_an_atomic_rename(site: PdpSite, settings: Settings) -> None:
    with watching(settings) as observed:
        assert observed.rules == list(_ALL)
        first = observed.snapshot.revision
        site.write_rules(RULES[:1])
        observed.wait_for_rules(*_ALL[:1])
        assert observed.snapshot.revision != first
        site.write_rules(RULES)
        observed.wait_for_rules(*_ALL)
        assert observed.snapshot.revision == first


def test_an_edit_in_place(site: PdpSite, settings: Settings) -> None:
    with watching(settings) as observed:
        (site.bundle / "policy.csv").write_text(RULES[0] + "\n")
        observed.wait_for_rules(*_ALL[:1])


def test_a_config_map_of_a_bundle(site: PdpSite) -> None:
    shutil.move(site.bundle, site.directory / "source")
    mounted = ConfigMap(site.bundle, site.directory / "source")
    with watching(load_settings(site.configuration)) as observed:
        assert observed.rules == list(_ALL)
        for count in (1, 2, 3, 1):
            mounted.update({"policy.csv": "\n".join(RULES[:count]).encode()})
            observed.wait_for_rules(*_ALL[:count])
        assert all(outcome.error is None for outcome in observed.outcomes)


def test_a_secret_with_keys_and_identities(site: PdpSite, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mounted = ConfigMap(mount, site.directory)
    for name in ("trust.pem", "identities.yaml", "sts.jwks.json"):
        (site.directory / name).unlink()
        (site.directory / name).symlink_to(mount / name)
    text = site.configuration.read_text()
    for name in ("trust.pem", "identities.yaml"):
        text = text.replace(name, str(mount / name))
    site.configuration.write_text(text)
    other = TrustDomainAuthority.create(TRUST_DOMAIN)
    with watching(load_settings(site.configuration)) as observed:
        first = observed.snapshot.trust
        mounted.update({"trust.pem": other.bundle_pem})
        observed.wait_until(lambda: observed.snapshot.trust.revision != first.revision)
        bundle = observed.snapshot.trust.bundles[TRUST_DOMAIN]
        assert bundle.authorities == other.bundle.authorities
        mounted.update({"identities.yaml": b"identities: []\n"})
        observed.wait_until(lambda: not observed.snapshot.inventory.patterns)
        # A file that is a link to the mount: its own directory does not change.
        mounted.update({"sts.jwks.json": b'{"keys": []}'})
        observed.wait_until(
            lambda: not any(i.keys for i in observed.snapshot.trust.issuers.values())
        )


def test_the_directory_of_all_bundles_is_swapped(site: PdpSite, tmp_path: Path) -> None:
    """As git-sync does it: a link to a work tree, replaced by one to another."""
    bundles = site.directory / "bundles"
    for name, rules in (("one", RULES), ("two", RULES[:2])):
        site.write_rules(rules)
        shutil.copytree(bundles, tmp_path / name)
    shutil.rmtree(bundles)
    bundles.symlink_to(tmp_path / "one")
    with watching(load_settings(site.configuration)) as observed:
        assert observed.rules == list(_ALL)
        link = site.directory / "next"
        link.symlink_to(tmp_path / "two")
        link.rename(bundles)
        observed.wait_for_rules(*_ALL[:2])
        # The new tree is watched from then on.
        (tmp_path / "two" / "default" / "policy.csv").write_text(RULES[0] + "\n")
        observed.wait_for_rules(*_ALL[:1])


def test_a_bundle_is_added_changed_and_removed(site: PdpSite, settings: Settings) -> None:
    other = site.directory / "bundles" / "other"

    def has_other(count: int) -> bool:
        policy = observed.snapshot.policies.get("other")
        return isinstance(policy, PolicyBundle) and len(policy.rules) == count

    with watching(settings) as observed:
        staged = site.directory / "staged"
        shutil.copytree(site.bundle, staged)
        manifest = (staged / "bundle.yaml").read_text().replace("default", "other")
        (staged / "bundle.yaml").write_text(manifest)
        staged.rename(other)
        observed.wait_until(lambda: has_other(len(RULES)))
        (other / "policy.csv").write_text(RULES[0] + "\n")
        observed.wait_until(lambda: has_other(1))
        shutil.rmtree(other)
        observed.wait_until(lambda: "other" not in observed.snapshot.policies)


def test_what_no_notification_tells_is_seen_by_polling(site: PdpSite, tmp_path: Path) -> None:
    """A link in the middle of a path changes in a directory that is not watched."""
    tree = tmp_path / "tree"
    for name, rules in (("one", RULES), ("two", RULES[:2])):
        site.write_rules(rules)
        shutil.copytree(site.directory / "bundles", tree / name / "deep" / "bundles")
    (tree / "now").symlink_to("one")
    text = site.configuration.read_text().replace("dir: bundles", f"dir: {tree}/now/deep/bundles")
    site.configuration.write_text(text)
    with watching(load_settings(site.configuration), poll_interval_s=0.2) as observed:
        assert observed.rules == list(_ALL)
        (tree / "next").symlink_to("two")
        (tree / "next").rename(tree / "now")
        observed.wait_for_rules(*_ALL[:2])


def test_without_notifications_polling_does(
    site: PdpSite, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_watches_left(*_args: object, **_options: object) -> None:
        raise OSError("no space left on device")  # what inotify says at its limit

    monkeypatch.setattr("authz_server.reload.watch.RustNotify", no_watches_left)
    with watching(settings, poll_interval_s=0.1) as observed:
        site.write_rules(RULES[:1])
        observed.wait_for_rules(*_ALL[:1])


def test_a_busy_ledger_beside_the_files_hides_no_change(site: PdpSite, settings: Settings) -> None:
    stopping = threading.Event()

    def write_without_pause() -> None:
        with (site.directory / "authz.db-wal").open("wb", buffering=0) as log:
            while not stopping.wait(0.001):
                log.write(b"record")

    writer = threading.Thread(target=write_without_pause)
    with watching(settings) as observed:
        writer.start()
        try:
            site.write_rules(RULES[:1])
            observed.wait_for_rules(*_ALL[:1])
        finally:
            stopping.set()
            writer.join()
        assert len(observed.outcomes) == 2, "the ledger's own writes load nothing"


# --- what must not come into service ---------------------------------------------------------


def test_a_half_written_file_keeps_the_last_good_policy_and_heals(
    site: PdpSite, settings: Settings
) -> None:
    policy = site.bundle / "policy.csv"
    with watching(settings) as observed:
        good = observed.snapshot
        whole = "\n".join(RULES[:2]) + "\n"
        policy.write_text(whole[:-20])  # cut off in the middle of a row
        error = observed.wait_for_failure()
        assert {fault.file for fault in error.faults} == {str(policy)}
        assert observed.holder.current is good
        with policy.open("a") as file:
            file.write(whole[-20:])
        observed.wait_for_rules(*_ALL[:2])
        assert observed.holder.last_error is None


def test_a_new_model_with_old_rows_is_refused(site: PdpSite, settings: Settings) -> None:
    model = site.bundle / "model.conf"
    with watching(settings) as observed:
        good = observed.snapshot
        model.write_text(model.read_text().replace("id, act, path", "id, act, method, path"))
        observed.wait_for_failure()
        assert observed.holder.current is good
        site.write_rules([rule.replace("GET, /", "GET, GET, /") for rule in RULES])
        observed.wait_for_rules(*_ALL)
        assert observed.snapshot.revision != good.revision


@pytest.mark.parametrize(
    "damage",
    [
        lambda site: (site.bundle / "policy.csv").write_bytes(b""),
        lambda site: (site.bundle / "policy.csv").unlink(),
        lambda site: (site.bundle / "policy.csv").write_bytes(b"\xef\xbb\xbf" + RULES[0].encode()),
        lambda site: (site.bundle / "model.conf").write_bytes(b"[matchers]\n"),
        lambda site: shutil.rmtree(site.bundle),
        lambda site: shutil.rmtree(site.directory / "bundles"),
        lambda site: (site.directory / "trust.pem").write_bytes(b"-----BEGIN CERT"),
        lambda site: (site.directory / "trust.pem").unlink(),
        lambda site: (site.directory / "sts.jwks.json").write_bytes(b'{"keys": ['),
        lambda site: (site.directory / "identities.yaml").write_bytes(b"identities: [{id: x"),
    ],
)
def test_damage_keeps_the_last_good_snapshot(
    site: PdpSite, settings: Settings, damage: Callable[[PdpSite], object]
) -> None:
    saved = site.directory.with_name("saved")
    shutil.copytree(site.directory, saved)
    observed = Observed(settings)
    observed.reloader.refresh()
    good = observed.snapshot
    damage(site)
    observed.reloader.refresh()
    assert observed.holder.last_error is not None
    assert observed.holder.current is good
    shutil.copytree(saved, site.directory, dirs_exist_ok=True)
    observed.reloader.refresh()
    assert observed.holder.last_error is None
    assert observed.snapshot.revision == good.revision


def test_a_faulty_start_serves_nothing_until_it_heals(site: PdpSite, settings: Settings) -> None:
    site.write_rules(["p, broken"])
    with watching(settings) as observed:
        assert observed.holder.current is None
        assert observed.holder.last_error is not None
        site.write_rules(RULES)
        observed.wait_for_rules(*_ALL)


def test_a_defect_of_ours_does_not_end_the_watch(
    site: PdpSite, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defective(*_args: object, **_options: object) -> Snapshot:
        raise RecursionError("too deep")

    with watching(settings) as observed:
        good = observed.snapshot
        monkeypatch.setattr("authz_server.reload.reloader.load_snapshot", defective)
        site.write_rules(RULES[:2])
        error = observed.wait_for_failure()
        assert "internal error `RecursionError`" in str(error)
        assert isinstance(error.__cause__, RecursionError)
        assert observed.holder.current is good
        monkeypatch.setattr("authz_server.reload.reloader.load_snapshot", load_snapshot)
        site.write_rules(RULES[:1])
        observed.wait_for_rules(*_ALL[:1])


# --- what is reported ------------------------------------------------------------------------


def test_a_burst_of_writes_makes_few_loads(site: PdpSite, settings: Settings) -> None:
    with watching(settings) as observed:
        for number in range(100):
            site.write_rules([*RULES[:2], f"# write {number}"])
        site.write_rules(RULES[:1])
        observed.wait_for_rules(*_ALL[:1])
        assert len(observed.outcomes) < 50


def test_the_same_bytes_are_not_loaded_again(site: PdpSite, settings: Settings) -> None:
    observed = Observed(settings)
    observed.reloader.refresh()
    snapshot = observed.snapshot
    site.write_rules(RULES)
    (site.directory / "trust.pem").touch()
    observed.reloader.refresh()
    assert observed.snapshot is snapshot
    assert len(observed.outcomes) == 1


def test_equal_faults_are_reported_once(site: PdpSite, settings: Settings) -> None:
    observed = Observed(settings)
    observed.reloader.refresh()
    errors = []
    site.write_rules(["p, broken"])
    for comment in ("", "# one\n", "# two\n"):
        with (site.directory / "identities.yaml").open("a") as file:
            file.write(comment)
        observed.reloader.refresh()
        errors.append(observed.holder.last_error)
    assert len(observed.outcomes) == 2
    assert errors[0] is not errors[2], "it was loaded anew each time"
    site.write_rules(["p, broken", "p, broken too"])
    observed.reloader.refresh()
    assert len(observed.outcomes) == 3
    site.write_rules(RULES)
    observed.reloader.refresh()
    site.write_rules(["p, broken"])
    observed.reloader.refresh()
    assert [outcome.error is None for outcome in observed.outcomes] == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_a_return_to_the_serving_content_clears_the_failure(
    site: PdpSite, settings: Settings
) -> None:
    observed = Observed(settings)
    observed.reloader.refresh()
    good = observed.snapshot.revision
    site.write_rules(["p, broken"])
    observed.reloader.refresh()
    assert observed.holder.last_error is not None
    site.write_rules(RULES)
    observed.reloader.refresh()
    assert observed.holder.last_error is None
    assert observed.snapshot.revision == good


# --- stopping --------------------------------------------------------------------------------


def _held() -> tuple[int, int]:
    """Return how many threads, native ones included, and file descriptors the process has."""
    return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))


def test_a_stopped_watch_leaves_no_thread_and_no_descriptor(settings: Settings) -> None:
    before = _held()

    def released() -> bool:
        return all(now <= then for now, then in zip(_held(), before, strict=True))

    for _ in range(3):
        with watching(settings):
            assert not released()
    patience = threading.Event()
    for _ in range(PATIENCE_S * 100):  # the kernel takes a moment to reap a thread
        if released() or patience.wait(0.01):
            break
    assert released()


def test_a_watch_that_was_never_started_can_be_stopped(settings: Settings) -> None:
    Watcher(Observed(settings).reloader).stop()
