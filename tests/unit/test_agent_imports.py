"""Importing the SDK brings no server into an agent's process, and no client library either."""

import json
import subprocess
import sys

import pytest

_LISTING = """
import json, sys
sys.path[:0] = {paths}
import {first}
before = set(sys.modules)
import {module}
after = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(after - set(sys.stdlib_module_names) - {{"authz_server"}})))
"""
# `cryptography` brings `cffi`'s back end and, on some platforms, names of its own for OpenSSL.
_LIGHT = {"cryptography", "jwt", "_cffi_backend", "_openssl"}
_INTEGRATIONS = {
    "httpx_auth": "httpx",
    "httpx2_auth": "httpx2",
    "mcp_client": "httpx2",
    "grpc_client": "grpc.aio",
    "grpc_server": "grpc.aio",
    "workload_api": "sys",  # py-spiffe is imported at first use
}


def imported_by(module: str, *, after: str = "sys") -> set[str]:
    """Return the packages that a new process needs for `module` beyond those of `after`."""
    paths = [path for path in sys.path if path]  # the same source as this process
    listing = _LISTING.format(paths=paths, first=after, module=module)
    result = subprocess.run(
        [sys.executable, "-I", "-c", listing], capture_output=True, text=True, check=True
    )
    return set(json.loads(result.stdout))


def test_the_package_needs_cryptography_and_pyjwt_alone() -> None:
    assert imported_by("authz_server.agent") <= _LIGHT


def test_the_check_would_notice() -> None:
    assert not imported_by("authz_server.settings") <= _LIGHT


@pytest.mark.parametrize(("module", "library"), _INTEGRATIONS.items())
def test_an_integration_needs_its_own_library_and_no_other(module: str, library: str) -> None:
    assert imported_by(f"authz_server.agent.{module}", after=library) <= _LIGHT
