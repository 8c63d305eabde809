"""Start child processes, wait until they are ready, and be sure that they are gone afterwards.

Each child leads its own process group, so that Ctrl-C in the terminal reaches the parent alone,
which then stops the children in order; and stopping a child stops what it started.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from authz_server.core.errors import AuthzError

READY_TIMEOUT_S = 30.0  # four Python programs and three Envoys may start on one core
STOP_TIMEOUT_S = 10.0
_POLL_S = 0.02
_LOG_TAIL_LINES = 30


class ProcessFailedError(AuthzError):
    """A child ended, or did not become ready. The message ends with the last lines it logged."""


def child_environment() -> dict[str, str]:
    """Return our environment without what would change the configuration of a server under it."""
    return {key: value for key, value in os.environ.items() if not key.startswith("AUTHZ_")}


class ChildProcess:
    """One running child. Its standard output and error are appended to `log`."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self._popen = popen

    @property
    def pid(self) -> int:
        """Process id, and id of the process group."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether the child has not ended yet."""
        return self._popen.poll() is None

    def wait_until(
        self, ready: Callable[[], bool], *, what: str, timeout_s: float = READY_TIMEOUT_S
    ) -> None:
        """Return once `ready()` is true.

        Raises `ProcessFailedError` when the child ends first or `timeout_s` passes.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            code = self._popen.poll()
            if code is not None:
                raise self._failure(f"ended with status {code} before {what}")
            if time.monotonic() > deadline:
                raise self._failure(f"did not reach {what} within {timeout_s:g} s")
            time.sleep(_POLL_S)

    def terminate(self) -> None:
        """Ask the child's group to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the child's group at once, as a crash would, and reap it."""
        self._signal(signal.SIGKILL)
        self._popen.wait()

    def join(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for the child to end, killing it after `timeout_s`; return its exit status."""
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        # What the child itself started and left behind is in its group.
        self._signal(signal.SIGKILL)
        return self._popen.returncode

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _failure(self, what: str) -> ProcessFailedError:
        lines = self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        tail = "\n".join(f"    {line}" for line in lines) or "    (nothing logged)"
        return ProcessFailedError(f"{self.name} {what}; {self.log}:\n{tail}")


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back for the duration of the block. Elsewhere they never arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _frame: held.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for missed in held:
            signal.raise_signal(missed)


class ProcessGroup:
    """All children of one run. Leaving the `with` block stops every one, newest first."""

    def __init__(self, log_directory: Path) -> None:
        self._log_directory = log_directory
        self._children: list[ChildProcess] = []

    def start(
        self, name: str, argv: Sequence[str | Path], *, environment: Mapping[str, str] | None = None
    ) -> ChildProcess:
        """Start `argv` as `name`, logging to `<log directory>/<name>.log`.

        `environment` is laid over ours. Raises `ProcessFailedError` when it cannot be started.
        """
        log = self._log_directory / f"{name}.log"
        # An interrupt between the start and the note of it would leave a child nobody stops.
        with _interrupts_deferred():
            try:
                with log.open("ab") as output:
                    popen = subprocess.Popen(
                        [str(part) for part in argv],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=child_environment() | dict(environment or {}),
                        start_new_session=True,
                    )
            except OSError as error:
                raise ProcessFailedError(f"{name} cannot be started: {error}") from error
            child = ChildProcess(name, popen, log)
            self._children.append(child)
        return child

    def stop(self) -> None:
        """Stop every child: all are asked first, then each is waited for.

        Interrupted meanwhile (a second Ctrl-C), it kills what is left and passes the exception on.
        """
        children, self._children = self._children[::-1], []
        try:
            for child in children:
                child.terminate()
            deadline = time.monotonic() + STOP_TIMEOUT_S
            for child in children:
                child.join(max(0.0, deadline - time.monotonic()))
        except BaseException:
            for child in children:
                child.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
