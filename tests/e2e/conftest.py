"""One mesh for all attack tests of a worker."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.attack_mesh import Mesh, running_mesh
from tests.e2e.check_requests import PdpClient


@pytest.fixture(scope="session")
def mesh() -> Iterator[Mesh]:
    """A PDP, a hardened and a default Envoy, and a workload. Read-only: tests share it."""
    # Not `tmp_path`: the path of a Unix socket holds 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="authz-") as directory,
        running_mesh(Path(directory)) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def pdp(mesh: Mesh) -> Iterator[PdpClient]:
    """A client that speaks to the PDP as an Envoy does."""
    client = PdpClient(str(mesh.pdp_address))
    yield client
    client.close()
