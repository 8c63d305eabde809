"""Ask the real Envoy whether it accepts a configuration."""

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from authz_server.core.errors import AuthzError
from authz_server.envoy_config.binary import envoy_binary

_TIMEOUT_S: Final = 60.0  # it takes a fraction of a second; a busy machine may need more

# Envoy accepts a field that it is about to drop, and warns. It fails here, and not at the upgrade.
_DEPRECATED: Final = "Deprecated field"


class ValidationFailedError(AuthzError):
    """Envoy could not be asked: it cannot be run, or did not end in time."""


def complaints(bootstrap: str) -> str:
    """Return what Envoy has against `bootstrap` (JSON or YAML); empty when it accepts it.

    Unknown and deprecated fields count. Envoy reads the files that the configuration names. Raises
    `EnvoyMissingError`, and `ValidationFailedError`.
    """
    with tempfile.TemporaryDirectory(prefix="envoy-") as directory:
        path = Path(directory) / "bootstrap.yaml"  # JSON is YAML, too
        path.write_text(bootstrap)
        binary = str(envoy_binary())
        argv = [binary, "--mode", "validate", "--config-path", str(path)]
        argv += ["--log-level", "warning", "--log-format", "%v"]
        try:
            done = subprocess.run(  # noqa: S603 - the operator's own Envoy
                argv, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise ValidationFailedError("Envoy did not end while it validated") from error
        except OSError as error:
            raise ValidationFailedError(f"cannot run `{binary}`: {error.strerror}") from error
    if done.returncode == 0:
        return "\n".join(line for line in done.stderr.splitlines() if _DEPRECATED in line)
    return done.stderr.strip() or f"Envoy ended with status {done.returncode}"
