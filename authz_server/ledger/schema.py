"""The tables of the ledger, and the check that a database holds them.

The schema is portable SQL. How it carries what is added later:

- `seq` is assigned by the writer inside its transaction and has no gaps, and `record` is stored as
  the exact canonical text. A hash chain therefore needs two more columns (or one side table keyed
  by `seq`) and no rewriting of rows, and rows ship to another database in the order of `seq`.
- `decisions` and `decision_terms` are only ever appended to. All mutable state is in `approvals`.
- `schema_version` holds one row. A later version migrates from the number it finds there.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    insert,
    inspect,
    select,
)

from authz_server.core.errors import LedgerError

SCHEMA_VERSION: Final = 1

METADATA: Final = MetaData()

# SQLite's row id is spelled INTEGER, and is 64 bits wide.
_Sequence: Final = BigInteger().with_variant(Integer(), "sqlite")

schema_version: Final = Table(
    "schema_version", METADATA, Column("version", Integer, nullable=False)
)

# One row per decision. Every column but `record` repeats a member of it, for indexes and for
# people at an SQL prompt; texts are printable and cut to RECORD_FIELD_CHARS_MAX.
decisions: Final = Table(
    "decisions",
    METADATA,
    Column("seq", _Sequence, primary_key=True, autoincrement=False),
    Column("decision_id", Text, nullable=False, unique=True),
    Column("time_us", BigInteger, nullable=False),  # Unix microseconds: sorts as time does
    Column("verdict", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("subject", Text),
    Column("principal", Text),
    Column("resource", Text),
    Column("action", Text),
    Column("bundle", Text),
    Column("revision", Text, nullable=False),
    Column("rules", Text, nullable=False),
    Column("txn", Text),
    Column("approval_id", Text),
    Column("record", Text, nullable=False),  # canonical JSON (RFC 8785)
)

# Each index ends in the time, so that "the newest of X since T" reads only rows it returns.
# `verdict`, `reason` and `bundle` take few values and are filtered along the time index instead.
for _name in ("subject", "principal", "resource", "txn"):
    Index(f"decisions_{_name}_time", decisions.c[_name], decisions.c.time_us)
Index("decisions_time", decisions.c.time_us)

# What a decision has several of, one row each: `actor` and `rule`.
decision_terms: Final = Table(
    "decision_terms",
    METADATA,
    Column("kind", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("time_us", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,  # the key is the whole row: one tree instead of two
)

# One row per question put to people. `fingerprint` binds it to one exact action; the columns from
# `subject` to `owner` say it in words a person can judge.
approvals: Final = Table(
    "approvals",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("status", Text, nullable=False),  # pending | approved | rejected | consumed | expired
    Column("approver_group", Text, nullable=False),
    Column("subject", Text),
    Column("principal", Text),
    Column("actors", Text, nullable=False),  # JSON array, root first
    Column("purpose", Text),
    Column("action", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("args_sha256", Text),
    Column("bundle", Text),
    Column("rules", Text, nullable=False),
    Column("owner", Text),
    Column("requested_at_us", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
    Column("decided_at_us", BigInteger),
    Column("approver", Text),
    Column("reject_reason", Text),
    Column("consumed_by", Text),  # decision id of the one use
    Column("first_decision_id", Text, nullable=False),
)

OPEN_STATUSES: Final = ("pending", "approved", "rejected")

_is_open: Final = approvals.c.status.in_(OPEN_STATUSES)
# INVARIANT: at most one open approval per exact action, held by the database itself.
Index(
    "approvals_open",
    approvals.c.fingerprint,
    unique=True,
    sqlite_where=_is_open,
    postgresql_where=_is_open,
)
Index("approvals_status", approvals.c.status, approvals.c.requested_at_us)


def create_or_check(connection: Connection) -> None:
    """Create the tables in an empty database, or check that it holds this version's.

    Runs inside the caller's write transaction. Raises `LedgerError` for another version, and for a
    database that belongs to something else.
    """
    if inspect(connection).get_table_names():
        check(connection)
        return
    METADATA.create_all(connection, checkfirst=False)
    connection.execute(insert(schema_version).values(version=SCHEMA_VERSION))


def check(connection: Connection) -> None:
    """Check that the database holds this version's tables; raises `LedgerError` if not."""
    if not inspect(connection).has_table(schema_version.name):
        raise LedgerError("database is not an authz-server ledger; name another file")
    version = connection.execute(select(schema_version.c.version)).scalar()
    if version != SCHEMA_VERSION:
        raise LedgerError(
            f"ledger has schema version {version}, this program needs {SCHEMA_VERSION}; "
            "use the program version that wrote it"
        )
