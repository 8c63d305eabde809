"""The listener with mutual TLS over real gRPC: certificates that change, ages, takeovers."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from authz_server.agent.svid import Svid
from authz_server.core.errors import ConfigurationError
from authz_server.core.snapshot import Snapshot
from authz_server.core.spiffe import SpiffeIdPattern
from authz_server.core.trust import TrustBundle
from authz_server.demo.authority import LeafProfile, TrustDomainAuthority, write_svid
from authz_server.identity.own_svid import OwnSvid, SvidFiles
from authz_server.servers.addresses import ListenError
from authz_server.servers.admission import Admission, PeerProperties
from authz_server.servers.grpc_server import SERVICE
from authz_server.servers.listener import Listener
from authz_server.servers.listener_tls import ListenerTls
from tests.harness.live_trust import snapshot

CHECK = f"/{SERVICE}/Check"
PDP_NAME = LeafProfile(dns_names=("pdp",))  # gRPC clients in Python know no SPIFFE IDs
OLD, NEW = (TrustDomainAuthority.create("prod.example.org") for _ in range(2))
ALLOWED = (SpiffeIdPattern.parse("spiffe://prod.example.org/envoy/*"),)


def _own(svid: Svid) -> OwnSvid:
    return OwnSvid.from_pem(svid.cert_chain_pem, svid.key_pem)


def _bundle(*authorities: TrustDomainAuthority) -> TrustBundle:
    roots = tuple(authority.root for authority in authorities)
    return TrustBundle(trust_domain=OLD.trust_domain, authorities=roots)


@dataclass(slots=True)
class State:
    """What serves now; a test changes it under the listener."""

    own: OwnSvid | None
    current: Snapshot | None
    handshakes: int = 0

    @property
    def svid(self) -> OwnSvid | None:
        """The SVID, which gRPC asks for at each handshake."""
        self.handshakes += 1
        return self.own


async def _echo(data: bytes) -> bytes:
    return data


@asynccontextmanager
async def listening(
    state: State, *, age_s: float = 600, address: str = "127.0.0.1:0"
) -> AsyncIterator[tuple[Listener, str]]:
    admission = Admission(ALLOWED, max_connection_age_s=age_s)

    def admit(peer: PeerProperties) -> object:
        return admission.check(peer, state.current, datetime.now(UTC))

    tls = ListenerTls(state, state, ALLOWED)
    listener = Listener(_echo, max_connection_age_s=age_s, tls=tls, admit=admit)
    bound = listener.listen(address)
    await listener.start()
    try:
        yield listener, bound.replace("unix://", "unix:")
    finally:
        await listener.stop(0)


def channel(target: str, svid: Svid, *roots: TrustDomainAuthority) -> grpc.aio.Channel:
    pem = b"".join(authority.bundle_pem for authority in roots or (OLD, NEW))
    credentials = grpc.ssl_channel_credentials(pem, svid.key_pem, svid.cert_chain_pem)
    options = (
        ("grpc.ssl_target_name_override", "pdp"),
        # Else two channels of one test share a connection.
        ("grpc.use_local_subchannel_pool", 1),
    )
    return grpc.aio.secure_channel(target, credentials, options=options)


CUT_OFF = (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


async def code(on: grpc.aio.Channel) -> grpc.StatusCode:
    check: Any = on.unary_unary(CHECK)
    try:
        await check(b"x", timeout=10)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _state(*authorities: TrustDomainAuthority) -> State:
    svid = _own(authorities[0].issue_svid("/pdp", profile=PDP_NAME))
    return State(own=svid, current=snapshot(_bundle(*authorities)))


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(test())


def test_a_unix_socket_takes_tls_too() -> None:
    async def test() -> None:
        with tempfile.TemporaryDirectory(prefix="tls-") as name:
            address = f"unix://{name}/pdp.sock"
            async with (
                listening(_state(OLD), address=address) as (_, target),
                channel(target, OLD.issue_svid("/envoy/a")) as good,
            ):
                assert await code(good) is grpc.StatusCode.OK
                async with grpc.aio.insecure_channel(target) as plain:
                    assert await code(plain) is grpc.StatusCode.UNAVAILABLE

    run(test)


def test_a_new_svid_and_bundle_serve_from_the_next_handshake_on() -> None:
    async def test() -> None:
        state = _state(OLD)
        async with (
            listening(state) as (_, target),
            channel(target, OLD.issue_svid("/envoy/a"), OLD) as before,
        ):
            assert await code(before) is grpc.StatusCode.OK
            state.own = _own(NEW.issue_svid("/pdp", profile=PDP_NAME))
            state.current = snapshot(_bundle(OLD, NEW), revision="both")
            assert await code(before) is grpc.StatusCode.OK, "the open connection goes on"
            async with channel(target, NEW.issue_svid("/envoy/b"), NEW) as after:
                assert await code(after) is grpc.StatusCode.OK
            async with channel(target, OLD.issue_svid("/envoy/c"), OLD) as late:
                assert await code(late) is grpc.StatusCode.UNAVAILABLE, "knows no such PDP"

    run(test)


def test_connections_that_rest_on_an_authority_taken_back_are_ended() -> None:
    async def test() -> None:
        state = _state(OLD, NEW)
        async with (
            listening(state) as (listener, target),
            channel(target, OLD.issue_svid("/envoy/a")) as old,
            channel(target, NEW.issue_svid("/envoy/b")) as new,
        ):
            assert await code(old) is grpc.StatusCode.OK
            assert await code(new) is grpc.StatusCode.OK
            assert await listener.renew_if_distrusted() is False

            state.current = snapshot(_bundle(NEW), revision="new only")
            assert await code(old) is grpc.StatusCode.PERMISSION_DENIED
            assert await listener.renew_if_distrusted() is True
            assert await listener.renew_if_distrusted() is False

            # A call that meets the change may be cut off (fail closed); the next one is answered.
            while (found := await code(new)) in CUT_OFF:
                await asyncio.sleep(0.01)
            assert found is grpc.StatusCode.OK, "it has come back"
            while await code(old) is grpc.StatusCode.PERMISSION_DENIED:
                await asyncio.sleep(0.01)
            assert await code(old) is grpc.StatusCode.UNAVAILABLE, "no handshake any more"

    run(test)


def test_nothing_is_renewed_while_there_is_no_authority_at_all() -> None:
    async def test() -> None:
        state = _state(OLD)
        async with (
            listening(state) as (listener, target),
            channel(target, OLD.issue_svid("/envoy/a")) as envoy,
        ):
            assert await code(envoy) is grpc.StatusCode.OK
            state.current = snapshot(_bundle(), revision="revoked")
            assert await listener.renew_if_distrusted() is False
            assert await code(envoy) is grpc.StatusCode.PERMISSION_DENIED

    run(test)


def test_connections_have_an_age_and_no_call_notices() -> None:
    async def test() -> None:
        state = _state(OLD)
        async with (
            listening(state, age_s=0.3) as (_, target),
            channel(target, OLD.issue_svid("/envoy/a")) as envoy,
        ):
            while state.handshakes < 4:  # bounded by the test's own time limit
                assert await code(envoy) is grpc.StatusCode.OK
                await asyncio.sleep(0.001)

    run(test)


def test_there_is_no_listener_without_an_svid_or_a_pool() -> None:
    async def test() -> None:
        for state in (
            State(own=None, current=snapshot(_bundle(OLD))),
            State(own=_own(OLD.issue_svid("/pdp")), current=None),
            State(own=_own(OLD.issue_svid("/pdp")), current=snapshot(_bundle())),
        ):
            with pytest.raises(ListenError, match="no SVID yet"):
                async with listening(state):
                    pass

    run(test)


def test_files_are_read_again_once_both_belong_together(tmp_path: Path) -> None:
    first, second = (OLD.issue_svid("/pdp") for _ in range(2))
    certificate, key = write_svid(first, tmp_path)
    said: list[str] = []
    files = SvidFiles(certificate, key, report=said.append)
    assert files.svid == _own(first)

    certificate.write_bytes(second.cert_chain_pem)
    assert files.svid == _own(first), "half of a change"
    assert files.svid == _own(first)
    assert len(said) == 1, "said once"
    key.write_bytes(second.key_pem)
    assert files.svid == _own(second)
    key.unlink()
    assert files.svid == _own(second)


@pytest.mark.parametrize("chain", [b"", b"x", OLD.bundle_pem, OLD.issue_leaf(()).cert_chain_pem])
def test_files_must_be_sound_to_begin_with(tmp_path: Path, chain: bytes) -> None:
    certificate, key = write_svid(OLD.issue_svid("/pdp"), tmp_path)
    certificate.write_bytes(chain)
    with pytest.raises(ConfigurationError):
        SvidFiles(certificate, key, report=lambda _what: None)
