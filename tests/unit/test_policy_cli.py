"""`policy lint`, `test`, `explain` and `bench`: output, exit codes, one truth with the server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from authz_server.cli import main
from authz_server.cli.policy_sources import is_bundle
from authz_server.core.errors import ConfigurationError
from authz_server.policy.bundle import load_bundles
from tests.policy_samples import field, model

COLUMNS = "id, kind, rule, eft, obligation"
MODEL = model("r.sub.kind == p.kind && eval(p.rule)", columns=COLUMNS)
POLICY = """\
p, read, agent, r.act.read_only, allow,
p, export, agent, "r.obj.path == '/exports'", escalate, sre
p, nobody, human, true, deny,
"""
CASES = """\
- name: reading
  request: {sub: {kind: agent}, act: {name: GET}}
  expect: {verdict: allow, reason: OK, rules: [read]}
- name: an export
  request: {sub: {kind: agent}, act: {name: POST}, obj: {path: /exports}}
  expect: {verdict: escalate, obligation: sre}
"""
REQUEST = '{"sub": {"kind": "agent"}, "act": {"name": "POST"}, "obj": {"path": "/exports"}}'
SHIPPED = Path(__file__).parents[2] / "casbin_models"


def write(directory: Path, **changes: str) -> Path:
    """Write a bundle; a file is changed or added by its name, `_` for `.`."""
    directory.mkdir(parents=True)
    files = {
        "model.conf": MODEL,
        "policy.csv": POLICY,
        "bundle.yaml": "domain: data\n",
        "cases.yaml": CASES,
    }
    files |= {name.replace("_", "."): text for name, text in changes.items()}
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "models" / "crm")


def run(*arguments: object, stdin: str = "") -> Result:
    """Run a command in this process; it must end in an exit code, never in an exception."""
    result = CliRunner().invoke(main.group, ["policy", *map(str, arguments)], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


# --- DIR ----------------------------------------------------------------------------------------


def test_dir_is_one_bundle_or_a_directory_of_bundles(bundle: Path) -> None:
    write(bundle.parent / "data")
    assert is_bundle(bundle)
    assert not is_bundle(bundle.parent)
    assert run("test", bundle).stdout.splitlines()[-1].startswith("crm: ")
    assert [
        line.partition(":")[0]
        for line in run("test", bundle.parent).stdout.splitlines()
        if "cases pass" in line
    ] == ["crm", "data"]


def test_a_mounted_configmap_is_a_bundle(tmp_path: Path) -> None:
    write(tmp_path / "crm" / "..2026_01")
    (tmp_path / "crm" / "..data").symlink_to("..2026_01")
    for name in ("model.conf", "policy.csv", "bundle.yaml", "cases.yaml"):
        (tmp_path / "crm" / name).symlink_to(f"..data/{name}")
    assert run("test", tmp_path / "crm").exit_code == 0


# --- lint ---------------------------------------------------------------------------------------

FAULTY = """\
p, read, agnt, r.act.read_only, allow,
p, export, agent, r.obj.pth == '/exports', escalate,
"""


def test_every_fault_has_its_place_and_a_caret(bundle: Path) -> None:
    (bundle / "policy.csv").write_text(FAULTY)
    result = run("lint", bundle)
    assert result.exit_code == 1
    file = bundle / "policy.csv"
    assert result.stdout.splitlines() == [
        f"{file}:1:10: error: can never match: `agnt` is no value of `r.sub.kind`; "
        "did you mean `agent`?",
        "    p, read, agnt, r.act.read_only, allow,",
        "             ^",
        f"{file}:2:25: error: r.obj has no attribute `pth`; did you mean `path`?",
        "    p, export, agent, r.obj.pth == '/exports', escalate,",
        "                            ^",
        f"{file}:2:53: error: escalate needs an obligation: the approver group",
        "    p, export, agent, r.obj.pth == '/exports', escalate,",
        "                                                        ^",
    ]
    assert result.stderr == "3 errors, 0 warnings; 0 bundles with 0 rules can be served\n"


def test_faults_of_all_bundles_come_at_once_with_the_warnings_beside_them(bundle: Path) -> None:
    advice = POLICY + "p, odd, agent, \"regexMatch(r.obj.path, 'a')\", allow, sre\n"
    write(bundle.parent / "data", policy_csv=advice)
    write(bundle.parent / "broken", policy_csv=advice.replace("read_only", "read_onli"))
    result = run("lint", bundle.parent, "--output", "json")
    assert result.exit_code == 1
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(Path(one["file"]).parent.name, one["severity"]) for one in found] == [
        ("broken", "error"),
        ("broken", "warning"),
        ("broken", "warning"),
        ("data", "warning"),
        ("data", "warning"),
    ]
    assert found[0] == {
        "severity": "error",
        "file": str(bundle.parent / "broken" / "policy.csv"),
        "line": 1,
        "column": 23,
        "message": "r.act has no attribute `read_onli`; did you mean `read_only`?",
        "source": "p, read, agent, r.act.read_onli, allow,",
    }


def test_warnings_count_only_when_asked_to(bundle: Path) -> None:
    assert run("lint", bundle, "--strict").exit_code == 0
    (bundle / "policy.csv").write_text(POLICY.replace("allow,", "allow, sre"))
    assert run("lint", bundle).exit_code == 0
    result = run("lint", bundle, "--strict")
    assert result.exit_code == 1
    assert ": warning: an obligation means nothing for `allow`" in result.stdout


@pytest.mark.parametrize("policy", [POLICY, FAULTY, "", "p, a", 'p, "', "x\x00\n"])
def test_lint_finds_exactly_what_the_server_refuses(bundle: Path, policy: str) -> None:
    (bundle / "policy.csv").write_text(policy)
    refused: list[str] = []
    try:
        load_bundles(bundle.parent)
    except ConfigurationError as error:
        refused = sorted(str(fault) for fault in error.faults)
    result = run("lint", bundle.parent, "--output", "json")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len([one for one in found if one["severity"] == "error"]) == len(refused)
    assert result.exit_code == bool(refused)


def test_a_file_cannot_drive_the_terminal(bundle: Path) -> None:
    (bundle / "policy.csv").write_text(POLICY + "p, \x1b[2J, agent, tru, allow,\n")
    result = run("lint", bundle)
    assert result.exit_code == 1
    assert r"\x1b[2J" in result.stdout
    assert "\x1b" not in result.stdout


def test_nothing_to_lint_is_a_fault(tmp_path: Path) -> None:
    result = run("lint", tmp_path)
    assert (result.exit_code, result.stdout) == (
        1,
        f"{tmp_path}: error: there is no policy bundle in it\n",
    )


# --- test ---------------------------------------------------------------------------------------


def test_cases_pass_and_rules_without_a_case_are_listed(bundle: Path) -> None:
    result = run("test", bundle)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"{bundle / 'policy.csv'}:3: no case exercises rule `nobody`",
        "crm: 2 of 2 cases pass; 2 of 3 rules exercised (67 %)",
    ]


def test_a_failed_case_is_shown_as_a_difference(bundle: Path) -> None:
    (bundle / "cases.yaml").write_text(CASES.replace("rules: [read]", "rules: [export, read]"))
    with (bundle / "cases.yaml").open("a") as file:
        file.write("- name: people\n  request: {sub: {kind: human}}\n  expect: {verdict: allow}\n")
    result = run("test", bundle)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{bundle / 'cases.yaml'}:1: case `reading` came out otherwise",
        "    verdict: allow",
        "    reason: OK",
        "  - rules: export, read",
        "  + rules: read",
        f"{bundle / 'cases.yaml'}:7: case `people` came out otherwise",
        "  - verdict: allow",
        "  + verdict: deny",
        "    reason: DENIED_BY_RULE",
        "    rules: nobody",
        "crm: 1 of 3 cases pass; 3 of 3 rules exercised (100 %)",
    ]


@pytest.mark.parametrize(("percent", "code"), [("66", 0), ("66.7", 1), ("100", 1), ("0", 0)])
def test_coverage_can_be_required(bundle: Path, percent: str, code: int) -> None:
    assert run("test", bundle, "--require-coverage", percent).exit_code == code


def test_test_results_as_json(bundle: Path) -> None:
    (bundle / "cases.yaml").write_text(CASES.replace("verdict: escalate", "verdict: deny"))
    result = run("test", bundle, "--output", "json")
    assert result.exit_code == 1
    (report,) = map(json.loads, result.stdout.splitlines())
    assert report["failed"] == [
        {
            "name": "an export",
            "file": str(bundle / "cases.yaml"),
            "line": 4,
            "expected": {"verdict": "deny"},
            "actual": {
                "verdict": "escalate",
                "reason": "ESCALATED_BY_RULE",
                "rules": ["export"],
                "obligation": "sre",
            },
        }
    ]
    assert (report["bundle"], report["cases"], report["rules"]) == ("crm", 2, 3)
    assert [one["id"] for one in report["untested"]] == ["nobody"]
    assert report["coverage_percent"] == 66.7


def test_a_bundle_without_cases_tests_nothing(bundle: Path) -> None:
    (bundle / "cases.yaml").unlink()
    result = run("test", bundle)
    assert result.exit_code == 0
    assert result.stdout.endswith("crm: 0 of 0 cases pass; 0 of 3 rules exercised (0 %)\n")
    assert run("test", bundle, "--require-coverage", "1").exit_code == 1


@pytest.mark.parametrize("command", ["test", "explain", "bench"])
def test_a_bundle_that_does_not_load_is_unreadable_input(bundle: Path, command: str) -> None:
    (bundle / "policy.csv").write_text(FAULTY)
    result = run(command, bundle, stdin=REQUEST)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count(": error: ") == 3


def test_the_shipped_bundles_are_sound_and_fully_tested() -> None:
    assert run("lint", SHIPPED, "--strict").exit_code == 0
    assert run("test", SHIPPED, "--require-coverage", "100").exit_code == 0


# --- explain ------------------------------------------------------------------------------------


def test_explains_as_a_tree(bundle: Path) -> None:
    result = run("explain", bundle, stdin=REQUEST)
    assert result.exit_code == 0
    heading, why, party, *rest = result.stdout.splitlines()
    assert heading.startswith("ESCALATE (ESCALATED_BY_RULE) by bundle crm revision ")
    assert "`export`; approver group `sre`; any deny outranks any escalate" in why
    assert "caller without id kind agent → escalate (ESCALATED_BY_RULE)" in party
    text = "\n".join(rest)
    assert "✓ export escalate matches and decides" in text
    assert '✓ r.obj.path == "/exports" (r.obj.path is "/exports")' in text
    assert "✗ read allow 1 of 2 do not hold" in text
    assert "✗ r.act.read_only (r.act.read_only is false)" in text


def test_explains_as_json(bundle: Path) -> None:
    result = run("explain", bundle, "--output", "json", "--near", "1", stdin=REQUEST)
    found = json.loads(result.stdout)
    assert (found["verdict"], found["reason"], found["rules"], found["obligation"]) == (
        "escalate",
        "ESCALATED_BY_RULE",
        ["export"],
        "sre",
    )
    (party,) = found["parties"]
    assert party["others"] == 1
    export, read = party["explained"]
    assert (export["outcome"], export["decided"]) == ("true", True)
    assert read["operands"][1] == {
        "text": "r.act.read_only",
        "outcome": "false",
        "reached": True,
        "error": None,
        "values": {"r.act.read_only": False},
        "parts": [],
    }


def test_explains_a_case_by_its_name_and_a_file(bundle: Path, tmp_path: Path) -> None:
    by_case = run("explain", bundle, "--case", "an export", "--output", "json")
    (tmp_path / "request.json").write_text(REQUEST)
    by_file = run("explain", bundle, tmp_path / "request.json", "--output", "json")
    assert json.loads(by_case.stdout) == json.loads(by_file.stdout)


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        ("{", "standard input:2:1: error: not YAML"),
        ('{"sub": {"knd": "agent"}}', "unknown key `knd`; did you mean `kind`?"),
        ('{"obj": {"path": 7}}', "standard input:1:18: error: expected string"),
        ("[]", "expected a mapping of sub"),
        ("", "expected a mapping of sub"),
        (" " * (1024 * 1024 + 1), "longer than 1048576 bytes"),
    ],
)
def test_attributes_that_cannot_be_read(bundle: Path, stdin: str, message: str) -> None:
    result = run("explain", bundle, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "holds several bundles"),
        (("--bundle", "dat"), "no bundle is called `dat`"),
        (("--bundle", "data", "--case", "no"), "has no case called `no`"),
    ],
)
def test_which_bundle_and_case(bundle: Path, options: tuple[str, ...], message: str) -> None:
    write(bundle.parent / "data")
    result = run("explain", bundle.parent, *options, stdin=REQUEST)
    assert result.exit_code == 2
    assert message in result.stderr


def test_explains_several_policy_types(bundle: Path) -> None:
    effect = "some(where (p2.eft == allow)) && !some(where (p2.eft == deny))"
    conf = MODEL.replace("[policy_effect]", "p2 = id, path, eft\n[policy_effect]")
    conf = conf.replace("\n\n[matchers]", f"\ne2 = {effect}\n[matchers]")
    conf += "m2 = keyMatch(r.obj.path, p2.path)\n"
    (bundle / "model.conf").write_text(conf)
    (bundle / "policy.csv").write_text(POLICY + "p2, zone, /exp*, allow\n")
    found = json.loads(run("explain", bundle, "--output", "json", stdin=REQUEST).stdout)
    assert found["verdict"] == "escalate"
    assert "the strictest of 2 policy types" in found["why"]
    matched = {one["id"] for one in found["parties"][0]["explained"] if one["outcome"] == "true"}
    assert matched == {"export", "zone"}


# --- bench --------------------------------------------------------------------------------------

KEYS = ["rules", "build_s", "p50_us", "p99_us", "bytes_per_rule", "casbin_p50_us"]


def test_measures_the_cases_beside_pycasbin(bundle: Path) -> None:
    result = run("bench", bundle, "--requests", "50")
    assert result.exit_code == 0, result.stderr
    (figures,) = map(json.loads, result.stdout.splitlines())
    assert list(figures) == KEYS
    assert figures["rules"] == 3
    assert all(figures[name] > 0 for name in KEYS), figures
    assert result.stderr == ""


def test_measures_every_bundle_of_a_directory(bundle: Path) -> None:
    (write(bundle.parent / "data") / "cases.yaml").unlink()
    result = run("bench", bundle.parent, "--requests", "5")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["bundle"] for one in found] == ["crm", "data"]
    assert result.stderr == "data: no cases; requests are made up from the rules\n"


def test_without_pycasbin_its_figure_is_null(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "casbin", None)
    result = run("bench", bundle, "--requests", "5")
    assert json.loads(result.stdout)["casbin_p50_us"] is None
    assert "pycasbin is not installed" in result.stderr


def test_what_pycasbin_cannot_decide_is_null(bundle: Path) -> None:
    rule = field("r.obj.args['a-b'] == 1 && timeMatch('_', '2030-01-01 00:00:00')")
    (bundle / "policy.csv").write_text(POLICY + f"p, odd, agent, {rule}, allow,\n")
    result = run("bench", bundle, "--requests", "5")
    assert json.loads(result.stdout)["casbin_p50_us"] is None
    assert "pycasbin cannot decide this" in result.stderr


# --- completion ---------------------------------------------------------------------------------


def completions(words: str, directory: Path) -> list[str]:
    """Return what a shell would offer after `authz-server` and `words`."""
    environment = os.environ | {
        "_AUTHZ_SERVER_COMPLETE": "bash_complete",
        "COMP_WORDS": f"authz-server {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    done = subprocess.run(
        [sys.executable, "-m", "authz_server"],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_shell_completes_commands_directories_and_bundles(bundle: Path) -> None:
    models = bundle.parent
    offered: dict[str, Any] = {
        words: completions(words, models.parent)
        for words in ("pol", "policy ", "policy lint ", "policy explain models --bundle c")
    }
    assert offered == {
        "pol": ["plain,policy"],
        "policy ": [
            "plain,bench",
            "plain,consistency",
            "plain,diff",
            "plain,explain",
            "plain,lint",
            "plain,test",
        ],
        "policy lint ": ["dir,"],
        "policy explain models --bundle c": ["plain,crm"],
    }
