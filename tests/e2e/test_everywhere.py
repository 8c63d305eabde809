"""One scenario file through an Envoy of every kind: MCP, A2A, gRPC, REST, PostgreSQL, outbound."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
import yaml
from click.testing import CliRunner, Result

from authz_server.cli.main import group
from authz_server.cli.policy_consistency import command as consistency
from authz_server.core.attributes import Protocol
from authz_server.core.errors import ConfigurationError
from authz_server.demo.everywhere import SCENARIOS, Played, play_everywhere
from authz_server.demo.everywhere_cast import DATABASE, DATABASE_ROLE
from authz_server.demo.mesh import Mesh
from authz_server.demo.postgres import PostgresError, installed_programs
from authz_server.demo.run import SHIPPED_BUNDLES
from authz_server.demo.targets_file import write_targets
from authz_server.demo.ways_out import LocalPort
from tests.e2e import sdk_sessions
from tests.e2e.test_demo import children

pytestmark = pytest.mark.xdist_group("everywhere")

DEMO = (sys.executable, "-m", "authz_server", "demo", "--everywhere")
_POLL_S = 0.05


def has_postgres() -> bool:
    try:
        installed_programs()
    except PostgresError:
        return False
    return True


def differing(played: list[Played]) -> list[dict[str, object]]:
    return [row.to_json() for one in played for row in one.rows if not row.as_expected]


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.deep)])
def test_one_command_plays_it_through_six_envoys(replicas: int, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    done = subprocess.run(
        [*DEMO, "--output", "json", "--replicas", str(replicas), "--keep", str(keep)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    calls = [call for scenario in report["scenarios"] for call in scenario["calls"]]
    assert [call for call in calls if not call["as_expected"]] == []
    assert (report["passed"], done.returncode) == (True, 0)
    envoys = {"crm", "analyst", "fleet", "data", "outbound"}
    envoys |= {"orders-db"} if has_postgres() else set()
    assert {call["target"] for call in calls} == envoys
    assert report["notes"] == [] or not has_postgres()
    assert {call["actual"] for call in calls} == {"allow", "deny", "escalate"}
    assert all(call["reached"] == (call["actual"] == "allow") for call in calls)
    shares = report["decisions_by_replica"]
    assert len(shares) == replicas
    assert all(shares)
    assert children(keep) == []


def test_every_domain_answers_as_the_bundles_on_disk_do(everywhere: Mesh) -> None:
    played = play_everywhere(everywhere, SCENARIOS)
    assert differing(played) == []
    assert all(one.offline.agrees and one.live.agrees for one in played)


def test_a_request_around_envoy_would_be_in_the_journal(everywhere: Mesh) -> None:
    """What the tests take for proof that nothing arrived does tell when something does."""
    before = len(everywhere.visits("data"))
    around = httpx.HTTPTransport(uds=str(everywhere.layout.socket("data")))
    with httpx.Client(transport=around) as client:
        client.get("http://data/v1/payroll")
    assert len(everywhere.visits("data")) == before + 1


def test_lint_finds_nothing_unsafe_in_any_of_its_envoys(everywhere: Mesh) -> None:
    plan = everywhere.plan
    names = [*(service.name for service in plan.services), *(way.name for way in plan.ways_out)]
    for name in names:
        argv = ["envoy", "lint", str(everywhere.layout.envoy(name)), "--strict"]
        done = CliRunner().invoke(group, argv)
        assert (name, done.exit_code) == (name, 0), done.output


def run_consistency(mesh: Mesh, scenarios: Path, *options: str | Path) -> Result:
    targets = write_targets(mesh)
    config = ("--config", mesh.layout.configuration)
    arguments = [scenarios, *config, "--through", targets, *options]
    return CliRunner().invoke(consistency, [str(part) for part in arguments])


def test_consistency_through_the_live_envoys(everywhere: Mesh) -> None:
    done = run_consistency(everywhere, SCENARIOS, "--output", "json")
    assert done.exit_code == 0, done.output
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(document["agrees"] for document in documents)
    ids = {answer["decision_id"] for document in documents for answer in document["answers"]}
    assert None not in ids, "each verdict is that of a recorded decision"


def test_bundles_on_disk_that_differ_from_what_is_served_are_noticed(
    everywhere: Mesh, tmp_path: Path
) -> None:
    bundles = tmp_path / "bundles"
    shutil.copytree(SHIPPED_BUNDLES, bundles)
    with (bundles / "data" / "policy.csv").open("a") as policy:
        policy.write("p, frozen, agent, GET, /v1/customers/*, true, deny\n")
    (bundles / "data" / "cases.yaml").unlink()
    done = run_consistency(everywhere, SCENARIOS, "--bundles", bundles)
    assert done.exit_code == 1
    assert "`served`: data is allow (OK) live, deny (DENIED_BY_RULE) on disk" in done.output


def test_a_scenario_that_expects_something_else_is_noticed(
    everywhere: Mesh, tmp_path: Path
) -> None:
    scenarios = yaml.safe_load(SCENARIOS.read_text())
    scenarios[4]["expect"]["tools"] = "allow"
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(scenarios))
    done = run_consistency(everywhere, changed)
    assert done.exit_code == 1
    assert "`what cannot be undone` disagrees" in done.output


def test_scenarios_that_cannot_be_asked_here_are_refused_as_a_whole(everywhere: Mesh) -> None:
    before = sum(everywhere.decisions_by_replica())
    shipped = SHIPPED_BUNDLES / "consistency.yaml"
    done = run_consistency(everywhere, shipped)
    assert isinstance(done.exception, ConfigurationError)
    assert len(done.exception.faults) > 5
    assert all(fault.line for fault in done.exception.faults)
    assert sum(everywhere.decisions_by_replica()) == before


# --- a plain client beside its own Envoy ---------------------------------------------------------


def port_to(mesh: Mesh, protocol: Protocol) -> LocalPort:
    return next(
        port for port in mesh.local_ports() if any(s.protocol is protocol for s in port.services)
    )


def test_the_way_out_leads_to_listed_hosts_alone(everywhere: Mesh) -> None:
    address = port_to(everywhere, Protocol.HTTP).address
    for host, status in (("crm.tools.demo.example.org", 404), ("data.demo.example.org", 403)):
        answer = httpx.get(f"http://{address}/v1/payroll", headers={"host": host}, trust_env=False)
        assert answer.status_code == status


@contextmanager
def connected(port: LocalPort) -> Iterator[psycopg.Connection]:
    with psycopg.connect(
        host=port.address.host,
        port=port.address.port,
        dbname=DATABASE,
        user=DATABASE_ROLE,
        sslmode="disable",  # plain on this machine; Envoy does the rest
        connect_timeout=10,
    ) as connection:
        yield connection


@pytest.mark.skipif(not has_postgres(), reason="needs PostgreSQL: apt-get install postgresql")
def test_a_database_driver_reaches_the_database_with_what_its_agent_was_granted(
    everywhere: Mesh,
) -> None:
    port = port_to(everywhere, Protocol.TCP)
    before = everywhere.connections("orders-db")
    with pytest.raises(psycopg.OperationalError), connected(port):
        pass
    assert everywhere.connections("orders-db") == before, "denied, so nobody connected"
    everywhere.leave_delegation(port, sdk_sessions.delegation(everywhere, "orders.read"))
    try:
        while True:  # Envoy takes the new text up in a moment; bounded by the test's time limit
            try:
                with connected(port) as connection:
                    assert connection.execute("SELECT current_user").fetchone() == (DATABASE_ROLE,)
                break
            except psycopg.OperationalError:
                time.sleep(_POLL_S)
    finally:
        everywhere.leave_delegation(port, None)
    assert everywhere.connections("orders-db") == before + 1


# --- the ends of the command ----------------------------------------------------------------------


@pytest.mark.deep
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_it_stays_until_it_is_told_to_end_and_leaves_nothing_running(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    keep, said = tmp_path / "kept", tmp_path / "said"
    with said.open("wb") as output:
        demo = subprocess.Popen(
            [*DEMO, "--stay", "--keep", str(keep)], stdout=output, start_new_session=True
        )
    try:
        while b"Ctrl-C ends it" not in said.read_bytes():  # bounded by the test's time limit
            assert demo.poll() is None, "the demo ended by itself"
            time.sleep(_POLL_S)
        targets, configuration = keep / "targets.yaml", keep / "pdp" / "authz.yaml"
        asked = subprocess.run(
            [
                *(sys.executable, "-m", "authz_server", "policy", "consistency", SCENARIOS),
                *("--config", configuration, "--through", targets),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert asked.returncode == 0, asked.stderr
        demo.send_signal(number)
        assert demo.wait() == status
        while children(keep):
            time.sleep(_POLL_S)
    finally:
        demo.kill()
        demo.wait()


@pytest.mark.deep
def test_a_policy_that_lets_more_through_is_noticed(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    shutil.copytree(SHIPPED_BUNDLES, bundles)
    with (bundles / "tools" / "policy.csv").open("a") as policy:
        policy.write("p, leak, agent, tools/call, crm_search, , true, allow,\n")
    (bundles / "tools" / "cases.yaml").unlink()  # they would refuse it at the door
    done = subprocess.run(
        [*DEMO, "--output", "json", "--bundles", str(bundles)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    wrong = [one["scenario"] for one in report["scenarios"] if not one["as_expected"]]
    assert wrong == ["more than was granted"]
