"""Meshes that the tests of a worker share: one for attacks, one with every enforcement point."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from authz_server.demo import mesh as demo_mesh
from authz_server.demo.everywhere_mesh import everywhere_mesh
from authz_server.demo.run import SHIPPED_BUNDLES
from tests.e2e import postgres_mesh
from tests.e2e.attack_mesh import Mesh, running_mesh
from tests.e2e.check_requests import PdpClient
from tests.postgres_server import postgres_server


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


@pytest.fixture(scope="session")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[demo_mesh.Mesh]:
    """An enforcement point of every kind, real services behind them, one PDP."""
    with everywhere_mesh(tmp_path_factory.mktemp("everywhere"), SHIPPED_BUNDLES) as running:
        yield running.mesh


@pytest.fixture(scope="session")
def postgres_site() -> Iterator[postgres_mesh.Site]:
    """PostgreSQL behind an Envoy, another Envoy beside its clients, a PDP. Tests share it."""
    # A connection that is closed again at once is in PostgreSQL's log too.
    with (
        postgres_server({"log_connections": "on"}) as postgres,
        tempfile.TemporaryDirectory(prefix="authz-") as directory,
        postgres_mesh.running_site(Path(directory), postgres) as site,
    ):
        yield site
