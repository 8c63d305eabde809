"""Bringing a shared ledger to this version's schema."""

from pathlib import Path
from typing import Final

from sqlalchemy import text

from authz_server.core.errors import LedgerError
from authz_server.ledger.database import converted, open_shared_engine, transaction
from authz_server.ledger.schema import REVISION, check

_MIGRATIONS: Final = Path(__file__).with_name("migrations")
_STATEMENT_MS: Final = 3_600_000  # an index over a hundred million rows takes its time
# Any number, as long as every version of this program uses it.
_LOCK: Final = 0x617574687A


def migrate(url: str) -> str:
    """Create the ledger at the PostgreSQL `url`, or bring it up to date; return its revision.

    Several may run at once: one does it, the others find it done. Raises `LedgerError`.
    """
    engine = open_shared_engine(url, statement_timeout_ms=_STATEMENT_MS)
    try:
        from alembic import command
        from alembic.config import Config
        from alembic.util.exc import CommandError
    except ImportError as error:
        raise LedgerError("migrations need `pip install authz-server[postgres]`") from error
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with converted("migrate the ledger"), transaction(engine) as connection:
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise LedgerError(str(error)) from error
        check(connection)
    return REVISION
