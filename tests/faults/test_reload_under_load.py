"""Reloads under load: every answer is one that the revision it names gives, before and after.

Two policies are swapped as Kubernetes swaps a ConfigMap, model, rows and policy tests at once,
while calls come over gRPC. They disagree about some requests and agree about others for different
reasons.
"""

import sqlite3
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import casbin
import grpc
import pytest
import yaml

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from authz_server.core.chain_cache import ChainCache
from authz_server.core.decision import Verdict
from authz_server.core.snapshot import Snapshot
from authz_server.reload.loader import load_snapshot
from authz_server.servers.check_service import decide
from authz_server.settings import load_settings
from tests.harness.reloading import ConfigMap
from tests.pdp_site import PdpSite
from tests.server_process import ServerProcess, metadata, running

_THREADS = 8
_REQUESTS_RENEWED = 50  # reloads; tokens live for minutes, and so does the long run

# --- what pycasbin does ----------------------------------------------------------------------

_MODEL = """\
[request_definition]
r = sub, obj, act
[policy_definition]
p = sub, obj, act
[role_definition]
g = _, _
[policy_effect]
e = some(where (p.eft == allow))
[matchers]
m = g(r.sub, p.sub) && r.obj == p.obj && r.act == p.act && !g(r.sub, "banned")
"""
_ROWS = "\n".join(
    (
        "p, staff, report, read",
        "g, alice, staff",
        "g, mallory, staff",
        *(f"g, colleague-{number}, staff" for number in range(500)),
        "g, mallory, banned",
    )
)
_TRIES_MAX = 100_000  # a wrong verdict usually comes within the first hundred


def test_a_live_load_policy_gives_wrong_verdicts(tmp_path: Path) -> None:
    """Nothing changes in the file; it is only loaded again while requests are decided."""
    (tmp_path / "model.conf").write_text(_MODEL)
    (tmp_path / "policy.csv").write_text(_ROWS)
    enforcer = casbin.Enforcer(str(tmp_path / "model.conf"), str(tmp_path / "policy.csv"))
    assert enforcer.enforce("alice", "report", "read")
    assert not enforcer.enforce("mallory", "report", "read")
    done = threading.Event()

    def reload() -> None:
        while not done.is_set():
            enforcer.load_policy()

    reloading = threading.Thread(target=reload)
    reloading.start()
    try:
        wrong = (
            enforcer.enforce("mallory", "report", "read")
            or not enforcer.enforce("alice", "report", "read")
            for _ in range(_TRIES_MAX)
        )
        assert any(wrong)
    finally:
        done.set()
        reloading.join()


# --- what this server does -------------------------------------------------------------------

_LOADED = 'authz_reloads_total{outcome="loaded"}'
_PATHS = ("/open/1", "/swap/1", "/both/1", "/never/1")
_POLICIES = {
    "a": (
        ("open-read", "/open/*", "allow"),
        ("both-a", "/both/*", "allow"),
        ("never-a", "/never/*", "deny"),
    ),
    "b": (
        ("open-shut", "/open/*", "deny"),
        ("swap-read", "/swap/*", "allow"),
        ("both-b", "/both/*", "allow"),
        ("both-b-asks", "/both/*", "escalate"),
        ("never-b", "/never/*", "deny"),
    ),
}
_VERDICTS = {
    "a": {"/open/1": "allow", "/swap/1": "deny", "/both/1": "allow", "/never/1": "deny"},
    "b": {"/open/1": "deny", "/swap/1": "allow", "/both/1": "escalate", "/never/1": "deny"},
}


def _files(name: str, model: str) -> dict[str, bytes]:
    """Return a policy and the cases that only this policy passes.

    The columns are in another order in each, so that rows of one under the model of the other do
    not load.
    """
    if name == "b":
        model = model.replace("id, act, path", "id, path, act")
    rows = []
    for rule, path, effect in _POLICIES[name]:
        act_and_path = f"GET, {path}" if name == "a" else f"{path}, GET"
        obligation = "approvers" if effect == "escalate" else ""
        rows.append(f"p, {rule}, {act_and_path}, data.read, {obligation}, {effect}")
    cases = [
        {
            "name": path,
            "request": {
                "chain": {"scope": ["data.read"]},
                "act": {"name": "GET"},
                "obj": {"path": path},
            },
            "expect": {"verdict": verdict},
        }
        for path, verdict in _VERDICTS[name].items()
    ]
    return {
        "model.conf": model.encode(),
        "policy.csv": "\n".join(rows).encode() + b"\n",
        "cases.yaml": yaml.safe_dump(cases).encode(),
    }


@dataclass(frozen=True, slots=True)
class Answer:
    """One call and what came back."""

    path: str
    data: bytes
    decision_id: str
    revision: str
    verdict: str
    reason: str
    allowed: bool


@dataclass(slots=True)
class Load:
    """Calls from several threads until told to stop; remembers every answer."""

    server: ServerProcess
    requests: Sequence[tuple[str, bytes]]
    answers: list[Answer] = field(default_factory=list)
    errors: list[grpc.RpcError] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Call until `done`."""
        while not self.done.is_set():
            for path, data in self.requests:
                try:
                    answer = self.server.check(data)
                except grpc.RpcError as error:
                    self.errors.append(error)
                    return
                self.answers.append(_answer(path, data, answer))


def _answer(path: str, data: bytes, answer: CheckResponse) -> Answer:
    told = metadata(answer)
    return Answer(
        path=path,
        data=data,
        decision_id=str(told["decision_id"]),
        revision=str(told["revision"]),
        verdict=str(told["verdict"]),
        reason=str(told["reason"]),
        allowed=answer.HasField("ok_response"),
    )


def _mount(site: PdpSite) -> tuple[ConfigMap, Mapping[str, Mapping[str, bytes]]]:
    """Mount the bundle as a ConfigMap; return it and its two contents."""
    model = (site.bundle / "model.conf").read_text()
    contents = {name: _files(name, model) for name in _POLICIES}
    for name, data in contents["a"].items():
        (site.bundle / name).write_bytes(data)
    source = site.directory / "source"
    site.bundle.rename(source)
    return ConfigMap(site.bundle, source), contents


def _snapshots(
    site: PdpSite, mount: ConfigMap, contents: Mapping[str, Mapping[str, bytes]]
) -> dict[str, tuple[str, Snapshot]]:
    """Load both policies here, by the revision they have; leaves the first one mounted."""
    found = {}
    for name in ("b", "a"):
        mount.update(dict(contents[name]))
        snapshot = load_snapshot(load_settings(site.configuration), chains=ChainCache())
        found[snapshot.revision] = (name, snapshot)
    return found


def _requests(site: PdpSite) -> list[tuple[str, bytes]]:
    return [(path, site.check_request(path)) for path in _PATHS]


def _reload_under_load(site: PdpSite, *, reloads: int, calls: int) -> Load:
    """Swap the policy so many times during so many calls; check everything that came back."""
    mount, contents = _mount(site)
    snapshots = _snapshots(site, mount, contents)
    revisions = {name: revision for revision, (name, _) in snapshots.items()}
    assert len(revisions) == 2
    with running(site) as server:
        load = Load(server, _requests(site))
        threads = [threading.Thread(target=load.run) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        try:
            for number in range(1, reloads + 1):
                name = "b" if number % 2 else "a"
                if number % _REQUESTS_RENEWED == 0:
                    load.requests = _requests(site)
                mount.update(dict(contents[name]))
                enough = calls * number // reloads  # the swaps are spread over all of the calls

                # By what the server says of itself: a slow call's answer is of the state before.
                def served(revision: str = revisions[name], enough: int = enough) -> bool:
                    answered = len(load.answers) >= enough
                    seen = answered and server.readyz()[1]["revision"] == revision
                    return seen or bool(load.errors)

                server.wait_until(served)
        finally:
            load.done.set()
            for thread in threads:
                thread.join()
        assert not load.errors
        # A swap between the look at the files and their reading is loaded a second time.
        assert server.metric(_LOADED) >= reloads + 1
        assert server.metric('authz_reloads_total{outcome="refused"}') == 0
    _check_answers(load.answers, snapshots)
    _check_records(site, load.answers, snapshots)
    return load


def _check_answers(
    answers: Sequence[Answer], snapshots: Mapping[str, tuple[str, Snapshot]]
) -> None:
    seen = set()
    for answer in answers:
        name = snapshots[answer.revision][0]
        assert answer.verdict == _VERDICTS[name][answer.path], answer
        assert answer.allowed == (answer.verdict == Verdict.ALLOW)
        seen.add((name, answer.path))
    assert len(seen) == len(_POLICIES) * len(_PATHS), "every request met both policies"


def _check_records(
    site: PdpSite, answers: Sequence[Answer], snapshots: Mapping[str, tuple[str, Snapshot]]
) -> None:
    """Every answer has its record, and the revision it names decides the same again."""
    with sqlite3.connect(site.ledger) as connection:
        rows = connection.execute(
            "SELECT decision_id, time_us, revision, verdict, reason, rules FROM decisions"
        ).fetchall()
    connection.close()
    records = {str(row[0]): row[1:] for row in rows}
    for answer in answers:
        time_us, revision, verdict, reason, rules = records[answer.decision_id]
        assert (revision, verdict, reason) == (answer.revision, answer.verdict, answer.reason)
        now = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=time_us)
        again = decide(answer.data, snapshots[revision][1], now)
        assert (again.verdict, again.reason) == (verdict, reason)
        assert ", ".join(again.rules) == rules
        assert again.revision == revision


def test_swaps_under_load_give_no_wrong_answer(tmp_path: Path) -> None:
    load = _reload_under_load(PdpSite.create(tmp_path), reloads=40, calls=8_000)
    assert len(load.answers) >= 8_000


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_a_thousand_swaps_during_300_000_requests(tmp_path: Path) -> None:
    load = _reload_under_load(PdpSite.create(tmp_path), reloads=1_000, calls=300_000)
    print(f"{len(load.answers)} answers, 0 wrong")
