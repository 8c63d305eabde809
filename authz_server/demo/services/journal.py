"""The journal of an upstream: one JSON line for each request that really reached it.

It is the demonstration's proof that a denied request went nowhere: the line is on disk before the
application sees the request.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

# SECURITY: a journal is a file, and what grants access is not written to files.
_SECRET: Final = frozenset({b"authorization", b"txn-token", b"delegation-chain"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One request as the upstream saw it.

    `headers` are lower-case, one pair per field line; those that grant access have no value.
    """

    method: str
    path: str  # raw, without the query
    query: str
    headers: tuple[tuple[str, str], ...]

    def header(self, name: str) -> str | None:
        """Return the first value of `name`, or None."""
        return next((value for key, value in self.headers if key == name), None)


class Journal:
    """ASGI middleware that writes the journal."""

    def __init__(self, app: ASGIApp, path: Path) -> None:
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note an HTTP request, then pass it on."""
        if scope["type"] == "http":
            self._append(scope)
        await self._app(scope, receive, send)

    def _append(self, scope: Scope) -> None:
        line = {
            "method": scope["method"],
            "path": scope["raw_path"].decode("latin-1"),
            "query": scope["query_string"].decode("latin-1"),
            "headers": [
                [name.decode("latin-1"), "" if name in _SECRET else value.decode("latin-1")]
                for name, value in scope["headers"]
            ],
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_journal(path: Path) -> list[Visit]:
    """Return every visit so far, oldest first; none if nothing ever came."""
    if not path.exists():
        return []
    return [_visit(line) for line in path.read_text().splitlines()]


def _visit(line: str) -> Visit:
    values = json.loads(line)
    return Visit(
        method=values["method"],
        path=values["path"],
        query=values["query"],
        headers=tuple((name, value) for name, value in values["headers"]),
    )
