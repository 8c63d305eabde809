"""A PostgreSQL of the distribution's package, on a Unix socket in a directory of its own.

Nothing listens on an address, so that an Envoy in front of the socket is the only way in from
elsewhere. `initdb` refuses root; started by root, the server runs as another account.
"""

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from authz_server.core.errors import AuthzError

START_TIMEOUT_S: Final = 60.0  # a first start beside many others on one core
STOP_TIMEOUT_S: Final = 60.0
OWNER: Final = "authz"  # the superuser of the cluster
_PORT: Final = 5432  # of the socket's name
_PACKAGES: Final = Path("/usr/lib/postgresql")
_POLL_S: Final = 0.02
_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "shared_buffers": "64MB",
    "max_connections": "60",
}


class PostgresError(AuthzError):
    """PostgreSQL is not installed, or does not start; then the message ends with its log."""


def installed_programs() -> Path:
    """Return where the newest installed server is. Raises `PostgresError` if there is none."""
    found = sorted(_PACKAGES.glob("*/bin/initdb"), key=_version)
    if not found:
        raise PostgresError("PostgreSQL is not installed: apt-get install postgresql")
    return found[-1].parent


def _version(program: Path) -> int:
    number = program.parent.parent.name
    return int(number) if number.isdecimal() else 0


@contextmanager
def running_postgres(
    directory: Path, settings: Mapping[str, str] | None = None
) -> Iterator["PostgresServer"]:
    """Run a new server in the empty `directory`, and end it afterwards.

    Raises `PostgresError`.
    """
    server = PostgresServer(directory, installed_programs(), settings)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class PostgresServer:
    """One cluster; `start`, `kill`, `pause` and `resume` it.

    `directory` is empty and has a short path: it holds the socket too. `settings` are laid over
    those of `postgresql.conf`. Every account of the database may connect without a password, as far
    as the socket's directory lets it.
    """

    def __init__(
        self, directory: Path, programs: Path, settings: Mapping[str, str] | None = None
    ) -> None:
        self._directory = directory
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        self._user = _unprivileged()
        if self._user is not None:
            os.chown(directory, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "-D", self._data, "-U", OWNER, "-A", "trust", "-E", "UTF8",
                  "--locale=C.UTF-8", "--no-sync")  # fmt: skip
        values = {**_SETTINGS, "unix_socket_directories": str(directory), **(settings or {})}
        with (Path(self._data) / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in values.items())

    @property
    def socket(self) -> Path:
        """The socket it answers at, for an Envoy to lead to."""
        return self._directory / f".s.PGSQL.{_PORT}"

    @property
    def log(self) -> Path:
        """What the server has written about itself."""
        return self._directory / "log"

    @property
    def _data(self) -> str:
        return str(self._directory / "data")

    def url(self, database: str) -> str:
        """Return the SQLAlchemy address of `database`."""
        return f"postgresql://{OWNER}@/{database}?host={self._directory}&port={_PORT}"

    def create(self, database: str) -> str:
        """Create an empty database; return its address."""
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        return self.url(database)

    def start(self) -> None:
        """Start, and return once it answers. Raises `PostgresError`."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as_user(), str(self._programs / "postgres"), "-D", self._data],
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # Ctrl-C in a terminal is for whoever started us
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise PostgresError(f"PostgreSQL does not start:\n{self.log.read_text()}")
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """End every process of it at once, as a crash does."""
        if self._process is None:
            return
        for pid in self._pids():
            _send(pid, signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_S)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._strays():
            if time.monotonic() > deadline:
                raise PostgresError("a process of PostgreSQL did not end")
            time.sleep(_POLL_S)
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
        return [] if self._process is None else [self._process.pid, *_children(self._process.pid)]

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.conninfo("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _strays(self) -> bool:
        """Tell whether a process of the killed server still holds its directory."""
        return any(
            os.fsencode(str(self._data)) in _command(int(entry.name))
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit()
        )

    def conninfo(self, database: str) -> str:
        """Return how libpq reaches `database` past any Envoy."""
        return f"host={self._directory} port={_PORT} user={OWNER} dbname={database}"

    def _as_user(self) -> Sequence[str]:
        if self._user is None:
            return ()
        identity = ("--reuid", str(self._user.pw_uid), "--regid", str(self._user.pw_gid))
        return ("setpriv", *identity, "--clear-groups")

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user(), str(self._programs / program), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/")
        if done.returncode != 0:
            raise PostgresError(f"`{program}` failed:\n{done.stderr}")


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
