"""The journal of an upstream: one JSON line for each request that really reached it.

It is the demonstration's proof that a denied request went nowhere: the line is on disk before the
application sees the request.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

# SECURITY: a journal is a file, and what grants access is not written to files.
_SECRET: Final = frozenset({"authorization", "txn-token", "delegation-chain"})

# What an MCP client sends around a tool call, none of which acts.
UPKEEP: Final = frozenset({"server/discover", "tools/list"})


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
        append_visit(
            self._path,
            scope["method"],
            scope["raw_path"].decode("latin-1"),
            scope["query_string"].decode("latin-1"),
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
        )


def append_visit(
    path: Path, method: str, target: str, query: str, headers: Iterable[tuple[str, str]]
) -> None:
    """Note one request in the journal at `path`; `target` is its raw path, without the query."""
    line = {
        "method": method,
        "path": target,
        "query": query,
        "headers": [[name, "" if name in _SECRET else value] for name, value in headers],
    }
    with path.open("a") as file:
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
