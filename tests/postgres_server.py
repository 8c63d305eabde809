"""A PostgreSQL of the Debian package, on a Unix socket in a directory of its own.

`initdb` refuses root, so that a test running as root starts it as another user.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

TIMEOUT_S = 60.0
_PORT = 5432  # of the socket's name; nothing listens on an address
_SETTINGS = """\
listen_addresses = ''
unix_socket_directories = '{directory}'
shared_buffers = 64MB
max_connections = 60
"""


def binaries() -> Path | None:
    """Return where the newest installed server is, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class PostgresServer:
    """One cluster; `start`, `kill`, `pause` and `resume` it."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self._directory = directory
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        self._user = _unprivileged()
        if self._user is not None:
            os.chown(directory, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "-D", self._data, "-U", "authz", "-A", "trust", "-E", "UTF8",
                  "--locale=C.UTF-8", "--no-sync")  # fmt: skip
        settings = _SETTINGS.format(directory=directory)
        with (Path(self._data) / "postgresql.conf").open("a") as file:
            file.write(settings)

    @property
    def _data(self) -> str:
        return str(self._directory / "data")

    def url(self, database: str) -> str:
        """Return the SQLAlchemy address of `database`."""
        return f"postgresql://authz@/{database}?host={self._directory}&port={_PORT}"

    def create(self, database: str) -> str:
        """Create an empty database; return its address."""
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"'.encode())
        return self.url(database)

    def start(self) -> None:
        """Start, and wait until it answers."""
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as_user(), str(self._programs / "postgres"), "-D", self._data],
                stdout=log,
                stderr=log,
                cwd="/",
            )
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                psycopg.connect(self._conninfo("postgres"), connect_timeout=5).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self._directory / "log").read_text()) from None
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """End every process of it at once, as a crash does."""
        if self._process is not None:
            for pid in self._pids():
                _send(pid, signal.SIGKILL)
            self._process.wait(TIMEOUT_S)
            deadline = time.monotonic() + TIMEOUT_S
            while self._strays():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            self._process = None

    def pause(self) -> None:
        """Let every process of it stand still: connections stay open and nothing answers."""
        for pid in self._pids():
            _send(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        for pid in self._pids():
            _send(pid, signal.SIGCONT)

    def _pids(self) -> list[int]:
        assert self._process is not None
        return [self._process.pid, *_children(self._process.pid)]

    def _strays(self) -> bool:
        """Whether a process of the killed server still holds its directory."""
        return any(
            os.fsencode(str(self._data)) in _command(int(entry.name))
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit()
        )

    def _conninfo(self, database: str) -> str:
        return f"host={self._directory} port={_PORT} user=authz dbname={database}"

    def _as_user(self) -> Sequence[str]:
        if self._user is None:
            return ()
        identity = ("--reuid", str(self._user.pw_uid), "--regid", str(self._user.pw_gid))
        return ("setpriv", *identity, "--clear-groups")

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user(), str(self._programs / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd="/")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server; skip the test on a machine without the package."""
    programs = binaries()
    if programs is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    directory = Path(tempfile.mkdtemp(prefix="authz-pg-"))
    server = PostgresServer(directory, programs)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory)


def _unprivileged() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _children(parent: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
