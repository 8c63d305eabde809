"""Revocations, and the count of their changes that every server asks for."""

from typing import Final

from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"
branch_labels: Final = None
depends_on: Final = None

_TEXT: Final = 'text COLLATE "C"'

_REVOCATIONS: Final = f"""
CREATE TABLE revocations (
    id {_TEXT} PRIMARY KEY,
    kind {_TEXT} NOT NULL,
    value {_TEXT} NOT NULL,
    reason {_TEXT},
    revoked_by {_TEXT} NOT NULL,
    revoked_at_us bigint NOT NULL,
    expires_at_us bigint,
    removed_by {_TEXT},
    removed_at_us bigint
)
"""


def upgrade() -> None:
    """Add revocations, none yet."""
    op.execute(_REVOCATIONS)
    op.execute("CREATE TABLE revocation_state (revision bigint NOT NULL)")
    op.execute("INSERT INTO revocation_state VALUES (0)")


def downgrade() -> None:
    """Refuse: what was taken back must not come back with an older version."""
    raise NotImplementedError("revocations are not dropped by a tool")
