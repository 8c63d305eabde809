"""What a ledger needs done beside the commits: one thread, a few jobs, each at its interval."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from authz_server.core.errors import LedgerError

_TICK_S: Final = 0.25
_FIRST_S: Final = 60.0  # also a server that never runs for an hour removes what is too old
_JOIN_S: Final = 15.0  # longer than any job waits for a lock or an answer

# (job, error or None): called after every run of a job, from the keeper's thread.
JobObserver = Callable[[str, LedgerError | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Something to do again and again. `run` raises `LedgerError`; the next time it tries anew."""

    name: str
    interval_s: float
    run: Callable[[], None]
    at_end: bool = False  # whether it is done once more when the keeper stops


class Keeper:
    """Runs jobs until it is stopped. A failed job neither ends the thread nor holds up others."""

    def __init__(self, jobs: Sequence[Job], *, observe: JobObserver) -> None:
        self._jobs = jobs
        self._observe = observe
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ledger-keeper", daemon=True)

    def start(self) -> None:
        """Begin; each job first runs after its interval, or a minute if that is shorter."""
        self._thread.start()

    def stop(self) -> None:
        """Do what is to be done at the end, and end."""
        self._stopping.set()
        self._thread.join(_JOIN_S)

    def _work(self) -> None:
        started = time.monotonic()
        due = [started + min(job.interval_s, _FIRST_S) for job in self._jobs]
        while not self._stopping.wait(_TICK_S):
            for number, job in enumerate(self._jobs):
                if time.monotonic() >= due[number]:
                    self._run(job)
                    due[number] = time.monotonic() + job.interval_s
        for job in self._jobs:
            if job.at_end:
                self._run(job)

    def _run(self, job: Job) -> None:
        try:
            job.run()
        except LedgerError as error:
            self._observe(job.name, error)
        else:
            self._observe(job.name, None)
