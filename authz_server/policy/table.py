"""Rows of a database table in Casbin's `casbin_rule` layout: id, ptype and v0, v1, v2, ...

Reading the table is somebody else's; here its rows become what the rows of `policy.csv` become,
with the table's name and the row's id where a file has its name and line.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from authz_server.core.errors import Fault
from authz_server.policy.rows import Row, control_characters
from authz_server.policy.source import FaultFound, FaultLog, SourceFile

_BARE = re.compile(r'(?![ \t])[^",\r\n]*(?<![ \t])')  # reads back as it is without quotes


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row: its primary key, its type (`p`, `g`, ...), and v0, v1, …; None is SQL's NULL."""

    id: int
    kind: str | None
    values: tuple[str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTable:
    """What one read of a table found. `digest` names this exact content; `rows` are by id."""

    name: str
    digest: str
    rows: tuple[TableRow, ...]

    @property
    def empty(self) -> str:
        """What is wrong with a table without rows."""
        return "the table holds no rule"

    def fault(self, _offset: int, message: str) -> Fault:
        """Return a fault of the table as a whole."""
        return Fault(file=self.name, message=message)


def read_table(table: PolicyTable, log: FaultLog) -> Iterator[Row]:
    """Yield the rows of `table`; a damaged one goes to `log` and the next is read."""
    for stored in table.rows:
        with log.collecting():
            yield _row(table.name, stored, log)


def _row(table: str, stored: TableRow, log: FaultLog) -> Row:
    values = _filled(stored.values)
    fields = [stored.kind or "", *(value or "" for value in values)]
    texts = [field if _BARE.fullmatch(field) else _quoted(field) for field in fields]
    offsets, at = [], 0
    for text in texts:
        offsets.append(at)
        at += len(text) + len(", ")
    file = SourceFile(table, ", ".join(texts), row_id=stored.id)
    control_characters(file, log)
    # Casbin's adapters end a row at its first NULL and would lose what stands after it.
    for index, value in enumerate(values):
        if value is None:
            raise FaultFound(
                file.fault(offsets[index + 1], f"v{index} is NULL, a later one is not")
            )
    return Row(file, fields[0], 0, stored.id, tuple(fields[1:]), tuple(offsets[1:]))


def _filled(values: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """Return `values` up to the last that is not NULL: the columns a row does not use."""
    end = len(values)
    while end and values[end - 1] is None:
        end -= 1
    return values[:end]


def _quoted(field: str) -> str:
    return '"' + field.replace('"', '""') + '"'
