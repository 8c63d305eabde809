"""The trace of a request is recorded when it is well formed, and changes no verdict when not."""

import json
from datetime import UTC, datetime

import pytest

from authz_server.core.decision import TraceRecord
from authz_server.core.record import decision_json
from authz_server.core.request import AccessRequest, Headers, HttpRequest
from authz_server.core.trace_context import trace_record
from tests.ledger_samples import allow

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01".encode()


def request(*lines: bytes) -> AccessRequest:
    http = HttpRequest(
        method="GET",
        scheme="https",
        host="h",
        path="/",
        headers=Headers(fields={"traceparent": lines} if lines else {}),
    )
    return AccessRequest(
        peer_certificate="",
        peer_principal="",
        source_address=None,
        listener=None,
        destination_principal="",
        node=None,
        sni=None,
        http=http,
        extensions={},
    )


@pytest.mark.parametrize("line", [GOOD, f"01-{TRACE}-{SPAN}-01-more".encode()])
def test_a_well_formed_trace_is_read(line: bytes) -> None:
    assert trace_record(request(line)) == TraceRecord(trace_id=TRACE, span_id=SPAN)


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (GOOD, GOOD),
        (GOOD + b"\n",),
        (GOOD + b"-more",),
        (GOOD.upper(),),
        (b"ff" + GOOD[2:],),
        (f"00-{'0' * 32}-{SPAN}-01".encode(),),
        (f"00-{TRACE}-{'0' * 16}-01".encode(),),
        (GOOD[:-1],),
        (b"01" + GOOD[2:] + b"-" + b"x" * 600,),
        (b"\xff" * 55,),
    ],
)
def test_anything_else_is_no_trace(lines: tuple[bytes, ...]) -> None:
    assert trace_record(request(*lines)) is None


def test_the_document_carries_it() -> None:
    decision = allow(time=datetime.now(UTC), trace=TraceRecord(trace_id=TRACE, span_id=SPAN))
    document = json.loads(json.dumps(decision_json(decision, decision_id="d", duration_us=1)))
    assert document["trace"] == {"trace_id": TRACE, "span_id": SPAN}
    assert decision_json(allow(), decision_id="d", duration_us=1)["trace"] is None
