"""Whatever fails, and in whatever order: what passes was decided by a snapshot and is on record."""

import asyncio
import itertools
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from authz_server.core.chain_cache import ChainCache
from authz_server.core.decision import Decision, Verdict
from authz_server.core.enforcement import Mode
from authz_server.core.errors import LedgerError, Reason
from authz_server.core.snapshot import Revocations, Snapshot
from authz_server.ledger.record import Record
from authz_server.reload.loader import load_snapshot
from authz_server.servers.check_service import CheckService
from authz_server.settings import load_settings
from tests.pdp_site import RESEARCH, PdpSite

RECORDERS = (
    "keeps", "is down", "cannot keep this one", "breaks", "breaks once", "approves", "shadows"
)  # fmt: skip
SNAPSHOTS = ("enforce", "shadow", "shadow, revoked", "shadow, stale", "none", "broken")


@dataclass
class Recorder:
    """A recorder that behaves as it is told, and keeps what it records."""

    behaviour: str
    kept: dict[str, Decision] = field(default_factory=dict)
    calls: int = 0

    async def record(self, record: Record) -> Decision:
        self.calls += 1
        decision = record.decision
        match self.behaviour:
            case "is down":
                raise LedgerError("disk is full")
            case "cannot keep this one":
                raise LedgerError("record cannot be written") from ValueError("surrogate")
            case "breaks":
                raise RuntimeError("defect")
            case "breaks once" if self.calls == 1:
                raise RuntimeError("defect")
            case "approves":
                decision = replace(decision, verdict=Verdict.ALLOW, reason=Reason.OK)
            case "shadows" if decision.reason not in {Reason.REVOKED, *_SERVER}:
                decision = replace(decision, mode=Mode.SHADOW)
        self.kept[record.decision_id] = decision
        return decision


_SERVER = (Reason.NOT_READY, Reason.INTERNAL_ERROR, Reason.UNKNOWN_BUNDLE)


@dataclass
class Source:
    """A snapshot source that holds what it is given, or breaks."""

    snapshot: Snapshot | None
    is_broken: bool

    @property
    def current(self) -> Snapshot | None:
        if self.is_broken:
            raise RuntimeError("defect")
        return self.snapshot


@dataclass(frozen=True)
class Site:
    """Requests by name, and snapshots by name."""

    requests: dict[str, bytes]
    snapshots: dict[str, Source]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    files = PdpSite.create(tmp_path_factory.mktemp("site"))
    loaded = load_snapshot(load_settings(files.configuration), chains=ChainCache())
    shadow = replace(loaded, modes=MappingProxyType({"default": Mode.SHADOW}))
    stale = Revocations(good_until=datetime.now(UTC) - timedelta(seconds=1))
    revoked = Revocations(spiffe_id=frozenset({str(RESEARCH)}))
    snapshots: dict[str, Snapshot | None] = {
        "enforce": loaded,
        "shadow": shadow,
        "shadow, revoked": replace(shadow, revocations=revoked),
        "shadow, stale": replace(shadow, revocations=stale),
        "none": None,
        "broken": None,
    }
    return Site(
        requests=_requests(files),
        snapshots={name: Source(one, name == "broken") for name, one in snapshots.items()},
    )


def _requests(files: PdpSite) -> dict[str, bytes]:
    """Return requests of every fate, those whose route cannot be read among them."""
    allowed = files.check_request("/open/1")
    elsewhere = CheckRequest.FromString(allowed)
    elsewhere.attributes.context_extensions["bundle"] = "nowhere"
    misspelt = CheckRequest.FromString(allowed)
    misspelt.attributes.context_extensions["bundel"] = "default"
    headless = CheckRequest.FromString(allowed)
    del headless.attributes.request.http.header_map.headers[:]
    return {
        "allowed": allowed,
        "denied": files.check_request("/open/closed/1"),
        "escalated": files.check_request("/ask/1"),
        "no chain": files.check_request("/open/1", headers={}),
        "no path": files.check_request("//"),
        "elsewhere": elsewhere.SerializeToString(),
        "misspelt": misspelt.SerializeToString(),
        "headless": headless.SerializeToString(),
        "empty": b"",
        "no message": b"\xff" * 40,
    }


def ask(data: bytes, source: Source, recorder: Recorder) -> tuple[CheckResponse, Decision]:
    final: list[Decision] = []
    service = CheckService(
        snapshots=source,
        recorder=recorder,
        clock=lambda: datetime.now(UTC),
        checked=lambda decision, _seconds: final.append(decision),
        broke=lambda _fault: None,
    )
    return CheckResponse.FromString(asyncio.run(service.handle(data))), final[0]


def check(site: Site, request: str, snapshot: str, behaviour: str) -> bool:
    """Ask, check what must hold, and return whether it passed."""
    recorder = Recorder(behaviour)
    answer, final = ask(site.requests[request], site.snapshots[snapshot], recorder)
    passed = answer.status.code == 0
    assert passed is final.passes
    if not passed:
        assert answer.denied_response.status.code in {401, 403}
        return False
    decision_id = answer.dynamic_metadata.fields["decision_id"].string_value
    assert recorder.kept[decision_id] == final
    assert snapshot in {"enforce", "shadow", "shadow, revoked"}
    if final.verdict is not Verdict.ALLOW:
        assert snapshot.startswith("shadow")
        assert (final.mode, final.bundle) == (Mode.SHADOW, "default")
        assert answer.dynamic_metadata.fields["mode"].string_value == "shadow"
    return True


def test_every_combination(site: Site) -> None:
    passed = {
        combination
        for combination in itertools.product(site.requests, SNAPSHOTS, RECORDERS)
        if check(site, *combination)
    }
    # What is not there to be recorded, or to be decided by, lets nothing pass at all.
    failing = {"is down", "cannot keep this one", "breaks", "breaks once"}
    assert not {one for one in passed if one[2] in failing}
    kept = {(request, snapshot) for request, snapshot, recorder in passed if recorder == "keeps"}
    shadow = {"allowed", "denied", "escalated", "no chain", "no path"}
    assert {request for request, snapshot in kept if snapshot == "enforce"} == {"allowed"}
    assert shadow <= {request for request, snapshot in kept if snapshot == "shadow"}
    assert not {"elsewhere", "misspelt", "empty", "no message"} & {request for request, _ in kept}
    assert "shadow, revoked" not in {snapshot for _, snapshot in kept}


@given(data=st.binary(max_size=200), behaviour=st.sampled_from(RECORDERS))
def test_bytes_that_are_no_request_never_pass(site: Site, data: bytes, behaviour: str) -> None:
    for snapshot in ("shadow", "enforce"):
        recorder = Recorder(behaviour)
        answer, final = ask(data, site.snapshots[snapshot], recorder)
        if answer.status.code == 0:
            assert recorder.kept[answer.dynamic_metadata.fields["decision_id"].string_value]
            assert final.mode is Mode.SHADOW
