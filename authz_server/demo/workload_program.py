"""A program of its own for each workload, so that SPIRE can tell processes of one account apart."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

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
