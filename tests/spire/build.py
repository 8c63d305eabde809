"""Build SPIRE through the Go module proxy and print where its programs are.

The release is the one that `go.mod` names, its modules are checked against `go.sum`, and what was
built once is kept outside the checkout. Exit 3: there is no Go here.

    python tests/spire/build.py
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from authz_server.demo.spire_programs import SpirePrograms, build_cache

HERE = Path(__file__).parent
NO_GO = 3
_PACKAGES = ("spire-server", "spire-agent")


def target() -> Path:
    """Return the directory that belongs to these very module files."""
    digest = hashlib.sha256((HERE / "go.mod").read_bytes() + (HERE / "go.sum").read_bytes())
    return build_cache() / digest.hexdigest()[:16]


def build(directory: Path) -> None:
    """Build both programs into `directory`, which appears whole or not at all."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    packages = [f"github.com/spiffe/spire/cmd/{name}" for name in _PACKAGES]
    with tempfile.TemporaryDirectory(dir=directory.parent) as name:
        # SPIRE's SQLite needs a C compiler; without one the server would build and not start.
        environment = os.environ | {"CGO_ENABLED": "1"}
        flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w"]
        argv = ["go", "build", *flags, "-o", f"{name}/", *packages]
        subprocess.run(argv, cwd=HERE, env=environment, check=True)
        made = Path(name) / "programs"
        made.mkdir()
        for package in _PACKAGES:
            (Path(name) / package).rename(made / package)
        shutil.rmtree(directory, ignore_errors=True)
        made.rename(directory)


def main() -> int:
    """Build unless it is done."""
    directory = target()
    if not SpirePrograms.below(directory).exist:
        if shutil.which("go") is None:
            print("spire: there is no Go here; the tests with a real SPIRE will be skipped")
            return NO_GO
        print(f"spire: building into {directory} (some ten minutes, once)", flush=True)
        build(directory)
    print(f"spire: {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
