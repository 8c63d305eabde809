"""What a pipeline lets pass the server takes, and what it stops the server refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from authz_server.cli.policy import group
from authz_server.settings import load_settings
from tests.faults.test_reload_gate import write_cases
from tests.harness.policy_database import VARIABLE, PolicyDatabase, use_table
from tests.harness.reloading import Observed
from tests.pdp_site import RULES, PdpSite


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def _rows(site: PdpSite) -> PolicyDatabase:
    use_table(site)
    database = PolicyDatabase(f"sqlite:///{site.directory}/policy.db")
    database.replace(RULES)
    return database


Change = Callable[[PdpSite], object]

# What is done to a sound bundle, and which command finds it (None: nothing is wrong).
CHANGES: dict[str, tuple[Change, str | None]] = {
    "nothing": (lambda site: None, None),
    "a comment": (lambda site: _append(site.bundle / "policy.csv", "# later\n"), None),
    "no cases": (lambda site: (site.bundle / "cases.yaml").unlink(), None),
    "a warning": (
        lambda site: site.write_rules([*RULES, RULES[1].replace("ask-first", "again")]),
        None,
    ),
    "rows in a table": (_rows, None),
    "a row missing": (lambda site: site.write_rules(RULES[1:]), "test"),
    "a row missing in a table": (lambda site: _rows(site).replace(RULES[1:]), "test"),
    "a misspelt effect": (lambda site: site.write_rules(["p, a, GET, /, s, , alow"]), "lint"),
    "a misspelt effect in a table": (lambda site: _rows(site).set(1, v5="alow"), "lint"),
    "a case of no form": (lambda site: _append(site.bundle / "cases.yaml", "- 7\n"), "lint"),
    "a model that is cut off": (
        lambda site: (site.bundle / "model.conf").write_text("[request_definition]\nr = sub"),
        "lint",
    ),
    "no policy": (lambda site: (site.bundle / "policy.csv").unlink(), "lint"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_pipeline_and_the_server_agree(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = PdpSite.create(tmp_path)
    write_cases(site.bundle)
    change, finder = CHANGES[name]
    change(site)
    environ = {VARIABLE: f"sqlite:///{tmp_path}/policy.db"}
    monkeypatch.setenv(VARIABLE, environ[VARIABLE])

    root = str(site.bundle.parent)
    said = {kind: CliRunner().invoke(group, [kind, root]).exit_code for kind in ("lint", "test")}
    observed = Observed(load_settings(site.configuration), environ)
    observed.reloader.refresh()
    observed.reloader.close()

    assert (observed.holder.current is not None) == (finder is None), observed.holder.last_error
    assert said["lint"] == (finder == "lint")
    assert (said["test"] == 0) == (finder is None)
