"""The `ledger` section: where decisions are recorded, how hard, and for how long."""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from authz_server.settings.values import (
    ONE_OR_MORE,
    CheckpointSink,
    FilePath,
    LedgerUrl,
    SinkAddress,
    WholeNumber,
)

# About 4 kB each on disk: 4 GB, and at 1,000 decisions a second a quarter of an hour of outage.
OUTBOX_RECORDS_DEFAULT: Final = 1_000_000
OUTBOX_RECORDS_MAX: Final = 1_000_000_000
# A record in memory takes about 5 kB; what waits here is lost with the process.
ASYNC_RECORDS_DEFAULT: Final = 10_000
ASYNC_RECORDS_MAX: Final = 1_000_000
CHECKPOINT_INTERVAL_S_DEFAULT: Final = 60
CHECKPOINT_INTERVAL_S_MAX: Final = 24 * 3600
RETENTION_DAYS_MAX: Final = 36_500


class LedgerSettings(BaseModel):
    """Where decisions are recorded."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    url: LedgerUrl = Field(
        default="sqlite:///authz.db",
        validate_default=True,
        description="`sqlite:///path`, or `postgresql://…` for a ledger that servers share",
    )
    outbox: FilePath = Field(
        default=Path("authz-outbox.db"),
        validate_default=True,
        description="SQLite file in front of a shared ledger; each server needs its own",
    )
    outbox_records_max: Annotated[WholeNumber, Field(ge=1, le=OUTBOX_RECORDS_MAX)] = Field(
        default=OUTBOX_RECORDS_DEFAULT,
        description="records that may wait for the shared ledger before everything is denied",
    )
    mode: Literal["durable", "async", "off"] = Field(
        default="durable",
        description="`durable` (recorded before the answer leaves), `async` (soon after) or `off`",
    )
    async_records_max: Annotated[WholeNumber, Field(ge=1, le=ASYNC_RECORDS_MAX)] = Field(
        default=ASYNC_RECORDS_DEFAULT,
        description="answered records that may wait in memory in mode `async`",
    )
    synchronous: Literal["NORMAL", "FULL"] = Field(
        default="NORMAL",
        description="what a durable record survives: `NORMAL` kill -9, `FULL` power loss too",
    )
    retention_days: Annotated[WholeNumber, Field(ge=1, le=RETENTION_DAYS_MAX)] | None = Field(
        default=None, description="age at which records are removed, in days; default: never"
    )
    subject_key: FilePath | None = Field(
        default=None, description="file with a key of 32 bytes or more: subjects as pseudonyms"
    )
    signing_key: FilePath | None = Field(
        default=None,
        description="Ed25519 key (PEM) of checkpoints; default: made beside the ledger's file",
    )
    checkpoint_interval_s: Annotated[WholeNumber, Field(ge=1, le=CHECKPOINT_INTERVAL_S_MAX)] = (
        Field(
            default=CHECKPOINT_INTERVAL_S_DEFAULT,
            description="how often the end of the chain is signed, in seconds",
        )
    )
    checkpoint_sinks: Annotated[tuple[CheckpointSink, ...], ONE_OR_MORE] = Field(
        default=(),
        description="where checkpoints also go: `stdout`, a file, `https://…`, or a list",
    )

    @field_validator("checkpoint_sinks")
    @classmethod
    def _each_once(cls, sinks: tuple[SinkAddress, ...]) -> tuple[SinkAddress, ...]:
        return tuple(dict.fromkeys(sinks))
