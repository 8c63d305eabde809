"""Records as JSON Lines: the decision document as it is, and how any format is written."""

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from authz_server.ledger.query import ERASED, StoredDecision

Event = Mapping[str, object]

# One record in some format; None where the format cannot say anything of it.
Formatter = Callable[[StoredDecision], Event | None]


class ExportFormat(StrEnum):
    """The forms in which records leave the ledger, all of them one JSON object a line."""

    JSONL = "jsonl"
    OCSF = "ocsf"
    CLOUDEVENTS = "cloudevents"


def formatter(chosen: ExportFormat) -> Formatter:
    """Return what turns one record into `chosen`."""
    from authz_server.ledger.export_cloudevents import cloud_event
    from authz_server.ledger.export_ocsf import ocsf_event

    formatters: Mapping[ExportFormat, Formatter] = {
        ExportFormat.JSONL: decision_document,
        ExportFormat.OCSF: ocsf_event,
        ExportFormat.CLOUDEVENTS: cloud_event,
    }
    return formatters[chosen]


def decision_document(stored: StoredDecision) -> Event | None:
    """Return the document exactly as recorded. Of an erased record, that it was."""
    return stored.document


def is_erased(stored: StoredDecision) -> bool:
    """Tell whether the content of the record is gone; only its place in the chain is left."""
    return stored.document.get("detail") == ERASED and "verdict" not in stored.document


_LINE: Final = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def line_of(event: Event) -> str:
    """Return `event` as one line of ASCII JSON, its line break included.

    SECURITY: ASCII, so that no terminal escape or line separator of a request survives.
    """
    return _LINE.encode(event).replace("\x7f", "\\u007f") + "\n"
