"""The order of rules where the first that matches decides, as Casbin has it."""

import re
from collections.abc import Mapping, Sequence

from authz_server.core.errors import InvalidValueError
from authz_server.policy.model import Effect, Section
from authz_server.policy.roles import levels
from authz_server.policy.rows import Row
from authz_server.policy.source import FaultFound, FaultLog


def put_in_order(
    rows: list[Row], section: Section, links: Mapping[str, Sequence[Row]], log: FaultLog
) -> None:
    """Sort the rows of a section whose first match decides as Casbin does; others keep theirs."""
    if section.effect is Effect.PRIORITY:
        _order_by_priority(rows, section, log)
    elif section.effect is Effect.SUBJECT_PRIORITY:
        with log.collecting():
            _order_by_subject(rows, section, links)


def _order_by_priority(rows: list[Row], section: Section, log: FaultLog) -> None:
    """Sort by an explicit `priority` column, smallest first."""
    column = section.columns.get("priority")
    if column is None:
        return
    for row in rows:
        if not re.fullmatch(r"-?[0-9]{1,9}", row.values[column]):
            message = f"priority `{row.values[column]}` is not a whole number"
            log.add(row.fault(column, message).fault)
    if not log.faults:
        rows.sort(key=lambda row: int(row.values[column]))


def _order_by_subject(
    rows: list[Row], section: Section, links: Mapping[str, Sequence[Row]]
) -> None:
    """Sort by column `sub`, those lowest in the hierarchy of `g` first."""
    subject, domain = section.columns.get("sub"), section.columns.get("dom")
    if subject is None or not links.get("g"):
        message = "subjectPriority needs a column `sub` and rows of `g`, which order it"
        raise FaultFound(section.matcher.fault(0, message))
    within_domains = len(links["g"][0].values) > 2
    if within_domains and domain is None:
        raise FaultFound(section.matcher.fault(0, "subjectPriority needs a column `dom` too"))
    try:
        height = levels([row.values for row in links["g"]])
    except InvalidValueError as error:
        raise links["g"][0].line_fault(str(error)) from error
    rows.sort(
        key=lambda row: height.get(
            (row.values[subject], row.values[domain or 0])
            if within_domains
            else row.values[subject],
            0,
        )
    )
