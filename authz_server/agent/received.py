"""The delegation of the request being served: caught on the way in, carried on the way out.

It lives in a context variable, so that concurrent requests, threads of one request pool and tasks
each see their own. The middlewares (`asgi`, `wsgi`, `grpc_server`) set it, everything that calls
onward (`onward`) reads it, and an agent's own code need not touch it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from authz_server.core.delegation import CHAIN_HEADER, ROOT_HEADER

DELEGATION_HEADERS: Final = (ROOT_HEADER, CHAIN_HEADER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delegation:
    """A root grant and its links exactly as they came, byte for byte; nothing is verified.

    `root` is the value of `Txn-Token`, `chain` that of `Delegation-Chain`, empty without links.
    """

    # SECURITY: tokens must not get into a log or a traceback by way of `repr`.
    root: str = field(repr=False)
    chain: str = field(default="", repr=False)

    @classmethod
    def from_headers(
        cls, headers: Iterable[tuple[str | bytes, str | bytes]]
    ) -> "Delegation | None":
        """Return the delegation in header lines, or None when they hold none.

        Also None when either header was sent twice, or was joined of two by a proxy or a web
        server: whoever picks one of two may pick another one than the decision point did. And for
        bytes outside ASCII, which no token has and client libraries send in another spelling.
        """
        found: dict[str, str] = {}
        for name, value in headers:
            key = _text(name).lower()
            if key in DELEGATION_HEADERS:
                if key in found:
                    return None
                found[key] = _text(value)
        root = found.get(ROOT_HEADER)
        chain = found.get(CHAIN_HEADER, "")
        if not root or "," in root or not (root + chain).isascii():
            return None
        return cls(root=root, chain=chain)

    @property
    def links(self) -> tuple[str, ...]:
        """The links, oldest first."""
        return tuple(filter(None, (link.strip(" \t") for link in self.chain.split(","))))

    @property
    def headers(self) -> dict[str, str]:
        """The request headers that present it."""
        return {ROOT_HEADER: self.root} | ({CHAIN_HEADER: self.chain} if self.chain else {})

    def with_link(self, link: str) -> "Delegation":
        """Return it with one more link; what was there before is not touched."""
        chain = f"{self.chain}, {link}" if self.links else link
        return Delegation(root=self.root, chain=chain)


def _text(value: str | bytes) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return text.strip(" \t")  # RFC 9110 §5.5: not part of the value


_CURRENT: ContextVar[Delegation | None] = ContextVar("authz_server_delegation", default=None)


def current() -> Delegation | None:
    """Return the delegation of the request being served, or None outside of one."""
    return _CURRENT.get()


@contextmanager
def serving(delegation: Delegation | None) -> Iterator[None]:
    """Make `delegation` the current one inside; None hides an outer one."""
    token = _CURRENT.set(delegation)
    try:
        yield
    finally:
        _CURRENT.reset(token)
