"""`authz-server envoy render`: what it prints, writes and refuses, and the golden files."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from authz_server.cli.envoy_render import command
from authz_server.cli.main import group
from authz_server.envoy_config.spec_file import parse_spec

ENVOY = Path(__file__).parents[2] / "envoy"
POINTS = sorted((ENVOY / "points").glob("*.yaml"))
POINT = ENVOY / "points" / "mcp.yaml"


def render(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    argv = ["envoy", "render", *map(str, arguments)]
    return CliRunner().invoke(group, argv, input=stdin)


def printed(*arguments: str | Path, stdin: str | None = None) -> str:
    result = render(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("point", POINTS, ids=lambda path: path.stem)
def test_golden_files_are_what_the_command_prints(point: Path) -> None:
    head, _, golden = (ENVOY / "rendered" / point.name).read_text().partition("\n")
    assert head == f"# authz-server envoy render envoy/points/{point.name}"
    assert printed(point) == golden, "run `make docs`"


def test_every_golden_file_has_its_point() -> None:
    names = {path.name for path in POINTS}
    assert {path.name for path in (ENVOY / "rendered").iterdir()} == names
    assert {"http", "grpc", "mcp", "a2a", "tcp", "outbound", "replicas"} == {
        name.removesuffix(".yaml") for name in names
    }


@pytest.mark.parametrize("point", POINTS, ids=lambda path: path.stem)
def test_a_point_is_a_dozen_lines(point: Path) -> None:
    lines = [line for line in point.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) <= 21  # two points; the others have a dozen


def test_both_forms_hold_the_same() -> None:
    as_json = json.loads(printed(POINT, "--output", "json"))
    assert as_json == yaml.safe_load(printed(POINT, "--output", "yaml"))


def test_listener_is_what_a_control_plane_sends() -> None:
    whole = json.loads(printed(POINT, "--output", "json"))
    part = json.loads(printed(POINT, "--output", "json", "--what", "listener"))
    assert part == {"node": {"metadata": whole["node"]["metadata"]}, **whole["static_resources"]}


def test_standard_input() -> None:
    assert printed("-", stdin=POINT.read_text()) == printed(POINT)
    result = render("-", stdin="name: x\n")
    assert (result.exit_code, "standard input:1:1: error: `listen`" in result.stderr) == (2, True)
    rendered = render("-", stdin=printed(POINT))  # the wrong one of the two files
    assert (rendered.exit_code, rendered.stderr.count("error: ")) == (2, 1)
    assert "not an enforcement point" in rendered.stderr


def test_example_is_a_point_and_so_is_what_its_comments_offer() -> None:
    text = printed("--example")
    (point,) = parse_spec(text.encode(), file="starter.yaml").points
    assert point.name == "crm"

    begin = text.index("# resource:")
    offered = re.sub("^# ", "", text[begin:], flags=re.MULTILINE)
    offered = offered.replace("This workload's", "# This workload's")
    spec = parse_spec((text[:begin] + offered).encode(), file="starter.yaml")
    assert (spec.node, [way.name for way in spec.outbound]) == ("crm-1", ["tools"])
    assert spec.points[0].labels == {"class": "restricted"}


def test_faults_end_in_two_and_write_nothing(tmp_path: Path) -> None:
    faulty = tmp_path / "point.yaml"
    faulty.write_text(POINT.read_text().replace("name:", "nmae:"))
    target = tmp_path / "envoy.yaml"
    result = render(faulty, "--write", target)
    assert (result.exit_code, result.stdout, target.exists()) == (2, "", False)
    assert f"{faulty}:2:1: error: `nmae` is not a known key; did you mean `name`?" in result.stderr
    assert "    nmae: crm\n    ^" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--what", "cluster", str(POINT)]], ids=["none", "what"])
def test_usage(arguments: list[str]) -> None:
    assert render(*arguments).exit_code == 2


def test_a_file_that_is_not_there() -> None:
    result = render("/nowhere/point.yaml")
    assert (result.exit_code, "cannot be read" in result.stderr) == (2, True)


def test_written_in_one_step_and_links_stay_links(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "envoy.yaml"
    real.write_text("old")
    link.symlink_to(real)
    before = real.stat().st_ino
    assert printed(POINT, "--write", link) == ""
    assert link.is_symlink()
    assert real.read_text() == printed(POINT)
    assert real.stat().st_ino != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["envoy.yaml", "real.yaml"]


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        printed(POINT, "--write", pipe)
        assert os.read(reader, 1 << 20).decode() == printed(POINT)
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "nowhere" / "envoy.yaml"):
        result = render(POINT, "--write", target)
        assert result.exit_code == 2


def test_nothing_but_rendering_imports_envoys_messages() -> None:
    program = (
        "import sys\n"
        "import authz_server.app, authz_server.cli.serve, authz_server.cli.main\n"
        "import authz_server.cli.envoy, authz_server.cli.demo\n"
        "import authz_server.envoy_config.enforcement_point\n"
        "sys.exit(any(name.startswith('envoy_data_plane') for name in sys.modules))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_help_has_examples() -> None:
    text = CliRunner().invoke(command, ["--help"]).stdout
    assert "authz-server envoy render point.yaml --write envoy.yaml --validate" in text


def test_a_link_that_somebody_left_beside_the_file_is_not_written_through(tmp_path: Path) -> None:
    """Nor does it become the file: its owner would choose what Envoy runs with."""
    victim, target = tmp_path / "victim", tmp_path / "envoy.yaml"
    victim.write_text("theirs")
    (tmp_path / ".envoy.yaml.new").symlink_to(victim)
    assert printed(POINT, "--write", target) == ""
    assert victim.read_text() == "theirs"
    assert not target.is_symlink()
    assert target.read_text() == printed(POINT)


def test_validating_without_an_envoy_says_so_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENVOY_BINARY", str(tmp_path / "nothing"))
    result = render(POINT, "--validate", "--write", tmp_path / "envoy.yaml")
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "ENVOY_BINARY" in result.stderr


def test_validating_with_what_is_no_program_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    binary = tmp_path / "envoy"
    binary.write_text("no program\n")
    binary.chmod(0o755)
    monkeypatch.setenv("ENVOY_BINARY", str(binary))
    result = render(POINT, "--validate")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"cannot run `{binary}`" in result.stderr


def test_what_is_wrong_in_a_file_does_not_drive_the_terminal() -> None:
    result = render("-", stdin="name: crm\n\u202elisten: 1\n")
    assert ("\u202e" in result.stderr, r"\u202elisten: 1" in result.stderr) == (False, True)
