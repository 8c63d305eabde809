"""The delegation of a request: caught from headers as it came, and the current one meanwhile."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import pytest

from authz_server.agent import (
    Delegation,
    DelegationMiddleware,
    DelegationWsgiMiddleware,
    Delegator,
    HandOff,
    Onward,
    current,
    serving,
)
from authz_server.core.errors import InvalidValueError
from tests.harness.chains import ASSISTANT, CRM, NOW, RESEARCH, svid, three_hops, verify

ROOT, FIRST, _ = three_hops()
RECEIVED = Delegation(root=ROOT, chain=FIRST)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], None),
        ([("txn-token", "r")], Delegation(root="r")),
        (
            [(b"Txn-Token", b"r"), (b"Delegation-Chain", b"a,  b")],
            Delegation(root="r", chain="a,  b"),
        ),
        ([("txn-token", " r\t")], Delegation(root="r")),
        ([("delegation-chain", "a")], None),
        ([("txn-token", "")], None),
        ([("txn-token", "r"), ("txn-token", "r")], None),
        ([("txn-token", "r"), ("delegation-chain", "a"), ("Delegation-Chain", "b")], None),
        ([("txn-token", "r, s")], None),
        ([("x-other", "1"), (b"txn-token", b"\xff")], None),
    ],
)
def test_headers_are_taken_as_they_are_or_not_at_all(
    lines: list[tuple[str | bytes, str | bytes]], expected: Delegation | None
) -> None:
    assert Delegation.from_headers(lines) == expected


def test_what_is_carried_on_is_what_came_and_one_link_more() -> None:
    received = Delegation(root="r", chain="a ,\tb")
    assert received.headers == {"txn-token": "r", "delegation-chain": "a ,\tb"}
    assert received.with_link("c").headers["delegation-chain"] == "a ,\tb, c"
    assert received.with_link("c").links == ("a", "b", "c")
    assert Delegation(root="r").with_link("c").headers == {
        "txn-token": "r",
        "delegation-chain": "c",
    }


def test_no_token_gets_into_a_log() -> None:
    assert "secret" not in repr(Delegation(root="secret", chain="secret"))


def test_each_request_sees_its_own() -> None:
    seen: dict[str, Delegation | None] = {}
    both_inside = threading.Barrier(2)

    async def served(name: str, inside: asyncio.Event, other: asyncio.Event) -> None:
        with serving(Delegation(root=name)):
            inside.set()
            await other.wait()
            seen[name] = current()
            seen[f"thread of {name}"] = await asyncio.to_thread(current)

    async def both() -> None:
        first, second = asyncio.Event(), asyncio.Event()
        await asyncio.gather(served("a", first, second), served("b", second, first))

    def threaded(name: str) -> None:
        with serving(Delegation(root=name)):
            both_inside.wait()
            seen[name] = current()

    asyncio.run(both())
    threads = [threading.Thread(target=threaded, args=(name,)) for name in ("c", "d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: found and found.root for name, found in seen.items()} == {
        **{name: name for name in "abcd"},
        **{f"thread of {name}": name for name in "ab"},
    }
    assert current() is None


# --- onward ------------------------------------------------------------------------------------


def onward(**changes: Any) -> Onward:
    what = {"to": str(RESEARCH), "audience": [CRM], "scope": ["crm.read"]} | changes
    return Onward(Delegator(svid(ASSISTANT), clock=NOW.timestamp), HandOff(**what))


def test_a_call_that_hands_off_carries_one_link_more() -> None:
    with serving(Delegation(root=ROOT)):
        handed = onward().delegation()
    assert handed is not None
    assert handed.root == ROOT
    assert [grant.delegate for grant in verify(ROOT, *handed.links).grants] == [ASSISTANT, RESEARCH]


def test_an_agent_that_starts_a_chain_presents_what_it_was_given() -> None:
    given = Delegation(root=ROOT)
    with serving(RECEIVED):
        assert Onward(delegation=given).delegation() == given
        assert Onward().delegation() == RECEIVED
    assert Onward().delegation() is None


def test_nothing_to_hand_on_is_an_error_and_not_a_call_without_delegation() -> None:
    with pytest.raises(InvalidValueError, match="no delegation was received"):
        onward().delegation()
    with pytest.raises(InvalidValueError, match="come together"):
        Onward(Delegator(svid(ASSISTANT)))
    with serving(Delegation(root=ROOT)), pytest.raises(InvalidValueError, match="scope"):
        onward(scope=["payroll.read"]).delegation()


# --- ASGI and WSGI -----------------------------------------------------------------------------


def asgi(scope: dict[str, Any]) -> tuple[Delegation | None, Delegation | None]:
    """Return what an application sees under the middleware, and what is left afterwards."""
    seen: list[Delegation | None] = []

    async def app(*_: Any) -> None:
        await asyncio.sleep(0)
        seen.append(current())

    async def run() -> Delegation | None:
        await DelegationMiddleware(app)(scope, None, None)  # type: ignore[arg-type]
        return current()

    after = asyncio.run(run())
    return seen[0], after


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_asgi_requests(kind: str) -> None:
    headers = [(b"txn-token", ROOT.encode()), (b"delegation-chain", FIRST.encode())]
    assert asgi({"type": kind, "headers": headers}) == (RECEIVED, None)
    assert asgi({"type": kind, "headers": []}) == (None, None)


def test_asgi_lifespan_is_no_request() -> None:
    assert asgi({"type": "lifespan"}) == (None, None)


def wsgi(app: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> Any:
    return DelegationWsgiMiddleware(app)(environ, lambda *_: None)


ENVIRON = {"HTTP_TXN_TOKEN": ROOT, "HTTP_DELEGATION_CHAIN": FIRST}


def test_wsgi_requests_and_bodies_made_while_they_are_read() -> None:
    seen: list[Delegation | None] = []

    def app(_environ: dict[str, Any], _start: Any) -> Iterator[bytes]:
        seen.append(current())
        try:
            for part in (b"a", b"b"):
                seen.append(current())
                yield part
        finally:
            seen.append(current())

    with closing(wsgi(app, ENVIRON)) as body:
        assert next(body) == b"a"
        assert current() is None  # the server is not inside the request
        assert list(body) == [b"b"]
    assert seen == [RECEIVED] * 4


def test_wsgi_bodies_of_any_kind_are_closed() -> None:
    class Body(list[bytes]):
        closed: object = None

        def close(self) -> None:
            self.closed = current()

    body = Body([b"a"])
    with closing(wsgi(lambda *_: body, ENVIRON)) as wrapped:
        assert list(wrapped) == [b"a"]
    assert body.closed == RECEIVED
    with closing(wsgi(lambda *_: [b"x"], {})) as wrapped:
        assert list(wrapped) == [b"x"]


def test_wsgi_joined_lines_are_nobody_s() -> None:
    seen: list[Delegation | None] = []

    def app(*_: Any) -> list[bytes]:
        seen.append(current())
        return []

    with closing(wsgi(app, {"HTTP_TXN_TOKEN": f"{ROOT},{ROOT}"})):
        assert seen == [None]
