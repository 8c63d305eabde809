"""The `telemetry` section: where decisions also go as OpenTelemetry logs and metrics."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from authz_server.settings.values import WebhookUrl, WholeNumber

INTERVAL_S_DEFAULT: Final = 15
INTERVAL_S_MAX: Final = 3600


class TelemetrySettings(BaseModel):
    """Where an OpenTelemetry collector is."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    otlp_endpoint: WebhookUrl | None = Field(
        default=None,
        description="base address of a collector (OTLP over HTTP), `https://…`, or `http://` on "
        "loopback; needs the extra `otel`",
    )
    interval_s: Annotated[WholeNumber, Field(ge=1, le=INTERVAL_S_MAX)] = Field(
        default=INTERVAL_S_DEFAULT, description="how often metrics are sent, in seconds"
    )
