"""The blocks of docs/walkthrough.md work as printed, in their order, in one shell."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.bench.processes import free_port

PAGE: Final = Path(__file__).parents[2] / "docs" / "walkthrough.md"
_PORTS: Final = ("8443", "9192", "8080")


def script() -> str:
    """Return every block but that of the installation, with ports that are free here."""
    install, *blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert "pip install" in install
    text = "set -eu\n" + "\n".join(blocks)
    for port in _PORTS:
        text = text.replace(port, str(free_port()))
    return text


@pytest.mark.deep
def test_every_block_works_as_printed(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    output = tmp_path / "output"
    with output.open("w") as file:
        shell = subprocess.Popen(
            ["bash", "-c", script()],
            cwd=tmp_path,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = shell.wait(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)  # whatever a failed block left behind
    said = output.read_text()
    assert status == 0, said
    expected = (
        '{"order": 7}', "DENIED_BY_RULE", "ESCALATED_BY_RULE", "approved by bob@example.org",
        "x-authz-verdict: deny", "x-authz-mode: shadow", "deny (shadow)",
    )  # fmt: skip
    at = 0
    for part in expected:  # one after the other
        at = said.find(part, at)
        assert at >= 0, f"{part!r} is missing:\n{said}"
