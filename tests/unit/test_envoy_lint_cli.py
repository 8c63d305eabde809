"""`authz-server envoy lint`: what it takes, what it prints, how it exits."""

import copy
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from authz_server.cli import main
from tests.lint_bases import base
from tests.lint_samples import Tree, find


def run(*arguments: str | Path, text: str | None = None) -> Result:
    words = ["envoy", "lint", *map(str, arguments)]
    return CliRunner().invoke(main.group, words, input=text)


@pytest.fixture
def unsafe() -> Tree:
    """One error (EA201) and one warning (EA325)."""
    tree = copy.deepcopy(base("http"))
    find(tree, "ext_authz")["failure_mode_allow"] = True
    find(tree, "virtual_host")["domains"] = ["*"]
    return tree


@pytest.fixture
def file(unsafe: Tree, tmp_path: Path) -> Path:
    path = tmp_path / "envoy.yaml"
    path.write_text(yaml.safe_dump(unsafe))
    return path


def test_a_safe_configuration_exits_with_0_and_says_so() -> None:
    result = run("-", text=json.dumps(base("http")))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "0 errors, 0 warnings\n"


def test_a_finding_has_place_path_reason_and_fix(file: Path) -> None:
    result = run(file)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    head = next(n for n, line in enumerate(lines) if "EA201" in line)
    source = file.read_text().splitlines()
    number = next(n for n, line in enumerate(source, 1) if "failure_mode_allow" in line)
    column = source[number - 1].index("true") + 1
    assert lines[head].startswith(f"{file}:{number}:{column}: error: EA201 ")
    assert lines[head + 1].strip() == "failure_mode_allow: true"
    assert lines[head + 2].index("^") == 4 + column - 1
    assert lines[head + 3] == "    in:   listener `data`"
    assert lines[head + 4].startswith("    path: $.static_resources.listeners[0].")
    assert lines[head + 5].startswith("    why:  While the PDP is down")
    assert lines[head + 6] == "    fix:  `failure_mode_allow: false`"
    assert result.stderr == "1 error, 1 warning\n"


def test_json_is_one_finding_a_line(file: Path) -> None:
    result = run(file, "--output", "json")
    found = {one["rule"]: one for one in map(json.loads, result.stdout.splitlines())}
    assert found.keys() == {"EA201", "EA325"}
    assert found["EA325"]["severity"] == "warning"
    assert found["EA325"]["resources"] == [
        "listener `data`",
        "routes `data`",
        "virtual host `data`",
    ]
    assert set(found["EA201"]) == {
        "rule", "severity", "file", "line", "column", "path", "resources", "message", "why", "fix",
    }  # fmt: skip


def test_warnings_fail_only_when_told_to(file: Path) -> None:
    assert run(file, "--ignore", "EA201").exit_code == 0
    assert run(file, "--ignore", "EA201", "--strict").exit_code == 1
    both = run(file, "--ignore", "EA201", "--ignore", "EA325", "--strict")
    assert (both.exit_code, both.stdout) == (0, "")


def test_an_unknown_rule_is_a_usage_error(file: Path) -> None:
    result = run(file, "--ignore", "EA2O1")
    assert result.exit_code == 2
    assert "there is no rule `EA2O1`" in result.stderr


def test_nothing_to_judge_is_a_usage_error() -> None:
    assert run().exit_code == 2


def test_all_unreadable_input_is_told_at_once(tmp_path: Path, file: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [\n")
    result = run(tmp_path / "missing.yaml", broken, file)
    assert result.exit_code == 2
    assert f"{tmp_path}/missing.yaml: error: cannot be read: No such file" in result.stderr
    assert f"{broken}:2:1: error: not YAML" in result.stderr


def test_a_line_that_may_hold_a_secret_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "envoy.json"
    path.write_text('{"admin": {}, "layered_runtime":\n {"private_key": "hunter2"}}')
    result = run(path)
    assert "EA001" in result.stdout
    assert "hunter2" not in result.stdout


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps({"admin": {}, "node": {"\x1b[31m": 1}}))
    assert "\x1b[31m" not in run(path).stdout


def test_rule_ids_complete() -> None:
    completion = ShellComplete(main.group, {}, "authz-server", "_AUTHZ_SERVER_COMPLETE")
    found = completion.get_completions(["envoy", "lint", "--ignore"], "ea20")
    assert [item.value for item in found][:2] == ["EA201", "EA202"]


# --- a running Envoy ----------------------------------------------------------------------------


@contextmanager
def admin(answer: bytes, status: int = 200) -> Iterator[str]:
    """Run an admin interface that answers every request with `answer`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/config_dump" else 404)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_finding_of_a_running_envoy_has_a_path_and_no_line(unsafe: Tree) -> None:
    dump = {
        "configs": [
            {
                "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
                "bootstrap": unsafe,
            }
        ]
    }
    with admin(json.dumps(dump).encode()) as address:
        result = run("--admin", address, "--ignore", "EA325")
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{address}: error: EA201 ")
    assert "path: $.configs[0].bootstrap.static_resources" in result.stdout


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:{closed}", "no admin interface of an Envoy"),
        ("unix:///nowhere/admin.sock", "no admin interface of an Envoy"),
        ("http://127.0.0.1:port", "a port is a number"),
        ("ftp://127.0.0.1", "not of the form"),
        ("http://127.0.0.1:1/elsewhere", "not of the form"),
        ("unix://host/admin.sock", "not of the form"),
    ],
)
def test_an_admin_interface_that_is_not_there_exits_with_2(address: str, message: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        result = run("--admin", address.format(closed=free.getsockname()[1]))
    assert result.exit_code == 2
    assert message in result.stderr


def test_what_speaks_no_http_is_not_repeated_to_the_terminal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"\x00\x1b[31m\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        result = run("--admin", f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert (result.exit_code, "\x1b" in result.stderr) == (2, False)
    assert "it speaks no HTTP/1.1" in result.stderr


def test_an_admin_interface_that_refuses_exits_with_2() -> None:
    with admin(b"no", status=403) as address:
        result = run("--admin", address)
    assert result.exit_code == 2
    assert "answered 403 to `/config_dump`" in result.stderr
