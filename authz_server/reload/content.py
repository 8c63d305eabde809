"""The files that a snapshot is made of: which they are, where they change, and their digest."""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from authz_server.settings import Settings


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One state of the files.

    Equal `content` means equal names and bytes. Equal `versions` means, besides, that no file was
    replaced or written in between: the same inodes with the same times.
    """

    content: str  # hex SHA-256
    versions: str  # hex SHA-256


def fingerprint(settings: Settings) -> Fingerprint:
    """Read every file that `settings` names, and those of every bundle, and return the digests.

    Never raises: a file that is missing or unreadable is part of the state.
    """
    content, versions = hashlib.sha256(), hashlib.sha256()
    for path in _entries(settings):
        content.update(repr((str(path), _digest(path))).encode())
        versions.update(repr((str(path), _version(path))).encode())
    versions.update(content.digest())
    return Fingerprint(content.hexdigest(), versions.hexdigest())


def identity_files(settings: Settings) -> tuple[Path, ...]:
    """Return the inventory, trust bundle and JWKS files."""
    found = [path for paths in settings.identity.trust_bundles.files.values() for path in paths]
    if settings.identity.inventory is not None:
        found.append(settings.identity.inventory)
    found.extend(i.jwks_file for i in settings.delegation.issuers if i.jwks_file is not None)
    return tuple(dict.fromkeys(found))


def watched_directories(settings: Settings) -> frozenset[tuple[Path, int, int]]:
    """Return each directory in which a change can be seen, with its device and inode.

    A symlinked file is watched at both ends. The inode tells a directory that was replaced under
    its name, whose old watch would stay silent for ever.
    """
    root = settings.bundles.dir
    directories = {root.parent, root, *_bundle_directories(root)}
    for path in identity_files(settings):
        directories |= {path.parent, _real(path).parent}
    found = set()
    for directory in directories:
        status = _status(directory)
        if status is not None and stat.S_ISDIR(status.st_mode):
            found.add((directory, status.st_dev, status.st_ino))
    return frozenset(found)


def concerns(settings: Settings, changed: Path) -> bool:
    """Tell whether a change of `changed`, in a watched directory, may be one of ours.

    The ledger lies beside the configuration by default; its writes must not wake us.
    """
    root = settings.bundles.dir
    if changed.is_relative_to(root) or changed.is_relative_to(_real(root)):
        return True
    # `..data` of a mounted ConfigMap or Secret, which the files in it are links through.
    names = {name for p in identity_files(settings) for name in (p.name, _real(p).name)}
    return changed.name.startswith("..") or changed.name in names


def _entries(settings: Settings) -> Iterator[Path]:
    yield from identity_files(settings)
    for directory in _bundle_directories(settings.bundles.dir):
        yield directory
        yield from _listing(directory)


def _bundle_directories(root: Path) -> tuple[Path, ...]:
    return tuple(path for path in _listing(root) if _is_directory(_status(path)))


def _listing(directory: Path) -> tuple[Path, ...]:
    """Return what lies in `directory`, by name, without names that begin with a dot.

    Kubernetes keeps the versions of a mounted ConfigMap in `..<time>` and points `..data` at one.
    """
    try:
        return tuple(sorted(p for p in directory.iterdir() if not p.name.startswith(".")))
    except OSError:
        return ()


def _is_directory(status: os.stat_result | None) -> bool:
    return status is not None and stat.S_ISDIR(status.st_mode)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # follows what exists and keeps the rest


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _version(path: Path) -> tuple[int, ...] | None:
    status = _status(path)
    if status is None:
        return None
    # The status-change time moves with every write and rename, and cannot be set back by a copy.
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _digest(path: Path) -> str:
    status = _status(path)
    if status is None or not stat.S_ISREG(status.st_mode):
        return "" if status is None else f"type {stat.S_IFMT(status.st_mode)}"
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"error {error.errno}"
