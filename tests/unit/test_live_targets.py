"""TARGETS.yaml: read strictly, every fault at its place; and who a TLS client speaks to."""

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from authz_server.core.errors import ConfigurationError, InvalidValueError
from authz_server.core.spiffe import SpiffeId
from authz_server.demo.authority import LeafProfile, TrustDomainAuthority, write_svid
from authz_server.live.targets import Identity, Targets, load_targets
from authz_server.live.tls import spiffe_context

AGENT = "spiffe://d.example/agent/one"
PEER = SpiffeId.parse("spiffe://d.example/tool/crm")
TARGET = {
    "name": "crm",
    "bundle": "tools",
    "protocol": "mcp",
    "address": "127.0.0.1:10443",
    "host": "crm.d.example",
    "peer": str(PEER),
}


def document(target: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "trust_domain": "d.example",
        "issuer": {"issuer": "https://sts.d.example", "key_file": "sts.key.pem"},
        "agents": {AGENT: "svid/one"},
        "targets": [{name: value for name, value in (TARGET | target).items() if value is not ...}],
    } | changes


def load(directory: Path, value: dict[str, Any]) -> Targets:
    path = directory / "targets.yaml"
    path.write_text(json.dumps(value, indent=1))
    return load_targets(path)


def faults(directory: Path, value: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(directory, value)
    return [f"{fault.line}: {fault.message}" for fault in caught.value.faults]


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    targets = load(tmp_path, document({"descriptors": "fleet.binpb", "first_bytes": "00ff"}))
    (target,) = targets.targets
    assert targets.issuer.key_file == tmp_path / "sts.key.pem"
    assert targets.identity(AGENT).certificate == tmp_path / "svid/one/svid.pem"
    assert (target.descriptors, target.first_bytes) == (tmp_path / "fleet.binpb", b"\x00\xff")


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ({"hostt": "x"}, "`targets[0].hostt` is not a known key; did you mean `host`?"),
        ({"protocol": "smtp"}, "`targets[0].protocol`"),
        ({"peer": "crm"}, "`targets[0].peer` is not valid"),
        ({"peer": ..., "caller": AGENT, "address": "10.0.0.1:80"}, "must be on this machine"),
        ({"peer": ...}, "needs either a `peer` or the `caller`"),
        ({"caller": AGENT}, "needs either a `peer` or the `caller`"),
        ({"first_bytes": "xyz"}, "`targets[0].first_bytes` must be bytes in hex, quoted"),
        ({"first_bytes": 12}, "`targets[0].first_bytes` must be bytes in hex, quoted"),
        ({"host": ...}, "`targets[0].host` is required"),
    ],
)
def test_a_fault_has_its_line(tmp_path: Path, target: dict[str, Any], found: str) -> None:
    (fault,) = faults(tmp_path, document(target))
    line, _, message = fault.partition(": ")
    assert int(line) > 10
    assert found in message


def test_every_fault_at_once(tmp_path: Path) -> None:
    twice = document({}, targets=[TARGET, TARGET])
    assert "is given twice" in faults(tmp_path, twice)[0]
    assert len(faults(tmp_path, document({"peer": "x", "protocol": "y"}, trust_domain="A"))) == 3
    assert "`targets` must not be empty" in faults(tmp_path, document({}, targets=[]))[0]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    targets = load(tmp_path, document({}))
    with pytest.raises(ConfigurationError, match=r"sts\.key\.pem: .*cannot be read"):
        _ = targets.root_issuer
    with pytest.raises(ConfigurationError, match=r"svid\.pem: .*cannot be read"):
        _ = targets.identity(AGENT).spiffe_id
    with pytest.raises(InvalidValueError, match="`agents` has no SVID for"):
        targets.identity("spiffe://d.example/agent/two")


def test_a_sidecar_is_for_its_caller_alone(tmp_path: Path) -> None:
    targets = load(tmp_path, document({"peer": ..., "caller": AGENT}))
    assert [target.name for target in targets.ways("tools", "mcp", AGENT)] == ["crm"]
    assert targets.ways("tools", "mcp", "spiffe://d.example/agent/two") == ()
    assert targets.ways("tools", "http", AGENT) == ()


# --- TLS -----------------------------------------------------------------------------------------


@contextmanager
def listening(
    directory: Path, uris: tuple[str, ...], authority: TrustDomainAuthority
) -> Iterator[tuple[int, list[bytes]]]:
    """A TLS server with a leaf of `uris`, and what it was sent after the handshake."""
    leaf = authority.issue_leaf(uris, profile=LeafProfile(dns_names=("localhost",)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_svid(leaf, directory, "server"))
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            connection.settimeout(10)
            try:
                with context.wrap_socket(connection, server_side=True) as stream:
                    received.append(stream.recv(100))
                    stream.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            except OSError:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], received
        thread.join()


def identity(directory: Path, authority: TrustDomainAuthority) -> Identity:
    write_svid(authority.issue_svid(AGENT), directory)
    (directory / "bundle.pem").write_bytes(authority.bundle_pem)
    return Identity(directory)


def ask(context: ssl.SSLContext, port: int) -> int:
    with httpx.Client(verify=context, trust_env=False) as client:
        return client.get(f"https://127.0.0.1:{port}/secret").status_code


def ask_async(context: ssl.SSLContext, port: int) -> int:
    async def run() -> int:
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            return (await client.get(f"https://127.0.0.1:{port}/secret")).status_code

    return asyncio.run(run())


@pytest.mark.parametrize("asking", [ask, ask_async])
def test_the_peer_it_means_is_spoken_to(tmp_path: Path, asking: Any) -> None:
    authority = TrustDomainAuthority.create("d.example")
    own = identity(tmp_path, authority)
    with listening(tmp_path, (str(PEER),), authority) as (port, received):
        assert asking(spiffe_context(own, PEER), port) == 204
    assert received[0].startswith(b"GET /secret")


@pytest.mark.parametrize("asking", [ask, ask_async])
@pytest.mark.parametrize(
    "uris",
    [
        ("spiffe://d.example/tool/other",),
        ("spiffe://d.example/tool/crm/x",),
        (str(PEER), "spiffe://d.example/tool/other"),
        (),
    ],
    ids=["another", "below", "two", "none"],
)
def test_nobody_else_is_sent_a_byte(tmp_path: Path, asking: Any, uris: tuple[str, ...]) -> None:
    authority = TrustDomainAuthority.create("d.example")
    own = identity(tmp_path, authority)
    # The naive client, which trusts whoever the trust domain has certified:
    naive = ssl.create_default_context(cafile=own.trust_bundle)
    naive.check_hostname = False
    with listening(tmp_path, uris, authority) as (port, received):
        assert asking(naive, port) == 204
    assert received[0].startswith(b"GET /secret")
    with (
        listening(tmp_path, uris, authority) as (port, received),
        pytest.raises(httpx.ConnectError),
    ):
        asking(spiffe_context(own, PEER), port)
    assert received in ([], [b""])


def test_another_trust_domain_is_not_believed(tmp_path: Path) -> None:
    authority = TrustDomainAuthority.create("d.example")
    impostor = TrustDomainAuthority.create("d.example")
    own = identity(tmp_path, authority)
    with (
        listening(tmp_path, (str(PEER),), impostor) as (port, received),
        pytest.raises(httpx.ConnectError),
    ):
        ask(spiffe_context(own, PEER), port)
    assert received in ([], [b""])
