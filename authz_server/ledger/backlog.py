"""How much of an outbox waits for the shared ledger, and how much may."""

from dataclasses import dataclass

from authz_server.core.errors import LedgerError


@dataclass(slots=True, kw_only=True)
class Backlog:
    """Written by the committing thread and by the shipping one: each its own number.

    `committed_seq` is the last record of the outbox, `shipped_seq` the last that the shared ledger
    is known to hold.
    """

    records_max: int
    committed_seq: int = 0
    shipped_seq: int = 0

    @property
    def records(self) -> int:
        """How many records wait."""
        return self.committed_seq - self.shipped_seq

    def admit(self, records: int) -> None:
        """Raise `LedgerError` if `records` more are too many."""
        if self.records + records > self.records_max:
            raise LedgerError(f"outbox is full: {self.records} records wait for the shared ledger")
