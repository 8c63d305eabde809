"""The shared ledger: decisions by month, their look-up terms, chains, statements, approvals.

Text is collated by code point (`C`), so that a beginning is a range of an index. Every index of
`decisions` ends in time, number and writer: the newest of anything is read from its end. Keys hold
the time because a partitioned table cannot have a key without it; that a decision is recorded once
rests on `chains`, which moves forward in the transaction that adds the rows.
"""

from typing import Final

from alembic import op

revision: Final = "0001"
down_revision: Final = None
branch_labels: Final = None
depends_on: Final = None

_TEXT: Final = 'text COLLATE "C"'

_DECISIONS: Final = f"""
CREATE TABLE decisions (
    seq bigint NOT NULL,
    decision_id {_TEXT} NOT NULL,
    time_us bigint NOT NULL,
    verdict {_TEXT} NOT NULL,
    reason {_TEXT} NOT NULL,
    subject {_TEXT},
    principal {_TEXT},
    resource {_TEXT},
    action {_TEXT},
    bundle {_TEXT},
    revision {_TEXT} NOT NULL,
    rules {_TEXT} NOT NULL,
    txn {_TEXT},
    approval_id {_TEXT},
    record text,
    salt bytea,
    leaf bytea,
    hash bytea NOT NULL,
    writer {_TEXT} NOT NULL,
    PRIMARY KEY (writer, seq, time_us)
) PARTITION BY RANGE (time_us)
"""
_TERMS: Final = f"""
CREATE TABLE decision_terms (
    kind {_TEXT} NOT NULL,
    value {_TEXT} NOT NULL,
    time_us bigint NOT NULL,
    seq bigint NOT NULL,
    writer {_TEXT} NOT NULL,
    PRIMARY KEY (kind, value, time_us, seq, writer)
) PARTITION BY RANGE (time_us)
"""
_CHAINS: Final = f"""
CREATE TABLE chains (
    writer {_TEXT} PRIMARY KEY,
    seq bigint NOT NULL,
    hash bytea NOT NULL
)
"""
_STATEMENTS: Final = f"""
CREATE TABLE statements (
    writer {_TEXT} NOT NULL,
    kind {_TEXT} NOT NULL,
    last_seq bigint NOT NULL,
    time_us bigint NOT NULL,
    jws text NOT NULL,
    PRIMARY KEY (writer, kind, last_seq, time_us)
)
"""
_APPROVALS: Final = f"""
CREATE TABLE approvals (
    id {_TEXT} PRIMARY KEY,
    fingerprint {_TEXT} NOT NULL,
    status {_TEXT} NOT NULL,
    approver_group {_TEXT} NOT NULL,
    subject {_TEXT},
    principal {_TEXT},
    actors {_TEXT} NOT NULL,
    purpose {_TEXT},
    action {_TEXT} NOT NULL,
    resource {_TEXT} NOT NULL,
    args_sha256 {_TEXT},
    bundle {_TEXT},
    rules {_TEXT} NOT NULL,
    owner {_TEXT},
    requested_at_us bigint NOT NULL,
    expires_at_us bigint NOT NULL,
    decided_at_us bigint,
    approver {_TEXT},
    reject_reason {_TEXT},
    consumed_by {_TEXT},
    first_decision_id {_TEXT} NOT NULL
)
"""
_INDEXES: Final = (
    "CREATE UNIQUE INDEX decisions_decision_id ON decisions (decision_id, time_us)",
    "CREATE INDEX decisions_time ON decisions (time_us, seq, writer)",
    "CREATE INDEX decisions_subject_time ON decisions (subject, time_us, seq, writer)",
    "CREATE INDEX decisions_principal_time ON decisions (principal, time_us, seq, writer)",
    "CREATE INDEX decisions_resource_time ON decisions (resource, time_us, seq, writer)",
    "CREATE INDEX decisions_txn_time ON decisions (txn, time_us, seq, writer)",
    "CREATE UNIQUE INDEX approvals_open ON approvals (fingerprint)"
    " WHERE status IN ('pending', 'approved', 'rejected')",
    "CREATE INDEX approvals_status ON approvals (status, requested_at_us)",
)


def upgrade() -> None:
    """Create the shared ledger."""
    for statement in (_DECISIONS, _TERMS, _CHAINS, _STATEMENTS, _APPROVALS, *_INDEXES):
        op.execute(statement)


def downgrade() -> None:
    """Refuse: a ledger is not dropped by a tool."""
    raise NotImplementedError("a ledger is removed by hand or not at all")
