"""Which recorded facts bear on which reference of a framework: tables in `frameworks/*.yaml`.

A table says what a decision ledger can evidence, and beside it what it cannot. It never says that
a requirement is met: that is an assessor's judgment, on more than this ledger.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any, Final

import yaml

from authz_server.ledger.report import Measure

_DIRECTORY: Final = "frameworks"


class Framework(StrEnum):
    """The frameworks there are tables for; the value is the name of the file."""

    HIPAA = "hipaa"
    DORA = "dora"
    SOX = "sox"
    EU_AI_ACT = "eu-ai-act"
    FERPA = "ferpa"
    NIST_AI_800_4 = "nist-ai-800-4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One reference of a framework, what of the ledger bears on it, and what the ledger lacks.

    `measures` are evidence. `gaps` are what an assessor will ask about if they are not zero.
    """

    reference: str
    topic: str
    bears_on: str
    not_shown: str
    measures: tuple[Measure, ...]
    gaps: tuple[Measure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameworkTable:
    """One framework. `relation` is the verb between the ledger and it: evidences, or informs."""

    name: str
    title: str
    relation: str
    note: str
    references: tuple[Reference, ...]


def load_table(framework: Framework) -> FrameworkTable:
    """Return the table of `framework`, which is part of this package."""
    package = resources.files("authz_server.ledger")
    file = package.joinpath(_DIRECTORY).joinpath(f"{framework.value}.yaml")
    document: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return FrameworkTable(
        name=framework.value,
        title=document["title"],
        relation=document["relation"],
        note=" ".join(document["note"].split()),
        references=tuple(map(_reference, document["references"])),
    )


def _reference(entry: Mapping[str, Any]) -> Reference:
    return Reference(
        reference=entry["reference"],
        topic=entry["topic"],
        bears_on=" ".join(entry["bears_on"].split()),
        not_shown=" ".join(entry["not_shown"].split()),
        measures=tuple(map(Measure, entry["measures"])),
        gaps=tuple(map(Measure, entry.get("gaps", ()))),
    )
