"""Checkpoints leave the ledger: to files, standard output and addresses; again if that fails."""

import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from authz_server.core.errors import LedgerError
from authz_server.ledger.checkpoints import Checkpoints
from authz_server.ledger.keeper import Job, Keeper
from authz_server.ledger.seal import SealKeys, SigningKey
from authz_server.ledger.sinks import FileSink, StreamSink, WebhookSink, sinks_for
from authz_server.ledger.store import Ledger
from tests.ledger_samples import TTL_S, allow, at, record


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/authz.db", approval_ttl_s=TTL_S)
    yield ledger
    ledger.close()


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.load_or_create(tmp_path / "key.pem")


class Receiver:
    """An HTTP server that keeps what it is sent, and answers with `status`."""

    def __init__(self) -> None:
        self.status = 204
        self.bodies: list[bytes] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                receiver.bodies.append(self.rfile.read(length))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/secret"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_an_end_that_did_not_move_is_signed_once(
    ledger: Ledger, key: SigningKey, tmp_path: Path
) -> None:
    stream = io.StringIO()
    sinks = (FileSink(tmp_path / "kept"), StreamSink(stream))
    checkpoints = Checkpoints(ledger, key=key, sinks=sinks)
    checkpoints.make(at(0))
    assert stream.getvalue() == "", "there is nothing to sign yet"
    ledger.commit([record(allow())])
    checkpoints.make(at(1))
    checkpoints.make(at(2))
    ledger.commit([record(allow())])
    checkpoints.make(at(3))
    lines = stream.getvalue().splitlines()
    assert (tmp_path / "kept").read_text().splitlines() == lines
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o600
    statements = [SealKeys.of([key.public]).verify(json.loads(line)["jws"]) for line in lines]
    assert [(one.last, one.time) for one in statements] == [(1, at(1)), (2, at(3))]


def test_an_address_that_fails_gets_the_newest_later(
    ledger: Ledger, key: SigningKey, receiver: Receiver
) -> None:
    checkpoints = Checkpoints(ledger, key=key, sinks=(WebhookSink(receiver.url),))
    receiver.status = 503
    ledger.commit([record(allow())])
    with pytest.raises(LedgerError, match="cannot post a checkpoint: HTTPError") as raised:
        checkpoints.make(at(1))
    assert "secret" not in str(raised.value)
    receiver.status = 204
    checkpoints.make(at(2))
    checkpoints.make(at(3))
    assert [json.loads(body)["last"] for body in receiver.bodies] == [1, 1]


def test_a_file_that_cannot_be_written_is_a_fault_of_its_own(
    ledger: Ledger, key: SigningKey, tmp_path: Path
) -> None:
    stream = io.StringIO()
    sinks = (FileSink(tmp_path / "missing" / "kept"), StreamSink(stream))
    ledger.commit([record(allow())])
    with pytest.raises(LedgerError, match="No such file or directory"):
        Checkpoints(ledger, key=key, sinks=sinks).make(at(1))
    assert json.loads(stream.getvalue())["last"] == 1, "the other sink got it"


def test_the_configuration_names_sinks(tmp_path: Path) -> None:
    kinds = [type(sink) for sink in sinks_for(["stdout", tmp_path / "f", "https://a.example"])]
    assert kinds == [StreamSink, FileSink, WebhookSink]


def test_a_failing_job_holds_up_no_other_and_the_end_is_done(tmp_path: Path) -> None:
    ran: list[str] = []
    seen: list[tuple[str, bool]] = []
    twice = threading.Event()

    def fail() -> None:
        raise LedgerError("on purpose")

    def work() -> None:
        ran.append("work")
        if len(ran) > 1:
            twice.set()

    keeper = Keeper(
        (
            Job(name="fails", interval_s=0, run=fail),
            Job(name="works", interval_s=0, run=work),
            Job(name="last", interval_s=3600, run=lambda: ran.append("last"), at_end=True),
        ),
        observe=lambda name, error: seen.append((name, error is None)),
    )
    keeper.start()
    assert twice.wait(30)
    keeper.stop()
    assert ran[-1] == "last"
    assert {("fails", False), ("works", True), ("last", True)} == set(seen)
