"""Find the programs of SPIRE: on the search path, or where `make spire` puts what it builds."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from authz_server.core.errors import AuthzError


class SpireMissingError(AuthzError):
    """SPIRE is not on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpirePrograms:
    """The two programs of one SPIRE release."""

    server: Path
    agent: Path

    @classmethod
    def below(cls, directory: Path) -> "SpirePrograms":
        """Return the programs in `directory`, which may not exist."""
        return cls(server=directory / "spire-server", agent=directory / "spire-agent")

    @property
    def exist(self) -> bool:
        """Whether both can be run."""
        return all(os.access(program, os.X_OK) for program in (self.server, self.agent))


def build_cache() -> Path:
    """Return the directory below which `make spire` keeps what it builds, one for each release."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "authz-server" / "spire"


def find_spire() -> SpirePrograms:
    """Return the programs on the search path, or the newest that were built.

    Raises `SpireMissingError`.
    """
    server, agent = shutil.which("spire-server"), shutil.which("spire-agent")
    if server and agent:
        return SpirePrograms(server=Path(server), agent=Path(agent))
    built = [SpirePrograms.below(path) for path in build_cache().glob("*")]
    built = [programs for programs in built if programs.exist]
    if not built:
        raise SpireMissingError(
            "`spire-server` and `spire-agent` are not on the search path: install SPIRE, "
            "or run `make spire` in a checkout (it needs Go)"
        )
    return max(built, key=lambda programs: programs.server.stat().st_mtime)
