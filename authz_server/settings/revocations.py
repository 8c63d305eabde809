"""The `revocations` section: how long a server goes by what it last read of them."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from authz_server.settings.values import WholeNumber

# Long enough for the failover of a database, short enough for a kill switch.
STALE_S_DEFAULT: Final = 120
STALE_S_MIN: Final = 5  # ten looks at a shared ledger
STALE_S_MAX: Final = 3600


class RevocationSettings(BaseModel):
    """Revocations, which are read from the ledger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_stale_s: Annotated[WholeNumber, Field(ge=STALE_S_MIN, le=STALE_S_MAX)] = Field(
        default=STALE_S_DEFAULT,
        description="how long the last state serves on while the ledger cannot be read, in "
        "seconds; then everything is denied",
    )
