"""Documentation that repeats the code is held to it: complete, current, and without dead links."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from authz_server.core.errors import Reason

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_every_reason_code_is_explained_once() -> None:
    rows = re.findall(
        r"^\| `([A-Z_]+)`[ ‡]*\| (.+?) \| (.+?) \|$",
        (ROOT / "docs/reason-codes.md").read_text("utf-8"),
        re.MULTILINE,
    )
    assert sorted(code for code, _, _ in rows) == sorted(Reason)


def test_generated_pages_are_current() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "docs/generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    targets = [link.partition("#")[0] for link in links if "://" not in link]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize(
    "name", re.findall(r"`([A-Z][A-Z_]{3,})`", (ROOT / "docs/delegation.md").read_text("utf-8"))
)
def test_delegation_page_names_only_real_reason_codes(name: str) -> None:
    assert name in set(Reason)
