"""A file read once: what is parsed and what is digested are the same bytes."""

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from authz_server.core.errors import ConfigurationError, Fault


@dataclass(frozen=True, slots=True)
class FileContent:
    """The bytes of one file, read in one go."""

    path: Path
    data: bytes

    @classmethod
    def read(cls, path: Path, *, bytes_max: int) -> Self:
        """Read `path`. Raises `ConfigurationError` if it cannot be read or is too long."""
        try:
            with open(path, "rb", opener=_open_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise _unusable(path, "is not a regular file")
                data = file.read(bytes_max + 1)
        except OSError as error:
            raise _unusable(path, f"cannot be read: {error.strerror}") from error
        if len(data) > bytes_max:
            raise _unusable(path, f"is longer than {bytes_max} bytes")
        return cls(path, data)

    @property
    def sha256(self) -> str:
        """Hex digest of the content."""
        return hashlib.sha256(self.data).hexdigest()

    def fault(self, message: str) -> Fault:
        """Return a fault of the file as a whole."""
        return Fault(file=str(self.path), message=message)


def read_all(paths: Iterable[Path], *, bytes_max: int) -> tuple[FileContent, ...]:
    """Read every one of `paths`. Raises `ConfigurationError` with a fault for each that failed."""
    files: list[FileContent] = []
    faults: list[Fault] = []
    for path in paths:
        try:
            files.append(FileContent.read(path, bytes_max=bytes_max))
        except ConfigurationError as error:
            faults.extend(error.faults)
    if faults:
        raise ConfigurationError(faults)
    return tuple(files)


def _open_at_once(path: str, flags: int) -> int:
    # A named pipe that nobody writes to would hold up this reload and all later ones.
    return os.open(path, flags | os.O_NONBLOCK)


def _unusable(path: Path, message: str) -> ConfigurationError:
    return ConfigurationError([Fault(file=str(path), message=message)])
