"""Start the mesh with an enforcement point of every kind that can be started here."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from authz_server.core.errors import AuthzError
from authz_server.demo.everywhere_cast import DATABASE, DATABASE_ROLE, everywhere_plan
from authz_server.demo.mesh import Mesh
from authz_server.demo.postgres import (
    PostgresError,
    PostgresServer,
    installed_programs,
    running_postgres,
)
from authz_server.ledger.migrate import migrate


@dataclass(frozen=True, slots=True, kw_only=True)
class EverywhereMesh:
    """A running mesh. `notes` say what is left out here, and why."""

    mesh: Mesh
    notes: tuple[str, ...]


@contextmanager
def everywhere_mesh(
    root: Path,
    bundles: Path,
    *,
    replicas: int = 1,
    progress: Callable[[str], None] = lambda _line: None,
) -> Iterator[EverywhereMesh]:
    """Start the mesh below `root`, with the policy bundles in directory `bundles`.

    Several replicas of the PDP share a ledger in the PostgreSQL that also stands behind an Envoy;
    where none is installed, one SQLite file. Raises what `Mesh.start` raises, and `AuthzError`.
    """
    if not bundles.is_dir():
        raise AuthzError(f"policy bundles not found at `{bundles}`; name them with --bundles")
    notes: list[str] = []
    with _database(notes, progress) as database:
        plan = everywhere_plan(
            bundles,
            database=database.socket if database else None,
            replicas=replicas,
            ledger=_ledger(database) if database and replicas > 1 else None,
        )
        with Mesh.start(root, plan, progress=progress) as mesh:
            yield EverywhereMesh(mesh=mesh, notes=tuple(notes))


@contextmanager
def _database(notes: list[str], progress: Callable[[str], None]) -> Iterator[PostgresServer | None]:
    try:
        installed_programs()
    except PostgresError as error:
        notes.append(f"the database is left out: {error}")
        yield None
        return
    progress("starting PostgreSQL")
    # Its socket is in there, whose path is short.
    directory = Path(tempfile.mkdtemp(prefix="authz-pg-"))
    try:
        with running_postgres(directory, {"log_connections": "on", "fsync": "off"}) as server:
            server.create(DATABASE)
            with psycopg.connect(server.conninfo(DATABASE), autocommit=True) as connection:
                role = sql.Identifier(DATABASE_ROLE)
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _ledger(server: PostgresServer) -> str:
    url = server.create("ledger")
    migrate(url)
    return url
