"""Read the configuration file and the environment into `Settings`, or say all that is wrong."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.yaml_document import YamlDocument
from authz_server.settings.environment import Overrides, variable_name
from authz_server.settings.faults import faults_of, leaves
from authz_server.settings.model import Settings
from authz_server.settings.values import BASE_DIRECTORY

CONFIGURATION_BYTES_MAX: Final = 1024 * 1024  # a hundred times the longest one imaginable


def load_settings(path: Path) -> Settings:
    """Return the configuration in the YAML file `path`, with `AUTHZ_` variables laid over it.

    Relative paths, in the file and in variables, are relative to the file's directory. Raises
    `ConfigurationError` with every fault at once; one in a variable has the variable's name in
    place of a file. Whether the files that the configuration names exist is not checked here.
    """
    faults: list[Fault] = []
    document, overrides = None, None
    try:
        document = YamlDocument.parse(read_bounded(path), file=str(path))
        if not isinstance(document.value, dict | None):
            faults.append(document.fault((), "configuration must be a mapping"))
    except ConfigurationError as error:
        faults.extend(error.faults)
    try:
        overrides = Overrides.read(os.environ, frozenset(_variables()))
    except ConfigurationError as error:
        faults.extend(error.faults)
    if faults or document is None or overrides is None:
        raise ConfigurationError(faults)
    return _validated(path, document, overrides)


def _validated(path: Path, document: YamlDocument, overrides: Overrides) -> Settings:
    value = overrides.over(document.value or {})
    try:
        return Settings.model_validate(value, context={BASE_DIRECTORY: path.absolute().parent})
    except ValidationError as error:
        faults = faults_of(error, Settings, document, overrides)
        in_order = sorted(faults, key=lambda fault: (fault.file, fault.line, fault.column))
        raise ConfigurationError(in_order) from error


def read_bounded(path: Path) -> bytes:
    """Return the bytes of a configuration file.

    Raises `ConfigurationError` if it cannot be read or is larger than any of them has to be.
    """
    try:
        with path.open("rb") as file:
            data = file.read(CONFIGURATION_BYTES_MAX + 1)
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise ConfigurationError([Fault(file=str(path), message=message)]) from error
    if len(data) > CONFIGURATION_BYTES_MAX:
        message = f"is larger than {CONFIGURATION_BYTES_MAX} bytes"
        raise ConfigurationError([Fault(file=str(path), message=message)])
    return data


def _variables() -> Iterator[str]:
    for path in leaves(Settings):
        for length in range(1, len(path) + 1):
            yield variable_name(path[:length])
