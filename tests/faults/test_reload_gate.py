"""What must hold before a change comes into service: every bundle sound, every policy test passed.

Several bundles in ConfigMaps of their own, as one pod mounts them.
"""

import shutil
import signal
from pathlib import Path

import pytest
import yaml

from authz_server.policy.bundle import load_bundle_files
from authz_server.settings import load_settings
from tests.harness.reloading import ConfigMap, Observed, watching
from tests.pdp_site import RULES, PdpSite
from tests.server_process import ServerProcess, running, serve_to_the_end

_OPEN_CASE = {
    "name": "the open part may be read",
    "request": {
        "sub": {"id": "spiffe://site.example.org/agent/research"},
        "chain": {"scope": ["data.read"]},
        "act": {"name": "GET"},
        "obj": {"path": "/open/1"},
    },
    "expect": {"verdict": "allow", "rules": ["open-read"]},
}


def write_cases(directory: Path) -> None:
    """Have the bundle in `directory` promise that the open part may be read."""
    (directory / "cases.yaml").write_text(yaml.safe_dump([_OPEN_CASE], sort_keys=False))


@pytest.fixture
def site(tmp_path: Path) -> PdpSite:
    directory = tmp_path / "site"
    directory.mkdir()
    site = PdpSite.create(directory)
    write_cases(site.bundle)
    return site


def add_bundle(site: PdpSite, name: str) -> Path:
    """Add a copy of the site's bundle under another name."""
    directory = site.bundle.with_name(name)
    shutil.copytree(site.bundle, directory)
    manifest = directory / "bundle.yaml"
    manifest.write_text(manifest.read_text().replace("default", name))
    return directory


FAULT = (
    "cases.yaml:1: error: case `the open part may be read` fails: "
    "verdict is deny, expected allow; rules is (none), expected open-read"
)


def test_without_the_gate_a_policy_that_breaks_its_own_tests_would_serve(
    site: PdpSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("authz_server.policy.bundle.PolicyBundle.failed_cases", lambda _: ())
    observed = Observed(load_settings(site.configuration))
    site.write_rules(RULES[1:])
    observed.reloader.refresh()
    assert observed.rules == ["ask-first", "closed"]


def test_a_failed_case_keeps_the_last_good_policy_and_is_named(site: PdpSite) -> None:
    with watching(load_settings(site.configuration)) as observed:
        good = observed.snapshot
        site.write_rules(RULES[1:])
        error = observed.wait_for_failure()
        (fault,) = error.faults
        assert str(fault) == f"{site.bundle}/{FAULT}"
        assert observed.holder.current is good
        site.write_rules(RULES[:1])
        observed.wait_for_rules("open-read")
        assert len(observed.outcomes) == 3, "one report each: loaded, refused, loaded"


def test_one_bundle_that_fails_its_tests_keeps_all_of_them_out(site: PdpSite) -> None:
    other = add_bundle(site, "other")
    observed = Observed(load_settings(site.configuration))
    observed.reloader.refresh()
    good = observed.snapshot
    (other / "policy.csv").write_text(RULES[1] + "\n")
    site.write_rules([*RULES, RULES[0].replace("open-read", "open-too").replace("/open", "/more")])
    observed.reloader.refresh()
    assert observed.holder.current is good
    assert observed.holder.last_error is not None
    assert [fault.file for fault in observed.holder.last_error.faults] == [f"{other}/cases.yaml"]


def test_faults_and_failed_cases_of_different_bundles_come_at_once(site: PdpSite) -> None:
    add_bundle(site, "broken").joinpath("policy.csv").write_text("p, broken\n")
    site.write_rules(RULES[1:])
    observed = Observed(load_settings(site.configuration))
    observed.reloader.refresh()
    assert observed.holder.last_error is not None
    places = {
        (Path(fault.file).parent.name, Path(fault.file).name, fault.line)
        for fault in observed.holder.last_error.faults
    }
    assert places == {("broken", "policy.csv", 1), ("default", "cases.yaml", 1)}


def test_several_config_maps_of_one_pod_change_one_by_one(site: PdpSite) -> None:
    mounts = {}
    for name in ("one", "two", "three"):
        add_bundle(site, name)
        shutil.move(site.bundle.with_name(name), site.directory / f"source-{name}")
        mounts[name] = ConfigMap(site.bundle.with_name(name), site.directory / f"source-{name}")
    with watching(load_settings(site.configuration)) as observed:

        def rules_of(name: str) -> int:
            return len(getattr(observed.snapshot.policies[name], "rules", ()))

        revisions = {name: p.revision for name, p in observed.snapshot.policies.items()}
        for name, mount in mounts.items():
            mount.update({"policy.csv": (RULES[0] + "\n").encode()})
            observed.wait_until(lambda name=name: rules_of(name) == 1)  # type: ignore[misc]
        assert observed.snapshot.policies["default"].revision == revisions["default"]
        # A model that goes with new rows is swapped with them: never one without the other.
        model = (site.directory / "source-one" / "model.conf").read_text()
        wider = model.replace("id, act, path", "id, act, method, path")
        mounts["two"].update(
            {
                "model.conf": wider.encode(),
                "policy.csv": (RULES[0].replace("GET, /", "GET, GET, /") + "\n").encode(),
            }
        )
        observed.wait_until(
            lambda: (
                observed.snapshot.policies["two"].revision
                not in {*revisions.values(), observed.snapshot.policies["one"].revision}
            )
        )
        assert all(outcome.error is None for outcome in observed.outcomes)


def test_what_did_not_change_is_not_compiled_again(
    site: PdpSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = add_bundle(site, "other")
    compiled: list[str] = []

    def counting(*args: object, **options: object) -> object:
        compiled.append(str(options["name_hint"]))
        return load_bundle_files(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("authz_server.reload.bundles.load_bundle_files", counting)
    observed = Observed(load_settings(site.configuration))
    observed.reloader.refresh()
    before = observed.snapshot
    (other / "policy.csv").write_text(RULES[0] + "\n")
    observed.reloader.refresh()
    assert compiled == ["default", "other", "other"]
    assert observed.snapshot.policies["default"] is before.policies["default"]
    assert observed.snapshot.inventory is before.inventory
    # What nothing asked for in the last load is forgotten.
    shutil.rmtree(other)
    observed.reloader.refresh()
    shutil.copytree(site.bundle, other)
    (other / "bundle.yaml").write_text(
        (other / "bundle.yaml").read_text().replace("default", "other")
    )
    observed.reloader.refresh()
    assert compiled == ["default", "other", "other", "other"]


# --- the server ------------------------------------------------------------------------------


def test_a_refused_change_is_on_every_channel_once(site: PdpSite) -> None:
    data = site.check_request("/open/1")
    with running(site) as server:
        before = server.readyz()[1]["revision"]
        site.write_rules(RULES[1:])
        server.wait_until(lambda: server.metric("authz_reload_failed") == 1)
        status, detail = server.readyz()
        assert status == 200
        assert detail["revision"] == before
        assert detail["reload_faults"] == [f"{site.bundle}/{FAULT}"]
        assert server.reason(data) == "OK"
        for _ in range(3):
            server.signal(signal.SIGHUP)
        site.write_rules(RULES)
        server.wait_until(lambda: server.metric("authz_reload_failed") == 0)
        assert server.event_names.count("reload_refused") == 1
        (refused,) = (event for event in server.events if event["event"] == "reload_refused")
        assert refused["faults"] == [f"{site.bundle}/{FAULT}"]


def test_a_start_that_breaks_its_own_tests_says_so_and_ends_with_2(site: PdpSite) -> None:
    site.write_rules(RULES[1:])
    result = serve_to_the_end(site.configuration)
    assert result.returncode == 2
    assert FAULT in result.stderr
    assert '"listening"' not in result.stderr


def test_a_server_that_waits_denies_until_its_policy_is_right(site: PdpSite) -> None:
    data = site.check_request("/open/1")
    site.write_rules(RULES[1:])
    server = ServerProcess(site, "--wait-for-policy", begun="not_ready")
    try:
        status, detail = server.readyz()
        assert status == 503
        assert detail["why_not"] == ["no valid policy is loaded"]
        assert detail["reload_faults"] == [f"{site.bundle}/{FAULT}"]
        assert server.metric("authz_reload_failed") == 1
        assert server.get("/healthz")[0] == 200, "alive: nothing is gained by a restart"
        assert server.reason(data) == "NOT_READY"
        assert server.event_names.count("reload_refused") == 1
        site.write_rules(RULES)
        server.wait_until(lambda: "ready" in server.event_names)
        assert server.reason(data) == "OK"
        assert server.readyz()[0] == 200
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    finally:
        server.end()


def test_a_configuration_that_is_broken_is_not_waited_for(site: PdpSite) -> None:
    site.configuration.write_text("trust_domain: [\n")
    result = serve_to_the_end(site.configuration, "--wait-for-policy")
    assert result.returncode == 2
    assert "authz.yaml:" in result.stderr
