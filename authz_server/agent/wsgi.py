"""WSGI middleware: what came with a request is the current delegation while it is served."""

from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, copy_context
from typing import Any

from authz_server.agent.received import DELEGATION_HEADERS, Delegation, serving

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


class DelegationWsgiMiddleware:
    """Wrap a WSGI application: `app = DelegationWsgiMiddleware(app)`."""

    def __init__(self, app: Application) -> None:
        self._app = app

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Serve one request."""
        # PEP 3333: header values are latin-1 text, repeated lines joined by the server.
        lines = [(name, environ.get(_variable(name))) for name in DELEGATION_HEADERS]
        received = Delegation.from_headers([(name, text) for name, text in lines if text])
        with serving(received):
            context = copy_context()
        return _Body(context, context.run(self._app, environ, start_response))


class _Body:
    """The body of a response, made in the request's context: a generator works while it is read."""

    def __init__(self, context: Context, body: Iterable[bytes]) -> None:
        self._context = context
        self._body = body
        self._parts = context.run(iter, body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._context.run(next, self._parts)

    def close(self) -> None:
        """Close the application's own body, as PEP 3333 has the server do."""
        close = getattr(self._body, "close", None)
        if close is not None:
            self._context.run(close)


def _variable(name: str) -> str:
    return "HTTP_" + name.upper().replace("-", "_")
