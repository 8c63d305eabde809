"""Whatever is sent to the approvals API without proof, it answers, with no failure of its own.

And nothing changes: no request that proves nobody moves an approval.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz_server.core.request import Headers
from authz_server.core.snapshot import Snapshot
from authz_server.ledger.approvals import Approvals
from authz_server.ledger.store import Ledger
from authz_server.servers.admin_http import API_PREFIX, ApiRequest
from authz_server.servers.approvals_http import OPERATIONS, ApprovalsApi
from authz_server.servers.approver import ApproverProof
from tests.ledger_samples import GROUPS, TTL_S, escalation, record


class _Nothing:
    current: Snapshot | None = None


@pytest.fixture(scope="module")
def ticket(tmp_path_factory: pytest.TempPathFactory) -> tuple[Approvals, str]:
    path: Path = tmp_path_factory.mktemp("ledger") / "authz.db"
    ledger = Ledger.open(f"sqlite:///{path}", approval_ttl_s=TTL_S)
    (settled,) = ledger.commit([record(escalation(time=datetime.now(UTC)))])
    ledger.close()
    assert settled.ticket is not None
    return Approvals.at(f"sqlite:///{path}", groups=GROUPS), settled.ticket.id


_METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS"])
_PATHS = st.sampled_from([one.path for one in OPERATIONS]) | st.text(max_size=60)
_QUERIES = st.text(max_size=40) | st.sampled_from(["", "status=pending", "limit=5", "limit=٣"])
_FIELDS = st.dictionaries(
    st.sampled_from(
        ["authorization", "content-type", "x-forwarded-client-cert", "content-length", "cookie"]
    ),
    st.lists(
        st.binary(max_size=80)
        | st.sampled_from([b"application/json", b"Bearer a.b.c", b"Bearer eyJhIjoxfQ.e30."]),
        min_size=1,
        max_size=2,
    ).map(tuple),
)
_BODIES = st.none() | st.binary(max_size=100) | st.sampled_from([b"{}", b'{"reason":"x"}'])


@given(method=_METHODS, path=_PATHS, query=_QUERIES, fields=_FIELDS, body=_BODIES)
def test_it_always_answers_and_never_moves(
    ticket: tuple[Approvals, str],
    method: str,
    path: str,
    query: str,
    fields: dict[str, tuple[bytes, ...]],
    body: bytes | None,
) -> None:
    approvals, approval_id = ticket
    target = path.replace("{id}", approval_id)
    if not target.startswith(API_PREFIX):
        target = API_PREFIX + target
    api = ApprovalsApi(
        approvals,
        proof=ApproverProof([], _Nothing()),
        clock=lambda: datetime.now(UTC),
        document={},
    )
    page = api.answer(
        ApiRequest(
            method=method,
            target=f"{target}?{query}",
            headers=Headers(fields=fields),
            body=body,
            client_certificate=None,
        )
    )
    assert page.status < 500
    assert isinstance(json.loads(page.body), dict)
    assert approvals.show(approval_id, now=datetime.now(UTC)).status == "pending"
