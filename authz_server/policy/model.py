"""A Casbin model: which tokens a request has, which columns a rule has, how both meet.

Everything this engine does not evaluate exactly as documented is refused here by name.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
    SUBJECT_PRIORITY = "subjectPriority(p.eft) || deny"

    @property
    def first_match(self) -> bool:
        """Whether the first rule that matches decides alone."""
        return self in {Effect.PRIORITY, Effect.SUBJECT_PRIORITY}


@dataclass(frozen=True, slots=True)
class RoleDefinition:
    """`g = _, _`, within domains `_, _, _`, either with `(_, _)` for the time a row holds.

    `arity` counts the names of a row; a `temporal` one has its beginning and end after them.
    """

    name: str
    arity: int
    at: Fragment
    temporal: bool = False

    @property
    def width(self) -> int:
        """How many fields a row has."""
        return self.arity + 2 * self.temporal


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleMatching:
    """Which functions say that a name matches a pattern: of members, of domains; None for `==`."""

    members: str | None = None
    domains: str | None = None


PLAIN: Final = RoleMatching()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One policy type with what judges it: `p` by `m`, `p2` by `m2`.

    `request_root` and `policy_root` are what its matcher calls the request and the rule: `r2` and
    `p2`, or `r` where the section has no request definition of its own. `columns` maps a column to
    its index in a row.
    """

    request_root: str
    policy_root: str
    request: frozenset[str]
    columns: Mapping[str, int]
    effect: Effect
    matcher: Fragment


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checked `model.conf`. INVARIANT: there is a section, and `p` is the first.

    Out of `bundle.yaml` come `matching`, which says of which role definitions names are patterns,
    and `arguments`, the names of those it declares.
    """

    sections: tuple[Section, ...]
    roles: Mapping[str, RoleDefinition]
    matching: Mapping[str, RoleMatching] = field(default_factory=dict)
    arguments: frozenset[str] = frozenset()

    def section(self, policy_root: str) -> Section | None:
        """Return the section whose rows are of type `policy_root`."""
        return next((one for one in self.sections if one.policy_root == policy_root), None)


SECTIONS_MAX: Final = 16  # every request is judged by each
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBERED = re.compile(r"[rpgem]([2-9]|[1-9][0-9])?")
_REFUSED_EFFECTS: Final = {
    "!some(where(p.eft==deny))": "a deny-only effect allows whatever no rule denies",
}
_COLUMNS_RESERVED: Final = ("id", "eft", "obligation")
_ROLE_SHAPES: Final = {
    "_,_": (2, False),
    "_,_,_": (3, False),
    "_,_,(_,_)": (2, True),
    "_,_,_,(_,_)": (3, True),
}


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
    if len(log.faults) == before:
        _check_numbers(entries, file, log)
    if len(log.faults) > before:
        return None
    return _checked(entries, roles, log)


def _checked(
    entries: Mapping[str, Entry], roles: Mapping[str, RoleDefinition], log: FaultLog
) -> Model | None:
    before = len(log.faults)
    sections = [_section(key[1:], entries, log) for key in entries if key.startswith("m")]
    if len(log.faults) > before:
        return None
    sections.sort(key=lambda section: int(section.policy_root[1:] or 1))
    return Model(sections=tuple(sections), roles=dict(roles))


def _section(number: str, entries: Mapping[str, Entry], log: FaultLog) -> Section:
    request: frozenset[str] = frozenset()
    columns: dict[str, int] = {}
    effect = Effect.ALLOW_AND_DENY
    request_root = f"r{number}" if f"r{number}" in entries else "r"
    with log.collecting():
        request = _request_tokens(entries[request_root])
    with log.collecting():
        columns = _columns(entries[f"p{number}"])
    with log.collecting():
        effect = _effect(entries.get(f"e{number}", entries["e"]))
    return Section(
        request_root=request_root,
        policy_root=f"p{number}",
        request=request,
        columns=columns,
        effect=effect,
        matcher=entries[f"m{number}"].value,
    )


def _check_key(entry: Entry) -> None:
    letter = SECTIONS[entry.section]
    numbered = _NUMBERED.fullmatch(entry.key)
    if numbered is not None and entry.key[0] == letter:
        return
    if re.fullmatch(rf"{letter}[0-9]+", entry.key):
        message = f"`{entry.key}`: sections are numbered from 2: `{letter}`, `{letter}2`, …"
    else:
        message = (
            f"stray line: `{entry.key}` is no entry of `[{entry.section}]`; "
            "to continue a line, end it with `\\`"
        )
    raise FaultFound(entry.value.file.fault(entry.at, message))


def _check_numbers(entries: Mapping[str, Entry], file: SourceFile, log: FaultLog) -> None:
    """Refuse what Casbin would not read, or what nothing would judge by."""
    for key, entry in entries.items():
        letter, number = key[0], key[1:]
        if not number:
            continue
        before = letter + ("" if number == "2" else str(int(number) - 1))
        if letter in "pm" and before not in entries:
            message = f"`{key}` without `{before}`: Casbin stops reading where a number is missing"
            log.add(file.fault(entry.at, message))
        for other in ("p", "m"):
            if other != letter and f"{other}{number}" not in entries:
                message = (
                    f"`{key}` needs `{other}{number}`: a numbered section has rules and a matcher"
                )
                log.add(file.fault(entry.at, message))
        if int(number) > SECTIONS_MAX:
            log.add(file.fault(entry.at, f"more than {SECTIONS_MAX} sections"))


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
    text = re.sub(r"\s+", "", entry.value.text)
    # Casbin writes `p_eft` too, and in a numbered effect either `p.eft` or `p2.eft`.
    text = text.replace("p_eft", "p.eft").replace(f"p{entry.key[1:]}.eft", "p.eft")
    for effect in Effect:
        if text == re.sub(r"\s+", "", effect.value):
            return effect
    reason = _REFUSED_EFFECTS.get(text, "unknown policy effect")
    known = "; ".join(f"`{effect.value}`" for effect in Effect)
    raise FaultFound(entry.value.fault(0, f"{reason}; write one of {known}"))


def _role_definition(entry: Entry) -> RoleDefinition:
    shape = _ROLE_SHAPES.get(re.sub(r"\s+", "", entry.value.text))
    if shape is None:
        message = (
            f"`{entry.value.text}` is not supported; write `_, _` or, with a domain, `_, _, _`, "
            "and `, (_, _)` after it for the time a row holds"
        )
        raise FaultFound(entry.value.fault(0, message))
    arity, temporal = shape
    return RoleDefinition(entry.key, arity, entry.value, temporal)
