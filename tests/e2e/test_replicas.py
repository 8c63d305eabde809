"""Two PDPs behind every Envoy, on one ledger: who asks cannot tell which of them answered.

On one SQLite file; and, as servers on several machines do it, on a PostgreSQL, each through an
outbox of its own. There an approval is settled within 200 ms or not at all, which a machine that is
busy with other tests does not keep.
"""

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from authz_server._pb.fleet.v1 import fleet_pb2 as fleet
from authz_server.demo.cast import ANALYST, CRM, DATA
from authz_server.demo.everywhere import SCENARIOS, play_everywhere
from authz_server.demo.everywhere_cast import FLEET, everywhere_plan
from authz_server.demo.mesh import Mesh
from authz_server.demo.postgres import PostgresError, installed_programs, running_postgres
from authz_server.demo.run import SHIPPED_BUNDLES
from authz_server.ledger.migrate import migrate
from tests.e2e import sdk_sessions

pytestmark = pytest.mark.xdist_group("replicas")

_CHECKS = 120
_PARALLEL = 12
_IN_A_ROW = 20  # checks that would alternate between both servers


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.deep)])
def ledger(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The address of a shared ledger; None: one SQLite file."""
    if request.param == "sqlite":
        yield None
        return
    try:
        installed_programs()
    except PostgresError as error:
        pytest.skip(str(error))
    directory = Path(tempfile.mkdtemp(prefix="authz-pg-"))  # the path of a socket is short
    try:
        with running_postgres(directory) as server:
            url = server.create("replicas")
            migrate(url)
            yield url
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def mesh(ledger: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    plan = replace(
        everywhere_plan(SHIPPED_BUNDLES, replicas=2, ledger=ledger),
        services=(CRM, ANALYST, FLEET, DATA),
        ways_out=(),
    )
    with Mesh.start(tmp_path_factory.mktemp("replicas"), plan) as running:
        yield running


@pytest.mark.parametrize(
    ("mode", "revision", "tier"),
    [("legacy", "2025-11-25", "gold"), ("auto", "2026-07-28", "silver")],
)
def test_an_mcp_session(mode: str, revision: str, tier: str, mesh: Mesh) -> None:
    asyncio.run(sdk_sessions.mcp_session(mesh, mode, revision, tier))


def test_the_scenario_file_plays_where_there_is_no_database(mesh: Mesh) -> None:
    played = play_everywhere(mesh, SCENARIOS)
    assert [row for one in played for row in one.rows if not row.as_expected] == []
    assert all(one.as_expected for one in played)
    targets = {row.target for one in played for row in one.rows}
    assert targets == {"crm", "analyst", "fleet", "data"}


def test_an_a2a_session(mesh: Mesh) -> None:
    asyncio.run(sdk_sessions.a2a_session(mesh))


def test_a_grpc_session(mesh: Mesh) -> None:
    asyncio.run(sdk_sessions.grpc_session(mesh, "search"))


def test_a_rest_session(mesh: Mesh) -> None:
    asyncio.run(sdk_sessions.rest_session(mesh))


def test_an_approval_is_good_for_one_call_of_many_at_once_whoever_answers(mesh: Mesh) -> None:
    async def run() -> list[str]:
        held = sdk_sessions.delegation(mesh, "fleet.delete")
        async with sdk_sessions.grpc_channel(mesh, held) as channel:
            delete = sdk_sessions.unary(channel, "Delete", fleet.DeleteRequest)
            first = await sdk_sessions.answered(lambda: delete("checkout"))
            assert first.ticket is not None
            await asyncio.to_thread(sdk_sessions.approve, mesh, first.ticket.id)
            calls = [sdk_sessions.told(delete("checkout")) for _ in range(_PARALLEL)]
            return [answer.verdict for answer in await asyncio.gather(*calls)]

    before, reached = mesh.decisions_by_replica(), len(mesh.visits("fleet"))
    verdicts = asyncio.run(run())
    assert sorted(verdicts) == ["allow"] + ["escalate"] * (_PARALLEL - 1)
    assert len(mesh.visits("fleet")) == reached + 1
    # Both took part, or nothing was shown.
    assert all(now > then for now, then in zip(mesh.decisions_by_replica(), before, strict=True))


def shares(mesh: Mesh, before: list[int]) -> list[int]:
    """How many decisions each server has made since."""
    return [now - then for now, then in zip(mesh.decisions_by_replica(), before, strict=True)]


def test_what_one_server_asked_another_honours(mesh: Mesh) -> None:
    """Checks alternate: the one that escalates is not the one that lets the approved call pass."""

    async def run(deployment: str) -> tuple[list[int], list[int]]:
        held = sdk_sessions.delegation(mesh, "fleet.delete")
        async with sdk_sessions.grpc_channel(mesh, held) as channel:
            delete = sdk_sessions.unary(channel, "Delete", fleet.DeleteRequest)
            start = mesh.decisions_by_replica()
            asked = await sdk_sessions.told(delete(deployment))
            asking, middle = shares(mesh, start), mesh.decisions_by_replica()
            assert asked.ticket is not None, "the database did not answer in time"
            await asyncio.to_thread(sdk_sessions.approve, mesh, asked.ticket.id)
            # Not there: let through, the service itself has no such deployment.
            with pytest.raises(grpc.aio.AioRpcError, match="no such deployment"):
                await delete(deployment)
            return asking, shares(mesh, middle)

    # On a busy machine a server misses a probe, and is not asked for a second.
    crossed = False
    while not crossed:  # bounded by the test's time limit
        mesh.await_all_pdps()
        asking, letting = asyncio.run(run(f"gone-{uuid.uuid4()}"))
        assert sorted(asking) == sorted(letting) == [0, 1]
        crossed = asking != letting


def test_the_load_is_even(mesh: Mesh) -> None:
    async def run() -> None:
        held = sdk_sessions.delegation(mesh, "data.read")
        async with sdk_sessions.rest_client(mesh, held) as client:
            for _ in range(_CHECKS):
                answer = await client.get("/v1/customers/C-17/invoices")
                assert answer.status_code == 200

    missed, found = -1, [0, 0]
    while missed != mesh.missed_probes("data"):  # one was left out meanwhile: measured again
        mesh.await_all_pdps()
        missed, before = mesh.missed_probes("data"), mesh.decisions_by_replica()
        asyncio.run(run())
        found = shares(mesh, before)
    print(f"{_CHECKS} checks, by server: {found}")
    assert sum(found) == _CHECKS
    assert max(found) - min(found) <= 0.2 * _CHECKS / len(found)


def test_a_session_goes_on_when_one_server_dies(mesh: Mesh) -> None:
    async def run() -> None:
        held = sdk_sessions.delegation(mesh, "data.read")
        async with sdk_sessions.rest_client(mesh, held) as client:
            invoices = "/v1/customers/C-17/invoices"
            assert (await client.get(invoices)).status_code == 200
            mesh.kill_pdp(0)
            # What was on its way to the dead one is refused, and never let through unasked.
            reached = len(mesh.visits("data"))
            answers = [(await client.get(invoices)).status_code for _ in range(20)]
            assert set(answers) <= {200, 503}
            assert len(mesh.visits("data")) - reached == answers.count(200)
            in_a_row = 0
            while in_a_row < _IN_A_ROW:  # bounded by the test's time limit
                passed = (await client.get(invoices)).status_code == 200
                in_a_row = in_a_row + 1 if passed else 0

    try:
        asyncio.run(run())
    finally:
        mesh.start_pdp(0)
        mesh.await_pdp(0)
        mesh.await_all_pdps()  # and it takes its share again
