"""The recorded ways in which reloading a policy has let somebody in: refused, or never allowed.

`reload-02` a negated role while roles are loaded; `reload-05` a deny rule with a wildcard under an
enforcer that filters first; `reload-09` a file written in two parts; `reload-10` a new model with
old rows.
"""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import casbin
import pytest
import yaml

from authz_server.core.attributes import (
    ActionAttributes,
    Attributes,
    ChainAttributes,
    EnvironmentAttributes,
    ObjectAttributes,
    PartyAttributes,
)
from authz_server.core.decision import Evaluation, Verdict
from authz_server.settings import Settings, load_settings
from tests.harness.reloading import Observed
from tests.pdp_site import PdpSite


@pytest.fixture
def site(tmp_path: Path) -> PdpSite:
    return PdpSite.create(tmp_path)


@pytest.fixture
def settings(site: PdpSite) -> Settings:
    return load_settings(site.configuration)


def ask(observed: Observed, subject: str, path: str) -> Evaluation:
    """Return what the serving policy says to `GET path` by `subject`."""
    return observed.snapshot.policies["default"].evaluate(
        Attributes(
            caller=PartyAttributes(id=subject, kind="human", role="caller"),
            chain=ChainAttributes(present=False),
            act=ActionAttributes(protocol="http", name="GET", read_only=True),
            obj=ObjectAttributes(type="http", path=path),
            env=EnvironmentAttributes(
                now=0,
                hour_utc=0,
                weekday=1,
                source_ip=None,
                listener=None,
                domain="data",
                bundle="default",
                sni=None,
            ),
        )
    )


def write(site: PdpSite, model: str, rows: list[str], cases: list[object] | None = None) -> None:
    """Replace model, rows and policy tests."""
    (site.bundle / "model.conf").write_text(model)
    if cases is not None:
        (site.bundle / "cases.yaml").write_text(yaml.safe_dump(cases))
    site.write_rules(rows)


def case(subject: str, path: str, verdict: str) -> object:
    """Return a policy test."""
    return {
        "name": f"{subject} {path}",
        "request": {"sub": {"id": subject}, "act": {"name": "GET"}, "obj": {"path": path}},
        "expect": {"verdict": verdict},
    }


_ROLES = """\
[request_definition]
r = sub, act, obj
[policy_definition]
p = id, role, path
[role_definition]
g = _, _
[policy_effect]
e = some(where (p.eft == allow))
[matchers]
m = g(r.sub.id, p.role) && keyMatch(r.obj.path, p.path) && !g(r.sub.id, "banned")
"""


def test_reload_02_a_negated_role_holds_in_every_moment_of_a_reload(
    site: PdpSite, settings: Settings
) -> None:
    """What pycasbin does instead: `test_reload_under_load`."""
    rows = ["p, read, staff, /report/*", "g, alice, staff", "g, mallory, staff"]
    many = [f"g, colleague-{number}, staff" for number in range(300)]
    write(site, _ROLES, [*rows, *many, "g, mallory, banned"])
    observed = Observed(settings)
    observed.reloader.refresh()
    wrong: list[Evaluation] = []
    asked = [0]
    done = threading.Event()

    def keep_asking() -> None:
        while not done.is_set():
            for subject, expected in (("mallory", Verdict.DENY), ("alice", Verdict.ALLOW)):
                found = ask(observed, subject, "/report/1")
                if found.verdict is not expected:
                    wrong.append(found)
            asked[0] += 1

    asking = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in asking:
        thread.start()
    try:
        for number in range(1, 21):
            site.write_rules([*rows, *many[number:], "g, mallory, banned"])
            observed.reloader.refresh()
    finally:
        done.set()
        for thread in asking:
            thread.join()
    assert not wrong
    assert asked[0]
    assert [outcome.error for outcome in observed.outcomes] == [None] * 21


_PATHS = """\
[request_definition]
r = sub, act, obj
[policy_definition]
p = sub, path, act, eft
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = (p.sub == "*" || r.sub.id == p.sub) && keyMatch(r.obj.path, p.path) && r.act.name == p.act
"""
_CASBIN_PATHS = """\
[request_definition]
r = sub, obj, act
[policy_definition]
p = sub, obj, act, eft
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = (p.sub == "*" || r.sub == p.sub) && keyMatch(r.obj, p.obj) && r.act == p.act
"""
_PATH_ROWS = ["p, *, /admin/users, GET, allow", "p, eve, /admin/*, GET, deny"]


def test_reload_05_a_deny_with_a_wildcard_is_found(
    site: PdpSite, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "model.conf").write_text(_CASBIN_PATHS)
    (tmp_path / "policy.csv").write_text("\n".join(_PATH_ROWS))
    fast = casbin.FastEnforcer(
        str(tmp_path / "model.conf"), str(tmp_path / "policy.csv"), cache_key_order=[1]
    )
    assert fast.enforce("eve", "/admin/users", "GET"), "it looks only at rows with this very path"

    write(site, _PATHS, _PATH_ROWS)
    observed = Observed(settings)
    observed.reloader.refresh()
    assert ask(observed, "alice", "/admin/users").verdict is Verdict.ALLOW
    assert ask(observed, "eve", "/admin/users").verdict is Verdict.DENY


def test_reload_05_no_enforcer_of_pycasbin_is_ever_loaded() -> None:
    program = "import sys, authz_server.app, authz_server.cli.serve; print('casbin' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "False"


_WHOLE = ["p, alice, /*, GET, allow", "p, alice, /admin/*, GET, deny"]
_PROMISES = [case("alice", "/open", "allow"), case("alice", "/admin/1", "deny")]


@pytest.mark.parametrize("cut", range(1, len("\n".join(_WHOLE)), 3))
def test_reload_09_a_file_written_in_two_parts_never_opens_a_door(
    site: PdpSite, settings: Settings, cut: int
) -> None:
    """Wherever the first part ends, also between two rows, where it reads well."""
    write(site, _PATHS, _WHOLE, _PROMISES)
    observed = Observed(settings)
    observed.reloader.refresh()
    good = observed.snapshot
    data = ("\n".join(_WHOLE) + "\n").encode()
    with (site.bundle / "policy.csv").open("wb") as file:
        file.write(data[:cut])
        file.flush()
        observed.reloader.refresh()
        assert observed.holder.current is good
        assert observed.holder.last_error is not None
        file.write(data[cut:])
    observed.reloader.refresh()
    assert observed.holder.last_error is None
    assert observed.snapshot.revision == good.revision


def test_reload_09_without_policy_tests_a_part_that_reads_well_would_serve(
    site: PdpSite, settings: Settings
) -> None:
    """Why the shipped bundles all have `cases.yaml`, and why a ConfigMap is swapped as a whole."""
    write(site, _PATHS, _WHOLE[:1])
    observed = Observed(settings)
    observed.reloader.refresh()
    assert ask(observed, "alice", "/admin/1").verdict is Verdict.ALLOW


_NEW_MODELS: dict[str, Callable[[str], str]] = {
    "another column": lambda model: model.replace("path, act, eft", "path, act, tenant, eft"),
    "columns exchanged": lambda model: model.replace("sub, path, act", "sub, act, path"),
    "deny is the default meaning": lambda model: model.replace(
        "e = some(where (p.eft == allow)) && !some(where (p.eft == deny))",
        "e = !some(where (p.eft == deny))",
    ),
    "a condition less": lambda model: model.replace('(p.sub == "*" || r.sub.id == p.sub) && ', ""),
    "a condition turned round": lambda model: model.replace(
        "r.sub.id == p.sub", "r.sub.id != p.sub"
    ),
}


@pytest.mark.parametrize("name", _NEW_MODELS)
def test_reload_10_a_new_model_with_old_rows_is_refused(
    site: PdpSite, settings: Settings, name: str
) -> None:
    """The keys of a ConfigMap written one by one, a second apart."""
    write(site, _PATHS, _WHOLE, [*_PROMISES, case("eve", "/open", "deny")])
    observed = Observed(settings)
    observed.reloader.refresh()
    good = observed.snapshot
    (site.bundle / "model.conf").write_text(_NEW_MODELS[name](_PATHS))
    observed.reloader.refresh()
    assert observed.holder.last_error is not None
    assert observed.holder.current is good
    assert ask(observed, "alice", "/admin/1").verdict is Verdict.DENY
    assert ask(observed, "eve", "/open").verdict is Verdict.DENY
