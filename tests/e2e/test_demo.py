"""The demonstration as a user runs it: what it reports, and what it leaves behind."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from authz_server.demo.run import SHIPPED_BUNDLES

DEMO = (sys.executable, "-m", "authz_server", "demo")
# Both runs take the machine's cores; in one worker they do not take them from each other.
pytestmark = pytest.mark.xdist_group("demo")


def children(marker: Path) -> list[int]:
    """Ids of the processes with `marker` in their command line, but for the demo itself."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has just ended
                continue
            if b"demo" not in arguments and any(os.fsencode(marker) in part for part in arguments):
                found.append(int(entry.name))
    return found


def wait_until_children(marker: Path, demo: "subprocess.Popen[bytes]") -> None:
    while len(children(marker)) < 7:  # bounded by the test's own time limit
        assert demo.poll() is None, "the demo ended by itself"
        time.sleep(0.02)


def wait_until_none(marker: Path) -> None:
    """A killed process is in /proc until init has reaped it. Bounded by the test's time limit."""
    while children(marker):
        time.sleep(0.02)


def test_everything_comes_out_as_it_must(tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    done = subprocess.run(
        [*DEMO, "--output", "json", "--keep", str(keep)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    different = [
        {key: step[key] for key in ("title", "action", "expected", "actual", "reached", "recorded")}
        for step in report["steps"]
        if not step["as_expected"]
    ]
    assert different == []
    assert (report["passed"], done.returncode) == (True, 0)
    assert sum(step["decision_id"] is not None for step in report["steps"]) >= 10
    assert children(keep) == []
    # What was granted is written nowhere: grants are compact JWSs of ES256. (The signed checkpoints
    # of the ledger itself are of EdDSA.)
    grant = base64.urlsafe_b64encode(b'{"alg":"ES256"').rstrip(b"=")[:-1]
    written = [*(keep / "logs").iterdir(), *(keep / "journal").iterdir(), keep / "pdp" / "authz.db"]
    assert [path.name for path in written if grant in path.read_bytes()] == []
    # What the report says can be asked of the kept ledger.
    last = [step["decision_id"] for step in report["steps"] if step["decision_id"]][-1]
    shown = subprocess.run(
        [
            *(sys.executable, "-m", "authz_server", "decisions", "show", last),
            *("--config", str(keep / "pdp" / "authz.yaml"), "--output", "json"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout)["decision_id"] == last


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 128 + signal.SIGTERM, marks=pytest.mark.deep),
    ],
)
def test_an_interrupted_demo_leaves_nothing_running(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    keep = tmp_path / "kept"
    demo = subprocess.Popen(
        [*DEMO, "--keep", str(keep)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until_children(keep, demo)
        demo.send_signal(number)
        assert demo.wait() == status
        wait_until_none(keep)
    finally:
        demo.kill()
        demo.wait()


def test_a_part_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "bundles"
    (broken / "tools").mkdir(parents=True)
    (broken / "tools" / "policy.csv").write_text("p, half a\n")
    keep = tmp_path / "kept"
    done = subprocess.run(
        [*DEMO, "--bundles", str(broken), "--keep", str(keep)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "pdp ended with status 2 before readiness" in done.stderr
    assert "Traceback" not in done.stderr
    assert children(keep) == []


def test_a_policy_that_lets_more_through_is_noticed(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    shutil.copytree(SHIPPED_BUNDLES, bundles)
    with (bundles / "tools" / "policy.csv").open("a") as policy:
        policy.write("p, leak, agent, tools/call, crm_export, crm.read, true, allow,\n")
    (bundles / "tools" / "cases.yaml").unlink()  # they would refuse it at the door
    done = subprocess.run(
        [*DEMO, "--output", "json", "--bundles", str(bundles)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] is False
    different = [step for step in report["steps"] if not step["as_expected"]]
    assert [(step["actual"], step["reached"]) for step in different] == [("allow OK", True)]


def test_a_directory_in_use_is_not_kept_into(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    done = subprocess.run(
        [*DEMO, "--keep", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_help_has_an_example() -> None:
    done = subprocess.run([*DEMO, "--help"], capture_output=True, text=True, check=True)
    assert "authz-server demo --keep" in done.stdout
