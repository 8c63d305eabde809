"""Fuzz one target with atheris, from freshly minted seeds.

python fuzz/run.py TARGET [-max_total_time=60 …any option of libFuzzer]
"""

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["authz_server"]):
    from fuzz.corpus import write
    from fuzz.targets import TARGETS


def main(arguments: list[str]) -> None:
    """Fuzz until libFuzzer ends; a finding goes to the working directory, and exits non-zero."""
    name, *options = arguments
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        write(Path(directory))
        corpus = str(Path(directory) / name)
        atheris.Setup([sys.argv[0], *options, corpus], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
