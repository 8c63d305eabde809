"""The tables of the ledger, and the check that a database holds them.

The columns are the same in SQLite and in PostgreSQL, so that one reader serves both. A SQLite file
holds one chain and is created here. A shared ledger in PostgreSQL holds the chains of many servers;
`migrations` creates it, with partitions by time and keys that begin with the time.

- `seq` is assigned by the writer inside its transaction and has no gaps; `record` is the exact
  canonical text; `chain` says what `hash` covers.
- `decisions` and `decision_terms` are only ever appended to, but for retention and erasure.
  Mutable state is in `approvals` and `revocations`; `chains` moves forward only.
- An outbox is a ledger that is on its way into a shared one: without approvals, revocations and
  look-up indexes.
"""

import secrets
from enum import StrEnum
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    insert,
    inspect,
    select,
    text,
)

from authz_server.core.errors import LedgerError
from authz_server.ledger.chain import START

SCHEMA_VERSION: Final = 3

# The newest file of `migrations/versions`; what a shared ledger must be at.
REVISION: Final = "0003"
_REVISION_TABLE: Final = "alembic_version"

_WRITER_BYTES: Final = 8

METADATA: Final = MetaData()

# SQLite's row id is spelled INTEGER, and is 64 bits wide.
_Sequence: Final = BigInteger().with_variant(Integer(), "sqlite")

schema_version: Final = Table(
    "schema_version", METADATA, Column("version", Integer, nullable=False)
)

# One row per decision. The columns from `decision_id` to `approval_id` repeat members of `record`,
# for indexes and for people at an SQL prompt; texts are printable, cut to RECORD_FIELD_CHARS_MAX.
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
    Column("record", Text),  # canonical JSON (RFC 8785); null once erased
    Column("salt", LargeBinary),  # null once erased
    Column("leaf", LargeBinary),  # set when erased: what record and salt were hashed to
    Column("hash", LargeBinary, nullable=False),
    Column("writer", Text, nullable=False),
)

# What `chain.leaf_of` covers beside the record, in this order.
COMMITTED: Final = (
    "decision_id", "time_us", "verdict", "reason", "subject", "principal", "resource", "action",
    "bundle", "revision", "rules", "txn", "approval_id",
)  # fmt: skip

# The end of each chain: number and hash of its last record.
chains: Final = Table(
    "chains",
    METADATA,
    Column("writer", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)

# Signed statements on a chain; see `seal`. The columns repeat members of `jws`, for indexes.
statements: Final = Table(
    "statements",
    METADATA,
    Column("writer", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("last_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("time_us", BigInteger, primary_key=True, autoincrement=False),
    Column("jws", Text, nullable=False),
)

# Each index ends in the time, so that "the newest of X since T" reads only rows it returns.
# `verdict`, `reason` and `bundle` take few values and are filtered along the time index instead.
LOOK_UP_INDEXES: Final = (
    *(
        Index(f"decisions_{name}_time", decisions.c[name], decisions.c.time_us)
        for name in ("subject", "principal", "resource", "txn")
    ),
    Index("decisions_time", decisions.c.time_us),
)

# What a decision has several of, one row each: `actor` and `rule`.
decision_terms: Final = Table(
    "decision_terms",
    METADATA,
    Column("kind", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("time_us", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("writer", Text, primary_key=True),
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

# What is taken back; see `revocations`. One row for each time it was: in force from the moment it
# is there until it expires or is removed, and kept for the record.
revocations: Final = Table(
    "revocations",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # txn | jti | spiffe_id | subject | kid
    Column("value", Text, nullable=False),
    Column("reason", Text),
    Column("revoked_by", Text, nullable=False),
    Column("revoked_at_us", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger),
    Column("removed_by", Text),
    Column("removed_at_us", BigInteger),
)

# One row: how often `revocations` changed. INVARIANT: it is counted up first in every transaction
# that changes them, so that those follow one another and no number stands for two contents.
revocation_state: Final = Table(
    "revocation_state", METADATA, Column("revision", BigInteger, nullable=False)
)


class Layout(StrEnum):
    """What a SQLite file is for."""

    LEDGER = "ledger"
    OUTBOX = "outbox"  # on its way into a shared ledger


def create_or_check(connection: Connection, layout: Layout) -> None:
    """Create the tables in an empty SQLite file, or check that it holds this version's.

    Runs inside the caller's write transaction. Raises `LedgerError` for another version or layout,
    and for a database that belongs to something else.
    """
    tables = inspect(connection).get_table_names()
    if not tables:
        _create(connection, layout)
        return
    check(connection)
    if (approvals.name in tables) != (layout is Layout.LEDGER):
        raise LedgerError(f"database is not an authz-server {layout}; name another file")


def _create(connection: Connection, layout: Layout) -> None:
    METADATA.create_all(connection, checkfirst=False)
    if layout is Layout.OUTBOX:
        # A shared ledger keeps these; here they would only be written and never read.
        for index in LOOK_UP_INDEXES:
            index.drop(connection)
        for table in (decision_terms, approvals, revocations, revocation_state):
            table.drop(connection)
    else:
        connection.execute(insert(revocation_state).values(revision=0))
    connection.execute(insert(schema_version).values(version=SCHEMA_VERSION))
    writer = secrets.token_hex(_WRITER_BYTES)
    connection.execute(insert(chains).values(writer=writer, seq=START.seq, hash=START.hash))


def check(connection: Connection) -> None:
    """Check that the database holds this version's tables; raises `LedgerError` if not."""
    if connection.dialect.name == "postgresql":
        _check_revision(connection)
        return
    if not inspect(connection).has_table(schema_version.name):
        raise LedgerError("database is not an authz-server ledger; name another file")
    version = connection.execute(select(schema_version.c.version)).scalar()
    if version != SCHEMA_VERSION:
        raise LedgerError(
            f"ledger has schema version {version}, this program needs {SCHEMA_VERSION}; "
            "use the program version that wrote it"
        )


def _check_revision(connection: Connection) -> None:
    if not inspect(connection).has_table(_REVISION_TABLE):
        raise LedgerError("database has no ledger yet; run `authz-server ledger migrate`")
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if revision != REVISION:
        raise LedgerError(
            f"ledger is at revision {revision}, this program needs {REVISION}; "
            "run `authz-server ledger migrate` of the newer one"
        )
