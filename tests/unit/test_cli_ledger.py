"""`decisions` and `approvals` for people and pipes: output, exit codes, never a traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from authz_server.cli import main
from authz_server.ledger.store import Ledger
from tests.ledger_samples import ALICE, BOB, TTL_S, allow, chain, deny, escalation, record

# Forges a line of a log, clears the screen, hides by direction, and looks like rich markup.
HOSTILE = "eve\n2026-07-01 ---> True\r\x1b[2J\x9b31m\u202e[bold red]x[/][link=http://e]y"
ESCAPED = r"eve\n2026-07-01 ---> True\r\x1b[2J\x9b31m\u202e[bold red]x[/][link=http://e]y"

CONFIG = """\
trust_domain: prod.example.org
identity: {unregistered: allow, trust_bundles: {files: {prod.example.org: bundle.pem}}}
delegation: {require: false}
ledger: {url: "sqlite:///authz.db"}
approvals: {groups: {finance-oncall: ["bob@example.org", "alice@example.org"]}}
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A configuration, and a ledger with an allow, an open question and a hostile denial."""
    (tmp_path / "authz.yaml").write_text(CONFIG)
    ledger = Ledger.open(f"sqlite:///{tmp_path}/authz.db", approval_ttl_s=TTL_S)
    now = datetime.now(UTC)
    ledger.commit(
        [
            record(allow(time=now), "01-plain"),
            record(escalation(time=now), "02-asked"),
            record(deny(time=now, chain=chain(subject=HOSTILE)), "03-hostile"),
            record(deny(time=now, principal=None, chain=None, action=None, resource=None), "04"),
        ]
    )
    ledger.close()
    return tmp_path


def run(site: Path, *arguments: str, env: dict[str, str] | None = None) -> Result:
    """Run a command in this process; it must end in an exit code, never in an exception."""
    result = CliRunner().invoke(main.group, [*arguments, "--config", f"{site}/authz.yaml"], env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def approval_id(site: Path) -> str:
    (line,) = run(site, "approvals", "list", "--output", "json").stdout.splitlines()
    request = json.loads(line)
    assert isinstance(request["id"], str)
    return request["id"]


def test_lists_one_line_a_record_newest_first(site: Path) -> None:
    """Case audit-01: a subject that forges a log line stays within its own."""
    result = run(site, "decisions", "list")
    assert result.exit_code == 0
    heading, *lines = result.stdout.splitlines()
    assert heading.split()[:3] == ["decision", "time", "verdict"]
    assert [line.split()[0] for line in lines] == ["04", "03-hostile", "02-asked", "01-plain"]
    assert ESCAPED in lines[1]
    assert result.stdout.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        ("decisions", "show", "03"),
        ("decisions", "show", "03", "--output", "json"),
        ("decisions", "explain", "03"),
        ("decisions", "list", "--output", "json"),
        ("approvals", "list"),
    ],
)
def test_nothing_a_record_holds_reaches_the_terminal_as_it_is(
    site: Path, arguments: Sequence[str]
) -> None:
    """Case audit-01, also where the terminal takes colours."""
    assert run(site, *arguments).stdout.replace("\n", "").isprintable()
    coloured = run(site, *arguments, env={"FORCE_COLOR": "1", "COLUMNS": "200"}).stdout
    assert "\x1b[2J" not in coloured
    assert "\x9b" not in coloured
    assert "\u202e" not in coloured
    assert "\x1b]8" not in coloured, "markup made a link"


def test_json_lists_one_exact_document_a_line(site: Path) -> None:
    result = run(site, "decisions", "list", "--output", "json")
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["decision_id"] for one in documents] == ["04", "03-hostile", "02-asked", "01-plain"]
    assert documents[1]["chain"]["subject"] == HOSTILE
    assert result.stdout.isascii()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--verdict", "escalate"], ["02-asked"]),
        (["--verdict", "DENY", "--limit", "1"], ["04"]),
        (["--reason", "OK"], ["01-plain"]),
        (["--subject", ALICE, "--since", "1h"], ["02-asked", "01-plain"]),
        (["--subject", HOSTILE], ["03-hostile"]),
        (["--until", "2020-01-01T00:00:00Z"], []),
        (["--since", "2020-01-01T01:00:00+01:00", "--rule", "export*"], ["02-asked"]),
        (["--actor", "spiffe://prod.example.org/agent/assistant", "--limit", "1"], ["03-hostile"]),
        (["--principal", "nobody"], []),
        (["--resource", "crm*", "--txn", "txn-1", "--bundle", "tools", "--limit", "1"],
         ["03-hostile"]),
    ],
)  # fmt: skip
def test_filters(site: Path, options: list[str], expected: list[str]) -> None:
    result = run(site, "decisions", "list", "--output", "json", *options)
    assert result.exit_code == 0
    listed = [json.loads(line)["decision_id"] for line in result.stdout.splitlines()]
    assert listed == expected


def test_shows_every_member(site: Path) -> None:
    shown = run(site, "decisions", "show", "01").stdout
    for part in ("chain.hops[1].delegate", "args_sha256", "principal.spiffe_id", "57"):
        assert part in shown
    document = json.loads(run(site, "decisions", "show", "01", "--output", "json").stdout)
    assert document["decision_id"] == "01-plain"


def test_approves_and_shows_what_was_approved(site: Path) -> None:
    question = approval_id(site)
    shown = run(site, "approvals", "show", question[:8]).stdout
    for part in (question, "pending", ALICE, "mcp tools/call", "crm lookup_customer", "ef" * 32):
        assert part in shown
    assert "[" not in shown  # actors are text, and no list of Python's
    result = run(site, "approvals", "approve", question[:8], "--as", BOB)
    assert result.exit_code == 0
    assert "approved" in result.stdout
    assert BOB in result.stdout
    again = run(site, "approvals", "approve", question, "--as", BOB)
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr == f"refused: approval {question} is already approved by {BOB}\n"


def test_rejects_with_a_reason(site: Path) -> None:
    result = run(site, "approvals", "reject", approval_id(site), "--as", BOB, "--reason", "no need")
    assert result.exit_code == 0
    assert "no need" in result.stdout
    assert run(site, "approvals", "list", "--status", "pending").stdout.count("\n") == 1


@pytest.mark.parametrize("who", [ALICE, "eve@example.org"])
def test_refuses_whoever_is_not_entitled(site: Path, who: str) -> None:
    result = run(site, "approvals", "approve", approval_id(site), "--as", who)
    assert result.exit_code == 1
    assert result.stderr.startswith("refused: ")
    assert result.stderr.count("\n") == 1


def test_without_the_configuration_nobody_is_entitled(site: Path) -> None:
    question = approval_id(site)
    arguments = ["approvals", "approve", question, "--as", BOB, "--ledger"]
    result = CliRunner().invoke(main.group, [*arguments, f"sqlite:///{site}/authz.db"])
    assert result.exit_code == 1
    assert "approvals.groups" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decisions", "list"], "give --config FILE or --ledger URL"),
        (["decisions", "list", "--config", "/nowhere.yaml"], "/nowhere.yaml: error: "),
        (["decisions", "list", "--ledger", "mysql://x"], "not supported"),
        (["decisions", "list", "--ledger", "sqlite:////nowhere.db"], "does not exist"),
        (["decisions", "list", "--since", "noon"], "`noon` is no time"),
        (["decisions", "list", "--since", "2026-07-01T12:00:00"], "lacks its offset"),
        (["decisions", "list", "--verdict", "maybe"], "'maybe' is not one of"),
        (["decisions", "list", "--limit", "0"], "0 is not in the range"),
        (["decisions", "explain", "0", "--ledger", "LEDGER"], "more than one decision"),
        (["decisions", "show", "\x1b[2J", "--ledger", "LEDGER"], r"no decision .* `\x1b[2J`"),
        (["approvals", "show", "zz", "--ledger", "LEDGER"], "no approval"),
        (["approvals", "approve", "zz", "--ledger", "LEDGER"], "Missing option '--as'"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_message_and_exit_code_2(
    site: Path, arguments: list[str], message: str
) -> None:
    arguments = [one.replace("LEDGER", f"sqlite:///{site}/authz.db") for one in arguments]
    result = CliRunner().invoke(main.group, arguments)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 2
    assert result.stdout == ""
    first, _, last = message.partition(" .* ")
    assert first in result.stderr
    assert last in result.stderr


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_file_that_is_no_ledger_is_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.db").write_bytes(content)
    arguments = ["decisions", "list", "--ledger", f"sqlite:///{tmp_path}/other.db"]
    result = CliRunner().invoke(main.group, arguments)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: cannot read the ledger: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["list", "show", "explain", "approve", "reject"])
def test_every_command_shows_an_example(command: str) -> None:
    name = "approvals" if command in {"approve", "reject"} else "decisions"
    result = CliRunner().invoke(main.group, [name, command, "--help"])
    assert result.exit_code == 0
    assert f"  authz-server {name} {command} " in result.stdout


def test_a_pipe_without_unicode_gets_escapes_and_no_traceback(site: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{site}/authz.db", approval_ttl_s=TTL_S)
    decision = allow()
    assert decision.chain is not None
    ledger.commit([record(replace(decision, chain=chain(subject="zoë")), "05")])
    ledger.close()
    command = ["decisions", "explain", "05", "--ledger", f"sqlite:///{site}/authz.db"]
    done = subprocess.run(
        [sys.executable, "-m", "authz_server", *command],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"zo\xeb" in done.stdout


def test_finds_the_configuration_in_the_environment(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTHZ_CONFIG", f"{site}/authz.yaml")
    result = CliRunner().invoke(main.group, ["decisions", "list", "--limit", "1"])
    assert result.exit_code == 0, result.stderr
