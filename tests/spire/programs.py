"""The SPIRE that the tests run, or why they cannot."""

import os
import shutil

import pytest

from authz_server.demo.spire_programs import SpirePrograms
from tests.spire.build import target


def spire_or_skip() -> SpirePrograms:
    """Return the programs that `make spire` built; skip where there are none, but never in CI."""
    programs = SpirePrograms.below(target())
    if programs.exist:
        return programs
    why = "run `make spire`" if shutil.which("go") else "there is no Go to build it with"
    if os.environ.get("CI"):
        pytest.fail(f"no SPIRE to test with: {why}")
    pytest.skip(f"no SPIRE to test with: {why}")
