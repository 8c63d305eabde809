"""The queue of messages about pending approvals, which the servers of a ledger share."""

from typing import Final

from alembic import op

revision: Final = "0003"
down_revision: Final = "0002"
branch_labels: Final = None
depends_on: Final = None

_TEXT: Final = 'text COLLATE "C"'

_NOTIFICATIONS: Final = f"""
CREATE TABLE notifications (
    approval_id {_TEXT} NOT NULL,
    target {_TEXT} NOT NULL,
    attempts integer NOT NULL,
    next_at_us bigint NOT NULL,
    done_at_us bigint,
    PRIMARY KEY (approval_id, target)
)
"""


def upgrade() -> None:
    """Add the queue, empty: open questions are found and queued by the next server."""
    op.execute(_NOTIFICATIONS)
    op.execute(
        "CREATE INDEX notifications_due ON notifications (target, next_at_us)"
        " WHERE done_at_us IS NULL"
    )


def downgrade() -> None:
    """Drop the queue; an older version sends nothing."""
    op.execute("DROP TABLE notifications")
