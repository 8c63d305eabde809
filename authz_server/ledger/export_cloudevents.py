"""One record as a CloudEvents 1.0 event in the structured JSON form (CloudEvents JSON format §3).

`source` and `id` together identify it, so a consumer that gets an export twice can tell.
"""

from typing import Final

from authz_server.ledger.document import resource_name, section, text
from authz_server.ledger.export_jsonl import Event, is_erased
from authz_server.ledger.query import StoredDecision

EVENT_TYPE: Final = "authz-server.decision.v1"  # a new major of the decision document: a new type
_SOURCE: Final = "urn:authz-server:ledger:"


def cloud_event(stored: StoredDecision) -> Event | None:
    """Return the event whose `data` is the decision document; None for an erased record."""
    document = stored.document
    if is_erased(stored):
        return None
    event: dict[str, object] = {
        "specversion": "1.0",
        "id": stored.decision_id,
        "source": _SOURCE + stored.writer,
        "type": EVENT_TYPE,
        "time": text(document, "time"),
        "datacontenttype": "application/json",
        # Extensions: names are lower-case letters and digits (CloudEvents §Naming Conventions).
        "sequence": str(stored.seq),
    }
    if subject := resource_name(document):
        event["subject"] = subject
    trace = section(document, "trace")
    trace_id, span_id = text(trace, "trace_id"), text(trace, "span_id")
    if trace_id and span_id:
        event["traceparent"] = f"00-{trace_id}-{span_id}-00"
    return event | {"data": document}
