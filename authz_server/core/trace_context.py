"""The W3C trace context of a request: which trace its decision belongs to.

A hint of the client's for correlation, never an input to a verdict. What is not well formed is
dropped, as the specification asks, and denies nothing.
"""

import re
from typing import Final

from authz_server.core.decision import TraceRecord
from authz_server.core.request import AccessRequest

_TRACEPARENT: Final = "traceparent"
# Trace Context §3.2: version, trace-id, parent-id, flags. A later version may go on after these.
_VERSION_0: Final = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_LATER: Final = re.compile(
    rb"(?!00|ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?"
)
_LENGTH_MAX: Final = 512  # later versions included; nobody sends more than a few dozen bytes


def trace_record(request: AccessRequest) -> TraceRecord | None:
    """Return the trace that `request` names in its one `traceparent`, or None."""
    lines = request.http.headers.lines(_TRACEPARENT) if request.http is not None else ()
    if len(lines) != 1 or len(lines[0]) > _LENGTH_MAX:
        return None
    found = _VERSION_0.fullmatch(lines[0]) or _LATER.fullmatch(lines[0])
    if found is None:
        return None
    trace_id, span_id = found[1].decode(), found[2].decode()
    # Trace Context §3.2.2.3, §3.2.2.4: all zeroes is invalid.
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return TraceRecord(trace_id=trace_id, span_id=span_id)
