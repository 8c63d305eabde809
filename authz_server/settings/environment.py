"""Overrides from the environment: `AUTHZ_LEDGER__MODE=off` sets `ledger.mode`.

The name is `AUTHZ_` and the path in the configuration, its parts joined by two underscores. The
value is text; one that begins with `[` or `{` is a list or a mapping in JSON. Unlike
pydantic-settings this keeps which variable set what, reports every fault at once, and refuses a
variable that sets nothing instead of overlooking a misspelt one.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Self

from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.suggestion import did_you_mean
from authz_server.core.yaml_document import Path, YamlDocument, YamlValue

PREFIX: Final = "AUTHZ_"
CONFIG_VARIABLE: Final = "AUTHZ_CONFIG"  # where the file is; read by the command line, not here
_SEPARATOR: Final = "__"
_DEPTH_MAX: Final = 8  # twice what the configuration needs; bounds the recursion below

# Kubernetes gives every pod variables for each Service of its namespace; those of a Service named
# `authz` or `authz-…` begin like ours and are not meant for us.
_SERVICE_LINK = re.compile(
    r"AUTHZ_([A-Z0-9]+_)*"
    r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9]+)*|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What the environment sets: variable and value by path, outermost path first."""

    values: Mapping[Path, tuple[str, YamlValue]]

    @classmethod
    def read(cls, environ: Mapping[str, str], known: Collection[str]) -> Self:
        """Return the overrides in `environ`. `known` are the names that set something.

        A variable below a known one is taken as it is: the model refuses a wrong key. Raises
        `ConfigurationError` with every unknown variable and every malformed value.
        """
        values: dict[Path, tuple[str, YamlValue]] = {}
        faults: list[Fault] = []
        for name in sorted(environ):
            if not name.startswith(PREFIX) or name == CONFIG_VARIABLE:
                continue
            if _SERVICE_LINK.fullmatch(name):
                continue
            if name.partition(_SEPARATOR)[0] not in known or name.count(_SEPARATOR) > _DEPTH_MAX:
                hint = did_you_mean(name, known, likeness=0.85)
                faults.append(Fault(file=name, message=f"sets no key of the configuration{hint}"))
                continue
            try:
                path = tuple(name.removeprefix(PREFIX).lower().split(_SEPARATOR))
                values[path] = (name, _value(environ[name], name))
            except ConfigurationError as error:
                faults.extend(error.faults)
        if faults:
            raise ConfigurationError(faults)
        return cls(values=dict(sorted(values.items(), key=lambda item: len(item[0]))))

    def over(self, value: YamlValue) -> YamlValue:
        """Return `value` with the overrides laid over it; mappings merge, all else is replaced."""
        for path, (_, override) in self.values.items():
            value = _set(value, path, override)
        return value

    def variable(self, path: Path, below: YamlValue) -> str | None:
        """Return the variable that set the value at `path`, or None. `below` is what it is over."""
        for override, (name, value) in reversed(tuple(self.values.items())):
            if path[: len(override)] == override and found_at(value, path[len(override) :]):
                return name
            # `AUTHZ_A__B` makes a mapping of `a` where the file has something else.
            replaced = found_at(below, path)
            if override[: len(path)] == path and replaced and not isinstance(replaced[0], dict):
                return name
        return None


def variable_name(path: Path) -> str:
    """Return the name of the variable that sets `path`."""
    return PREFIX + _SEPARATOR.join(str(part).upper() for part in path)


def _value(text: str, name: str) -> YamlValue:
    if text.startswith(("[", "{")):
        return YamlDocument.parse(text.encode(), file=name).value  # JSON is a subset of YAML
    return text


def _set(value: YamlValue, path: Path, override: YamlValue) -> YamlValue:
    if path:
        below = value if isinstance(value, dict) else {}
        key = str(path[0])
        return below | {key: _set(below.get(key), path[1:], override)}
    if isinstance(value, dict) and isinstance(override, dict):
        for key, inner in override.items():
            value = _set(value, (key,), inner)
        return value
    return override


def found_at(value: YamlValue, path: Path) -> tuple[YamlValue, ...]:
    """Return the part of `value` at `path`, or an empty tuple where there is none."""
    found: tuple[YamlValue, ...] = (value,)
    for part in path:
        value = found[0]
        if isinstance(value, dict) and isinstance(part, str) and part in value:
            found = (value[part],)
        elif isinstance(value, list) and isinstance(part, int):
            found = tuple(value[part : part + 1])
        else:
            found = ()
        if not found:
            break
    return found
