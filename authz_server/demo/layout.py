"""Where the files of one mesh are."""

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from authz_server.demo.mesh_client import ServiceDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The directory tree of one mesh.

    `sockets` is apart from `root` because a socket's path may have 107 bytes and a kept directory
    any length. `loopback` is an address of 127.0.0.0/8 that this mesh has to itself, so that fixed
    ports need not be searched for, and cannot be taken by anyone in between.
    """

    root: Path
    sockets: Path
    loopback: str

    @property
    def logs(self) -> Path:
        """One log for each process."""
        return self.root / "logs"

    @property
    def pdp(self) -> Path:
        """The PDP's configuration, policy bundles, keys and ledger."""
        return self.root / "pdp"

    @property
    def configuration(self) -> Path:
        """The configuration file of the first PDP, or the only one."""
        return self.replica_configuration(0)

    def replica_configuration(self, replica: int) -> Path:
        """Return the configuration file of one of several equal PDPs, counted from 0."""
        return self.pdp / ("authz.yaml" if replica == 0 else f"authz-{replica + 1}.yaml")

    @property
    def bundles(self) -> Path:
        """The policy bundles that the PDP watches."""
        return self.pdp / "bundles"

    @property
    def ledger(self) -> Path:
        """The PDP's ledger."""
        return self.pdp / "authz.db"

    @property
    def services(self) -> ServiceDirectory:
        """Where every service can be found."""
        return ServiceDirectory(self.root / "services.json")

    def svid(self, workload: str) -> Path:
        """Return the directory with the SVID of the workload at path `workload`."""
        return self.root / "svid" / workload.strip("/").replace("/", "-")

    def envoy(self, name: str) -> Path:
        """Return the bootstrap of the Envoy in front of service `name`."""
        return self.root / "envoy" / f"{name}.json"

    def admin(self, name: str) -> Path:
        """Return the socket of the admin interface of the Envoy `name`."""
        return self.socket(f"admin-{name}")

    def access_log(self, name: str) -> Path:
        """Return the access log of the Envoy in front of service `name`."""
        return self.logs / f"envoy-{name}.access.jsonl"

    def journal(self, name: str) -> Path:
        """Return the journal of what reached service `name`."""
        return self.root / "journal" / f"{name}.jsonl"

    def socket(self, name: str) -> Path:
        """Return the path of a socket."""
        return self.sockets / f"{name}.sock"


@contextmanager
def make_layout(root: Path) -> Iterator[Layout]:
    """Make the tree below `root`, which may exist; the sockets are removed at the end."""
    for name in ("logs", "pdp", "svid", "envoy", "journal"):
        (root / name).mkdir(parents=True, exist_ok=True)
    # SECURITY: made with mode 0700. A service behind Envoy has no check of its own.
    sockets = Path(tempfile.mkdtemp(prefix="authz-mesh-"))
    chosen = random.SystemRandom()
    loopback = f"127.{chosen.randint(1, 254)}.{chosen.randint(0, 255)}.{chosen.randint(1, 254)}"
    try:
        yield Layout(root=root, sockets=sockets, loopback=loopback)
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
