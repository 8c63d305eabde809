"""Build a kustomization: with `kubectl`, with `kustomize`, or with one built from its Go module.

What was built once is kept outside the checkout, like the SPIRE of the tests.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml

from authz_server.demo.spire_programs import build_cache
from k8s.checking.documents import documents
from k8s.checking.manifest import Manifest, mapping

_MODULE: Final = "sigs.k8s.io/kustomize/kustomize/v5"
_VERSION: Final = "v5.7.1"
_BUILD_TIMEOUT_S: Final = 60.0  # of one kustomization; they take tenths of a second
_INSTALL_TIMEOUT_S: Final = 900.0  # compiling kustomize on a slow machine


class KustomizeMissingError(Exception):
    """Nothing here builds kustomizations."""


class KustomizeError(Exception):
    """A kustomization does not build. The message is kustomize's own."""


def kustomize() -> tuple[str, ...]:
    """Return the command that builds the directory appended to it.

    Raises `KustomizeMissingError` where there is neither a program nor Go to make one.
    """
    for candidate in (("kubectl", "kustomize"), ("kustomize", "build")):
        if shutil.which(candidate[0]) and _runs(candidate):
            return candidate
    program = build_cache().parent / "kustomize" / _VERSION / "kustomize"
    if not program.exists():
        _install(program)
    return (str(program), "build")


def build(command: Sequence[str], directory: Path) -> tuple[Manifest, ...]:
    """Return the objects of the kustomization in `directory`. Raises `KustomizeError`."""
    ran = subprocess.run(  # noqa: S603 - a program of ours or of the path, and no shell
        [*command, str(directory)],
        capture_output=True,
        text=True,
        check=False,
        timeout=_BUILD_TIMEOUT_S,
    )
    if ran.returncode:
        raise KustomizeError(ran.stderr.strip())
    return parse(ran.stdout)


def parse(stream: str) -> tuple[Manifest, ...]:
    """Return the objects in a stream of YAML documents. Raises `KustomizeError`."""
    try:
        found = list(documents(stream))
    except yaml.YAMLError as error:
        raise KustomizeError(f"not YAML: {error}") from error
    if not all(isinstance(document, dict) for document in found):
        raise KustomizeError("a document is no object")
    return tuple(Manifest(value=mapping(document)) for document in found)


def _runs(command: tuple[str, ...]) -> bool:
    argv = [*command, "--help"]
    try:
        ran = subprocess.run(argv, capture_output=True, check=False, timeout=_BUILD_TIMEOUT_S)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ran.returncode == 0


def _install(program: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise KustomizeMissingError(
            "there is neither `kubectl`, nor `kustomize`, nor Go to build it"
        )
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as directory:
        environment = os.environ | {"GOBIN": directory, "CGO_ENABLED": "0"}
        argv = [go, "install", "-trimpath", f"{_MODULE}@{_VERSION}"]
        try:
            subprocess.run(  # noqa: S603 - Go, and a module that the checksum database knows
                argv,
                env=environment,
                check=True,
                capture_output=True,
                text=True,
                timeout=_INSTALL_TIMEOUT_S,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            why = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
            raise KustomizeMissingError(f"kustomize cannot be built here: {why}") from error
        (Path(directory) / "kustomize").replace(program)
