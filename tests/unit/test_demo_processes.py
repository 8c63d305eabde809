"""Children are waited for, reported on, and gone afterwards, whatever they do."""

import fcntl
import os
import signal
import sys
from pathlib import Path

import pytest

from authz_server.demo.processes import ChildProcess, ProcessFailedError, ProcessGroup

READY = "import pathlib, signal, sys; pathlib.Path(sys.argv[1]).touch(); "


def start(group: ProcessGroup, code: str, *arguments: object) -> ChildProcess:
    return group.start("child", [sys.executable, "-c", code, *map(str, arguments)])


def gone(pid: int) -> bool:
    """Whether no process has that id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_child_is_waited_for_and_stopped(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with ProcessGroup(tmp_path) as group:
        child = start(group, READY + "signal.pause()", ready)
        child.wait_until(ready.exists, what="readiness")
        assert child.running
    assert not child.running
    assert gone(child.pid)


def test_child_that_ends_too_early_shows_its_log(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as group:
        child = start(group, "import sys; print('what went wrong'); sys.exit(3)")
        with pytest.raises(ProcessFailedError, match=r"status 3 before readiness(.|\n)*went wrong"):
            child.wait_until(lambda: False, what="readiness")


def test_child_that_never_gets_ready_is_an_error(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as group:
        child = start(group, "import signal; signal.pause()")
        with pytest.raises(ProcessFailedError, match="did not reach readiness within 0 s"):
            child.wait_until(lambda: False, what="readiness", timeout_s=0)


def test_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as group, pytest.raises(ProcessFailedError, match="cannot be"):
        group.start("child", [tmp_path / "nothing"])


def test_child_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with ProcessGroup(tmp_path) as group:
        ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        child = start(group, "import signal; " + ignore + READY + "signal.pause()", ready)
        child.wait_until(ready.exists, what="readiness")
        child.terminate()
        assert child.join(timeout_s=0) == -signal.SIGKILL


def test_what_a_child_started_goes_with_it(tmp_path: Path) -> None:
    ready, lock = tmp_path / "ready", tmp_path / "lock"
    # Only the grandchild takes the lock, and holds it as long as it lives.
    code = (
        "import fcntl, os, pathlib, signal, sys\n"
        "if os.fork() == 0:\n"
        "    file = open(sys.argv[2], 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "    pathlib.Path(sys.argv[1]).touch()\n"
        "signal.pause()"
    )
    with ProcessGroup(tmp_path) as group:
        child = start(group, code, ready, lock)
        child.wait_until(ready.exists, what="a child of its own")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits for its end; the test's own time limit bounds it


def test_children_are_stopped_when_the_block_fails(tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    class Interrupted(BaseException):
        pass

    def interrupted() -> bool:
        if ready.exists():
            raise Interrupted
        return False

    group = ProcessGroup(tmp_path)
    child = start(group, READY + "signal.pause()", ready)
    with pytest.raises(Interrupted), group:
        child.wait_until(interrupted, what="readiness")
    assert gone(child.pid)


def test_terminal_interrupt_reaches_the_parent_alone(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as group:
        child = start(group, "import signal; signal.pause()")
        assert os.getpgid(child.pid) == child.pid != os.getpgid(0)
