"""The table `tests/cases/attacks.yaml`, parsed: what each case sends, and what must come of it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.attack_mesh import CALLERS
from tests.e2e.envoy_profiles import EXTENSIONS

TABLE = Path(__file__).parents[1] / "cases" / "attacks.yaml"

_MEMBERS = {
    *("id", "what", "source", "request", "host", "headers", "body", "message", "listener"),
    "callers",
}
_OUTCOMES = {"hardened", "default", "alone", "upstream"}
# Whoever may do almost everything is whom a trick helps; the other half would only cost time.
_CALLERS: Mapping[str, tuple[str, ...]] = {"body": ("wide",)}
_PATHS = {"mcp": "/mcp", "rest": "/public/orders", "text": "/public/orders"}
_OUTCOME = re.compile(r"allow|refuse|deny [A-Z_]+|reject [0-9]{3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row. Texts are latin-1: one character, one byte."""

    id: str
    kind: str
    request: str
    host: str | None
    headers: tuple[str, ...]
    body: str
    listener: str
    callers: tuple[str, ...]
    outcomes: dict[str, str]  # by profile
    alone: str | None  # reason of the PDP without an Envoy before it
    upstream: str | None

    @property
    def extensions(self) -> Mapping[str, str]:
        """What the route says to the PDP beside the defaults."""
        return EXTENSIONS.get(self.listener, {})

    @property
    def method(self) -> str:
        """The method of the request line."""
        return self.request.partition(" ")[0]

    @property
    def target(self) -> str:
        """The request line without method and version."""
        return self.request.partition(" ")[2].rpartition(" HTTP/")[0]

    def wire(self, token: str) -> bytes:
        """Return the bytes to send. `token` is a valid root of the caller."""
        lines = [self.request]
        if self.host is not None:
            lines.append(f"Host: {self.host}")
        text = "\r\n".join([*lines, *self.headers]) + "\r\n\r\n" + self.body
        return text.replace("<token>", token).encode("latin-1")

    def fields(self, token: str) -> Iterator[tuple[str, bytes]]:
        """Yield the header lines but `Host`, as an Envoy with `encode_raw_headers` sends them."""
        for line in self.headers:
            name, _, value = line.replace("<token>", token).partition(":")
            yield name.lower(), value.strip(" ").encode("latin-1")


@cache
def cases() -> tuple[Case, ...]:
    """Return every case of the table. Raises `ValueError` for a member it does not know."""
    table = yaml.safe_load(TABLE.read_text("utf-8"))
    return tuple(_case(kind, row) for kind, rows in table.items() for row in rows)


def _case(kind: str, row: dict[str, Any]) -> Case:
    unknown = row.keys() - _MEMBERS - _OUTCOMES
    outcomes = {name: row[name] for name in ("hardened", "default")}
    if unknown or not all(map(_OUTCOME.fullmatch, outcomes.values())):
        raise ValueError(f"case {row['id']}: unknown member or outcome: {unknown or outcomes}")
    if "message" in row:
        row = _posted(row)
    return Case(
        id=row["id"],
        kind=kind,
        request=_expanded(row.get("request", "GET /public/x HTTP/1.1")),
        host=None if row.get("host", "") is None else _expanded(row.get("host", "tool.example")),
        headers=tuple(map(_expanded, row.get("headers", ()))),
        body=_expanded(row.get("body", "")),
        listener=row.get("listener", "tool"),
        callers=tuple(row.get("callers", _CALLERS.get(kind, CALLERS))),
        outcomes=outcomes,
        alone=row.get("alone", _reason(outcomes["default"])),
        upstream=row.get("upstream"),
    )


def _posted(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` with its message as the body of a POST."""
    body = _expanded(row["message"])
    headers = list(row.get("headers", ()))
    if not any(line.lower().startswith("content-type") for line in headers):
        headers.append("Content-Type: application/json")
    headers.append(f"Content-Length: {len(body)}")
    if row["listener"] == "mcp":
        # Envoy's MCP filter takes what does not accept both for no MCP.
        headers.append("Accept: application/json, text/event-stream")
    request = row.get("request", f"POST {_PATHS[row['listener']]} HTTP/1.1")
    return row | {"request": request, "headers": headers, "body": body}


def _reason(outcome: str) -> str | None:
    return outcome.removeprefix("deny ") if outcome.startswith("deny ") else None


def _expanded(text: str) -> str:
    text = text.replace("<120 lines>", "\r\n".join(f"X-{number}: 1" for number in range(120)))
    text = text.replace("<300 parameters>", "&".join(f"p{number}" for number in range(300)))
    text = re.sub(r"<([0-9]+) nines>", lambda match: "9" * int(match[1]), text)
    text = re.sub(r"<([0-9]+) zeros>", lambda match: ",".join("0" * int(match[1])), text)
    text = re.sub(r"<([0-9]+) opened>", lambda match: "[" * int(match[1]), text)
    text = re.sub(
        r"<([0-9]+) nested>", lambda match: "[" * int(match[1]) + "]" * int(match[1]), text
    )
    text = re.sub(r"<([0-9]+) segments>", lambda match: "/a" * int(match[1]), text)
    return re.sub(
        r"(?P<slash>GET )?<(?P<count>[0-9]+) letters>",
        lambda match: ("GET /" if match["slash"] else "") + "a" * int(match["count"]),
        text,
    )
