"""Read `bundle.yaml`: what the bundle is called, what it enforces, whom it judges."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from authz_server.core.arguments import Declaration, Pointer
from authz_server.core.attributes import Role
from authz_server.core.errors import ConfigurationError, InvalidValueError
from authz_server.core.limits import ARGUMENTS_MAX
from authz_server.core.suggestion import did_you_mean
from authz_server.core.yaml_document import YamlDocument, YamlValue
from authz_server.policy.functions import ROLE_FUNCTIONS
from authz_server.policy.limits import NAME_CHARS_MAX
from authz_server.policy.model import RoleMatching
from authz_server.policy.source import FaultLog

DOMAINS: Final = ("application", "infrastructure", "data", "ai_workload")
_PARTIES: Final[Mapping[str, Role]] = {
    "caller": Role.CALLER,
    "actors": Role.ACTOR,
    "subject": Role.SUBJECT,
}
_KEYS: Final = (
    "name",
    "domain",
    "description",
    "parties",
    "owner",
    "rows",
    "role_matching",
    "domain_matching",
    "arguments",
)
_ROWS_KEYS: Final = ("url_env", "table", "channel")
# SECURITY: whoever writes a bundle may not name any other variable of the server's environment.
_URL_VARIABLE = re.compile(r"POLICY_ROWS_[A-Z0-9_]{1,64}")
_SQL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")  # PostgreSQL cuts names at 63 bytes
_TABLE = re.compile(rf"(?:{_SQL_NAME.pattern}\.)?{_SQL_NAME.pattern}")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """Where the rows of a bundle are if not in files: a table in Casbin's `casbin_rule` layout.

    `url_env` names the environment variable that holds the database's URL; `channel` is what
    PostgreSQL notifies of changes (LISTEN).
    """

    url_env: str
    table: str = "casbin_rule"
    channel: str = "casbin_rule"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A checked `bundle.yaml`. `parties` always holds the caller.

    `matching` says of which role definitions (`g`, `g2`, …) the names or domains are patterns,
    `arguments` where in a request's body the arguments are that rules read.
    """

    name: str
    domain: str
    description: str = ""
    owner: str = ""
    parties: frozenset[Role] = frozenset({Role.CALLER})
    rows: RowSource | None = None
    matching: Mapping[str, RoleMatching] = field(default_factory=dict)
    arguments: Declaration = field(default_factory=dict)


def load_manifest(
    data: bytes, *, file: str, name_hint: str | None, log: FaultLog
) -> Manifest | None:
    """Return the manifest, or None when `log` holds why there is none.

    `name_hint` (the directory's name) is the bundle's name if the file gives none.
    """
    try:
        document = YamlDocument.parse(data, file=file)
    except ConfigurationError as error:
        for fault in error.faults:
            log.add(fault)
        return None
    before = len(log.faults)
    manifest = _Reader(document, log).read(name_hint)
    return manifest if len(log.faults) == before else None


class _Reader:
    """Reads one document; every key that is wrong is its own fault."""

    def __init__(self, document: YamlDocument, log: FaultLog) -> None:
        self._document = document
        self._log = log
        self._values: Mapping[str, YamlValue] = {}

    def read(self, name_hint: str | None) -> Manifest:
        if not isinstance(self._document.value, dict):
            self._fault((), "expected a mapping with at least `domain`")
            return Manifest(name="", domain="")
        self._values = self._document.value
        for key in self._values:
            if key not in _KEYS:
                message = f"unknown key `{key}`{did_you_mean(key, _KEYS)}"
                self._log.add(self._document.key_fault((key,), message))
        return Manifest(
            name=self._name(name_hint),
            domain=self._domain(),
            description=self._text("description"),
            owner=self._text("owner"),
            parties=self._parties(),
            rows=self._rows(),
            matching=self._matching_functions(),
            arguments=self._arguments(),
        )

    def _fault(self, path: tuple[str | int, ...], message: str) -> None:
        self._log.add(self._document.fault(path, message))

    def _text(self, key: str, default: str = "") -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str):
            self._fault((key,), f"`{key}` must be text")
            return default
        return value

    def _name(self, hint: str | None) -> str:
        name = self._text("name", hint or "")
        if len(name) > NAME_CHARS_MAX or not _NAME.fullmatch(name):
            message = f"a bundle name is 1 to {NAME_CHARS_MAX} of a-z, 0-9, `.`, `_`, `-`"
            self._fault(("name",), message)
        return name

    def _domain(self) -> str:
        domain = self._text("domain")
        if domain not in DOMAINS:
            hint = did_you_mean(domain, DOMAINS)
            self._fault(("domain",), f"`domain` is one of {', '.join(DOMAINS)}{hint}")
        return domain

    def _parties(self) -> frozenset[Role]:
        names = self._values.get("parties", ["caller"])
        if not isinstance(names, list):
            self._fault(("parties",), "`parties` is a list: [caller] or [caller, actors, subject]")
            return frozenset()
        for index, name in enumerate(names):
            if name not in _PARTIES or name in names[:index]:
                known = ", ".join(_PARTIES)
                self._fault(("parties", index), f"a party is one of {known}, each once")
        if "caller" not in names:
            self._fault(("parties",), "the caller is always judged: add `caller` to `parties`")
        return frozenset(_PARTIES[name] for name in names if name in _PARTIES)  # type: ignore[index]

    def _rows(self) -> RowSource | None:
        if "rows" not in self._values:
            return None
        given = self._values["rows"]
        if not isinstance(given, dict):
            self._fault(("rows",), f"`rows` is a mapping of {', '.join(_ROWS_KEYS)}")
            return None
        for key in given:
            if key not in _ROWS_KEYS:
                message = f"unknown key `{key}`{did_you_mean(key, _ROWS_KEYS)}"
                self._log.add(self._document.key_fault(("rows", key), message))
        variable = self._matching(given, "url_env", _URL_VARIABLE, "a name like POLICY_ROWS_URL")
        table = self._matching(given, "table", _TABLE, "the name of a table", "casbin_rule")
        own = table.rpartition(".")[2]
        channel = self._matching(given, "channel", _SQL_NAME, "the name of a channel", own)
        return RowSource(url_env=variable, table=table, channel=channel)

    def _matching_functions(self) -> Mapping[str, RoleMatching]:
        members, domains = self._functions("role_matching"), self._functions("domain_matching")
        return {
            name: RoleMatching(members=members.get(name), domains=domains.get(name))
            for name in {**members, **domains}
        }

    def _arguments(self) -> Declaration:
        given = self._values.get("arguments", {})
        if not isinstance(given, dict):
            self._fault(
                ("arguments",), "`arguments` maps names to JSON pointers: {to: /message/to}"
            )
            return {}
        if len(given) > ARGUMENTS_MAX:
            self._fault(("arguments",), f"more than {ARGUMENTS_MAX} arguments")
        found: dict[str, Pointer] = {}
        for name, pointer in given.items():
            if not _ARGUMENT.fullmatch(name):
                message = "an argument's name is 1 to 64 of letters, digits, `_`, `.`, `-`"
                self._log.add(self._document.key_fault(("arguments", name), message))
            try:
                if not isinstance(pointer, str):
                    raise InvalidValueError("a JSON pointer is text (RFC 6901)")
                found[name] = Pointer.parse(pointer)
            except InvalidValueError as error:
                self._fault(("arguments", name), f"`arguments.{name}`: {error}")
        return found

    def _functions(self, key: str) -> dict[str, str]:
        given = self._values.get(key, {})
        if not isinstance(given, dict):
            self._fault((key,), f"`{key}` maps role definitions to functions: {{g: keyMatch2}}")
            return {}
        found: dict[str, str] = {}
        for name, function in given.items():
            if function in ROLE_FUNCTIONS:
                found[str(name)] = str(function)
                continue
            hint = did_you_mean(str(function), ROLE_FUNCTIONS)
            known = ", ".join(ROLE_FUNCTIONS)
            self._fault((key, name), f"`{function}` cannot match names: one of {known}{hint}")
        return found

    def _matching(
        self,
        given: Mapping[str, YamlValue],
        key: str,
        pattern: re.Pattern[str],
        kind: str,
        default: str = "",
    ) -> str:
        value = given.get(key, default)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            self._fault(("rows", key), f"`rows.{key}` is {kind}")
            return default
        return value
