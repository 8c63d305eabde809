"""The demonstration with a real SPIRE: the same story, no identity of which is issued by us."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.spire.programs import spire_or_skip

pytestmark = [pytest.mark.deep, pytest.mark.xdist_group("demo")]


def test_everything_comes_out_as_it_must(tmp_path: Path) -> None:
    programs = spire_or_skip()
    keep = tmp_path / "kept"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "authz_server", "demo", "--spire"),
            *("--output", "json", "--keep", str(keep)),
        ],
        env=os.environ | {"PATH": f"{programs.server.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert [step for step in report["steps"] if not step["as_expected"]] == []
    configuration = (keep / "pdp" / "authz.yaml").read_text()
    assert "source: workload_api" in configuration
    assert not (keep / "pdp" / "trust.pem").exists()
