"""A ledger with all that runs beside it, as a server needs it: built, started and stopped here."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from authz_server.core.errors import LedgerError
from authz_server.ledger.backlog import Backlog
from authz_server.ledger.checkpoints import Checkpoints
from authz_server.ledger.database import (
    Access,
    Store,
    Synchronous,
    is_shared,
    sqlite_path,
)
from authz_server.ledger.keeper import Job, JobObserver, Keeper
from authz_server.ledger.pseudonym import Pseudonyms
from authz_server.ledger.retention import expire_file, expire_shared
from authz_server.ledger.schema import Layout
from authz_server.ledger.seal import SigningKey, key_file_beside
from authz_server.ledger.settlement import ApprovalTerms
from authz_server.ledger.shared_approvals import SharedApprovals
from authz_server.ledger.ship import Shipper
from authz_server.ledger.sinks import sinks_for
from authz_server.ledger.store import Ledger, LedgerOptions

_RETENTION_INTERVAL_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPlan:
    """What the configuration says of a ledger; see `settings.ledger` for each."""

    url: str
    outbox: Path
    outbox_records_max: int
    approvals: ApprovalTerms
    synchronous: Synchronous
    retention_days: int | None
    subject_key: Path | None
    signing_key: Path | None
    checkpoint_interval_s: int
    checkpoint_sinks: Sequence[str | Path]

    @property
    def file(self) -> Path:
        """The SQLite file this server writes: the ledger itself, or the outbox before it."""
        return self.outbox if is_shared(self.url) else sqlite_path(self.url)

    @property
    def key_file(self) -> Path:
        """Where the key of checkpoints is; see `key_file_beside`."""
        return self.signing_key or key_file_beside(self.file)


class LedgerService:
    """The running ledger of one server.

    `ledger` takes the records. `approvals` settles escalations where approvals are shared by
    servers; None where `ledger` does. `backlog` is what waits for a shared ledger.
    """

    def __init__(self, plan: LedgerPlan, key: SigningKey, observe: JobObserver) -> None:
        shared = is_shared(plan.url)
        self.backlog = Backlog(records_max=plan.outbox_records_max) if shared else None
        self.ledger = Ledger.open_file(plan.file, _options(plan, self.backlog))
        self.approvals = SharedApprovals(plan.url, terms=plan.approvals) if shared else None
        self._shipper = (
            Shipper(
                self.ledger,
                url=plan.url,
                backlog=self.backlog,
                observe=lambda error: observe("ship", error),
            )
            if self.backlog is not None
            else None
        )
        self._keeper = Keeper(tuple(_jobs(plan, key, self.ledger)), observe=observe)

    @classmethod
    def start(cls, plan: LedgerPlan, *, observe: JobObserver) -> Self:
        """Open everything and begin. A shared ledger need not answer yet. Raises `LedgerError`.

        `observe` is told, from other threads, how each run of a job ended.
        """
        key = (
            SigningKey.load(plan.signing_key)
            if plan.signing_key is not None
            else SigningKey.load_or_create(plan.key_file)
        )
        service = cls(plan, key, observe)
        if service._shipper is not None:
            service._shipper.start()
        service._keeper.start()
        return service

    def stop(self) -> None:
        """Sign the end of the chain, ship what can be shipped, and close."""
        self._keeper.stop()
        if self._shipper is not None:
            self._shipper.stop()
        if self.approvals is not None:
            self.approvals.close()
        self.ledger.close()


def _options(plan: LedgerPlan, backlog: Backlog | None) -> LedgerOptions:
    return LedgerOptions(
        approvals=plan.approvals if backlog is None else None,
        layout=Layout.LEDGER if backlog is None else Layout.OUTBOX,
        synchronous=plan.synchronous,
        pseudonyms=Pseudonyms.load(plan.subject_key) if plan.subject_key else None,
        backlog=backlog,
    )


def _jobs(plan: LedgerPlan, key: SigningKey, ledger: Ledger) -> list[Job]:
    checkpoints = Checkpoints(ledger, key=key, sinks=sinks_for(plan.checkpoint_sinks))

    def expire() -> None:
        _expire(plan, key, ledger)

    jobs = [
        Job(
            name="checkpoint",
            interval_s=plan.checkpoint_interval_s,
            run=lambda: checkpoints.make(datetime.now(UTC)),
            at_end=True,
        ),
    ]
    if plan.retention_days is not None:
        jobs.append(Job(name="retention", interval_s=_RETENTION_INTERVAL_S, run=expire))
    return jobs


def _expire(plan: LedgerPlan, key: SigningKey, ledger: Ledger) -> None:
    if plan.retention_days is None:
        raise LedgerError("no retention is configured")
    now = datetime.now(UTC)
    cutoff = now - timedelta(days=plan.retention_days)
    if is_shared(plan.url):
        expire_shared(Store.open(plan.url, Access.WRITE), key, cutoff=cutoff, now=now)
    else:
        expire_file(ledger, key, cutoff=cutoff, now=now)
