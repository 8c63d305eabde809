"""Settling escalations in a shared ledger: one approval passes one request of all servers.

The approval is consumed there first and the decision recorded here afterwards, because no one
transaction spans both. A server that dies between has spent an approval and let nothing pass: the
agent asks again. The other order could let two requests pass.
"""

import time
from typing import Final

from authz_server.core.decision import Decision
from authz_server.core.errors import LedgerError
from authz_server.ledger.database import converted, open_shared_engine, transaction
from authz_server.ledger.record import Record
from authz_server.ledger.settlement import ApprovalTerms, settle

CONNECTIONS: Final = 4  # escalations are few: a person answers each
# Of the 250 ms Envoy gives a check in our configuration, leaving time to record the outcome.
SETTLE_TIMEOUT_S: Final = 0.2


class SharedApprovals:
    """The approvals of a shared ledger, as a server uses them. Safe to use from several threads."""

    def __init__(
        self, url: str, *, terms: ApprovalTerms, timeout_s: float = SETTLE_TIMEOUT_S
    ) -> None:
        self.timeout_s = timeout_s
        self._terms = terms
        self._engine = open_shared_engine(
            url, statement_timeout_ms=int(timeout_s * 1000), connections=CONNECTIONS
        )

    def settle(self, record: Record, *, deadline: float) -> Decision:
        """Return the decision of `record`, an escalation, as an allow or with its ticket.

        Blocks. Raises `LedgerError` when the shared ledger does not answer by `deadline`
        (`time.monotonic`); then nothing is allowed, and an approval may have been spent in vain.
        """
        if time.monotonic() > deadline:
            raise LedgerError("there was no time to ask for approvals")
        with converted("reach the approvals"), transaction(self._engine) as connection:
            final = settle(
                connection, record.decision, decision_id=record.decision_id, terms=self._terms
            )
            # The caller is gone: roll back instead of spending an approval on nothing.
            if time.monotonic() > deadline:
                raise LedgerError("the shared ledger answered too late")
            return final

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._engine.dispose()
