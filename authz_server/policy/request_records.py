"""Attributes as people write them in YAML: each checked against the schema, the rest filled in.

Policy tests, `policy explain` and consistency scenarios name only what matters to them. What they
leave out is what a server would put there: trust domain and path of a SPIFFE ID, depth and leaf of
a chain's actors, segments of a path, hour and weekday of `now` (2026-01-01T00:00:00Z unless given).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from authz_server.core.attributes import (
    SCHEMA,
    ActionAttributes,
    AttributeSpec,
    AttributeType,
    ChainAttributes,
    EnvironmentAttributes,
    ObjectAttributes,
    PartyAttributes,
    Protocol,
    Role,
)
from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import SpiffeId
from authz_server.core.suggestion import did_you_mean
from authz_server.core.yaml_document import YamlDocument, YamlValue
from authz_server.policy.source import FaultLog

YamlPath = tuple[str | int, ...]
# Attributes of one record by name, each of the type the schema says.
Given = dict[str, Any]

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_TYPES: Final[Mapping[str, str]] = {
    Protocol.HTTP: "http",
    Protocol.GRPC: "grpc",
    Protocol.MCP: "mcp_tool",
    Protocol.A2A: "a2a_agent",
    Protocol.TCP: "tcp",
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NOW_S: Final = 1_767_225_600  # 2026-01-01T00:00:00Z, a Thursday
_NOW_MAX_S: Final = 253_402_300_799  # 9999-12-31T23:59:59Z
_SCALARS: Final = {
    AttributeType.STRING: (str,),
    AttributeType.BOOL: (bool,),
    AttributeType.INT: (int,),
}


@dataclass(frozen=True, slots=True)
class RecordReader:
    """Reads mappings of one document; every fault goes to `log`, at its place."""

    document: YamlDocument
    log: FaultLog

    def fault(self, path: YamlPath, message: str) -> None:
        """Note what is wrong with the value at `path`."""
        self.log.add(self.document.fault(path, message))

    def mapping(
        self, value: YamlValue, path: YamlPath, known: Sequence[str]
    ) -> dict[str, YamlValue]:
        """Return the members of `value` that are among `known`; every other is a fault."""
        if not isinstance(value, dict):
            self.fault(path, f"expected a mapping of {', '.join(known)}")
            return {}
        for key in value:
            if key not in known:
                message = f"unknown key `{key}`{did_you_mean(key, known)}"
                self.log.add(self.document.key_fault((*path, key), message))
        return {key: part for key, part in value.items() if key in known}

    def texts(self, value: YamlValue, path: YamlPath) -> tuple[str, ...]:
        """Return a list of texts."""
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(map(str, value))
        self.fault(path, "expected a list of texts")
        return ()

    def record(
        self, token: str, value: YamlValue, path: YamlPath, *, without: Sequence[str] = ()
    ) -> Given:
        """Return the attributes given of the record `token`, but for those `without`."""
        schema = SCHEMA[token]
        given = self.mapping(value, path, [name for name in schema if name not in without])
        typed = {
            name: self._value(schema[name], part, (*path, name))
            for name, part in given.items()
            if part is not None
        }
        return {name: value for name, value in typed.items() if value is not None}

    def _value(self, spec: AttributeSpec, value: YamlValue, path: YamlPath) -> object:
        """Return one attribute's value; None for one that is at fault."""
        kind = spec.type
        if kind in {AttributeType.SET, AttributeType.LIST}:
            texts = self.texts(value, path)
            return frozenset(texts) if kind is AttributeType.SET else texts
        if kind is AttributeType.MAP:
            return self._map(value, path)
        if type(value) not in _SCALARS[kind]:
            self.fault(path, f"expected {kind.value}")
            return None
        if spec.choices and value not in spec.choices:
            hint = did_you_mean(str(value), spec.choices)
            self.fault(path, f"expected one of {', '.join(sorted(spec.choices))}{hint}")
            return None
        return value

    def _map(self, value: YamlValue, path: YamlPath) -> dict[str, object]:
        """Return the values of a map by name. One of `args` may be a list: it becomes a tuple."""
        parts: dict[str, object] | None = dict(value) if isinstance(value, dict) else None
        if parts is not None and path[-1] == "args":
            parts = {name: _as_argument(part) for name, part in parts.items()}
        if parts is None or any(isinstance(part, list | dict) for part in parts.values()):
            self.fault(path, "expected a mapping of names to single values")
            return {}
        return parts


def _as_argument(value: object) -> object:
    """Return a list of single values as a rule reads it (`core.arguments.attribute_value`)."""
    if not isinstance(value, list) or any(isinstance(item, list | dict) for item in value):
        return value
    return tuple(value)


def party_of(given: Given, role: Role) -> PartyAttributes:
    """Return a party with at least the attributes given."""
    defaults: Given = {"id": "", "kind": None, "role": role.value}
    try:
        spiffe_id = SpiffeId.parse(str(given.get("id", "")))
    except InvalidValueError:
        pass  # a human's name, or none that matters: it has neither trust domain nor path
    else:
        defaults |= {"trust_domain": spiffe_id.trust_domain.name, "path": spiffe_id.path}
    return PartyAttributes(**(defaults | given))


def chain_of(given: Given | None) -> ChainAttributes:
    """Return a delegation chain with the attributes given; None for no chain."""
    if given is None:
        return ChainAttributes(present=False)
    actors = given.get("actors", ())
    defaults: Given = {
        "present": True,
        "assurance": "hop_signed",
        "mode": "exercise",
        "depth": len(actors),
        "leaf": actors[-1] if actors else None,
    }
    return ChainAttributes(**(defaults | given))


def action_of(given: Given) -> ActionAttributes:
    """Return an action; a `GET` over HTTP unless given."""
    protocol, name = given.get("protocol", Protocol.HTTP.value), given.get("name", "GET")
    is_read = protocol == Protocol.HTTP and name in _SAFE_METHODS
    defaults: Given = {"protocol": protocol, "name": name, "read_only": is_read}
    return ActionAttributes(**(defaults | given))


def object_of(given: Given, act: ActionAttributes) -> ObjectAttributes:
    """Return what `act` is done to; its type follows the protocol unless given."""
    defaults: Given = {"type": _TYPES.get(act.protocol, "http")}
    path = given.get("path")
    if path is not None:
        defaults["segments"] = tuple(path[1:].split("/")) if len(path) > 1 else ()
    return ObjectAttributes(**(defaults | given))


def environment_of(given: Given, *, domain: str, bundle: str) -> EnvironmentAttributes:
    """Return the circumstances of a request that `bundle` judges."""
    # Beyond what a datetime holds only the seconds themselves are of use.
    now = _EPOCH + timedelta(seconds=min(max(given.get("now", _NOW_S), 0), _NOW_MAX_S))
    defaults: Given = {
        "now": int(now.timestamp()),
        "hour_utc": now.hour,
        "weekday": now.isoweekday(),
        "source_ip": None,
        "listener": None,
        "domain": domain,
        "bundle": bundle,
        "sni": None,
    }
    return EnvironmentAttributes(**(defaults | given))
