"""The fuzz targets hold: over seeds bent in every simple way, and under atheris for a while."""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.corpus import seeds
from fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
SECONDS = 60
BENT_MAX = 400  # for each seed


def bent(seed: bytes, chance: random.Random) -> bytes:
    """Return the seed with something cut, doubled, swapped or changed."""
    start = chance.randrange(len(seed) + 1)
    end = min(len(seed), start + chance.choice((1, 2, 16, 256)))
    piece = chance.choice(
        (b"", seed[start:end] * 2, bytes(reversed(seed[start:end])), bytes([chance.randrange(256)]))
    )
    return seed[:start] + piece + seed[end:]


def test_every_target_has_seeds() -> None:
    assert seeds().keys() == TARGETS.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_is_near_them(name: str) -> None:
    chance = random.Random(name)
    for seed in seeds()[name]:
        TARGETS[name](seed)
        for _ in range(BENT_MAX):
            TARGETS[name](bent(seed, chance))


@pytest.mark.deep
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed: `.venv/bin/pip install atheris` (Linux on x86-64)",
)
@pytest.mark.parametrize("name", TARGETS)
def test_atheris_finds_nothing(name: str, tmp_path: Path) -> None:
    argv = [sys.executable, ROOT / "fuzz/run.py", name, f"-max_total_time={SECONDS}"]
    result = subprocess.run(
        [*map(str, argv), "-rss_limit_mb=2048", "-timeout=10", "-max_len=65536"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "Done" in result.stderr
