"""A Casbin model: which tokens a request has, which columns a rule has, how both meet.

Everything this engine does not evaluate exactly as documented is refused here by name.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from authz_server.core.attributes import SCHEMA
from authz_server.core.suggestion import did_you_mean
from authz_server.policy.ini import SECTIONS, Entry, parse_ini
from authz_server.policy.limits import COLUMNS_MAX
from authz_server.policy.source import FaultFound, FaultLog, Fragment, SourceFile


class Effect(Enum):
    """How the effects of matching rules make one verdict."""

    ALLOW_AND_DENY = "some(where (p.eft == allow)) && !some(where (p.eft == deny))"
    ALLOW_OVERRIDE = "some(where (p.eft == allow))"
    PRIORITY = "priority(p.eft) || deny"


@dataclass(frozen=True, slots=True)
class RoleDefinition:
    """`g = _, _` or, within domains, `g = _, _, _`."""

    name: str
    arity: int
    at: Fragment


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checked `model.conf`. `columns` maps a column of `p` to its index in a row."""

    request: frozenset[str]
    columns: Mapping[str, int]
    roles: Mapping[str, RoleDefinition]
    effect: Effect
    matcher: Fragment


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBERED = re.compile(r"([rpgem])([0-9]+)")
_REFUSED_EFFECTS: Final = {
    "!some(where(p.eft==deny))": "a deny-only effect allows whatever no rule denies",
    "subjectPriority(p.eft)||deny": "subjectPriority is not supported",
}
_COLUMNS_RESERVED: Final = ("id", "eft", "obligation")


def load_model(file: SourceFile, log: FaultLog) -> Model | None:
    """Return the model in `file`, or None when `log` holds why there is none."""
    before = len(log.faults)
    entries: dict[str, Entry] = {}
    roles: dict[str, RoleDefinition] = {}
    for entry in parse_ini(file, log):
        with log.collecting():
            _check_key(entry)
            if entry.section == "role_definition":
                roles[entry.key] = _role_definition(entry)
            else:
                entries[entry.key] = entry
    for section, key in SECTIONS.items():
        if key != "g" and key not in entries and len(log.faults) == before:
            log.add(file.fault(0, f"`{key} = …` in `[{section}]` is missing"))
    if len(log.faults) > before:
        return None
    return _checked(entries, roles, log)


def _checked(
    entries: Mapping[str, Entry], roles: Mapping[str, RoleDefinition], log: FaultLog
) -> Model | None:
    before = len(log.faults)
    request: frozenset[str] = frozenset()
    columns: dict[str, int] = {}
    effect = Effect.ALLOW_AND_DENY
    with log.collecting():
        request = _request_tokens(entries["r"])
    with log.collecting():
        columns = _columns(entries["p"])
    with log.collecting():
        effect = _effect(entries["e"])
    if len(log.faults) > before:
        return None
    return Model(
        request=request,
        columns=columns,
        roles=dict(roles),
        effect=effect,
        matcher=entries["m"].value,
    )


def _check_key(entry: Entry) -> None:
    letter = SECTIONS[entry.section]
    if entry.key == letter:
        return
    numbered = _NUMBERED.fullmatch(entry.key)
    if numbered is None or numbered[1] != letter:
        message = (
            f"stray line: `{entry.key}` is no entry of `[{entry.section}]`; "
            "to continue a line, end it with `\\`"
        )
    elif letter == "g" and entry.key != "g1" and not numbered[2].startswith("0"):
        return
    else:
        message = f"`{entry.key}` is not supported: a bundle has one `{letter}`"
    raise FaultFound(entry.value.file.fault(entry.at, message))


def _tokens(entry: Entry) -> Iterator[tuple[str, int]]:
    at = 0
    for part in entry.value.text.split(","):
        yield part.strip(), at + len(part) - len(part.lstrip())
        at += len(part) + 1


def _request_tokens(entry: Entry) -> frozenset[str]:
    found: set[str] = set()
    for name, at in _tokens(entry):
        if name not in SCHEMA:
            known = ", ".join(SCHEMA)
            hint = did_you_mean(name, SCHEMA)
            message = f"unknown request token `{name}` (known: {known}){hint}"
            raise FaultFound(entry.value.fault(at, message))
        if name in found:
            raise FaultFound(entry.value.fault(at, f"request token `{name}` is given twice"))
        found.add(name)
    return frozenset(found)


def _columns(entry: Entry) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, at in _tokens(entry):
        if not _NAME.fullmatch(name):
            raise FaultFound(entry.value.fault(at, f"`{name}` is not a column name"))
        if name in found:
            raise FaultFound(entry.value.fault(at, f"column `{name}` is given twice"))
        if name.lower() in _COLUMNS_RESERVED and name not in _COLUMNS_RESERVED:
            message = f"column `{name}`: write the reserved name `{name.lower()}` in lower case"
            raise FaultFound(entry.value.fault(at, message))
        found[name] = len(found)
    if len(found) > COLUMNS_MAX:
        raise FaultFound(entry.value.fault(0, f"more than {COLUMNS_MAX} columns"))
    return found


def _effect(entry: Entry) -> Effect:
    text = re.sub(r"\s+", "", entry.value.text).replace("p_eft", "p.eft")
    for effect in Effect:
        if text == re.sub(r"\s+", "", effect.value):
            return effect
    reason = _REFUSED_EFFECTS.get(text, "unknown policy effect")
    known = "; ".join(f"`{effect.value}`" for effect in Effect)
    raise FaultFound(entry.value.fault(0, f"{reason}; write one of {known}"))


def _role_definition(entry: Entry) -> RoleDefinition:
    text = re.sub(r"\s+", "", entry.value.text)
    if text not in {"_,_", "_,_,_"}:
        message = (
            f"`{entry.value.text}` is not supported; write `_, _` or, with a domain, `_, _, _`"
        )
        raise FaultFound(entry.value.fault(0, message))
    return RoleDefinition(entry.key, text.count("_"), entry.value)
