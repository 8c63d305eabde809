"""The mesh with an enforcement point of every kind, and who takes part in it."""

from pathlib import Path
from typing import Final

from authz_server.core.attributes import Kind, Protocol
from authz_server.demo.cast import ALICE, ASSISTANT, BOB, CRM, DATA, DOMAIN, SHADOW
from authz_server.demo.plan import MeshPlan, Party, Service

FLEET: Final = Service(
    name="fleet",
    module="authz_server.demo.services.fleet",
    workload="/service/fleet",
    host="fleet.demo.example.org",
    protocol=Protocol.GRPC,
    bundle="infrastructure",
    resource="fleet",
    labels={"stage": "production"},
)


def everywhere_plan(bundles: Path, *, replicas: int = 1, ledger: str | None = None) -> MeshPlan:
    """Return the mesh, with the policy bundles in directory `bundles`."""
    return MeshPlan(
        trust_domain=DOMAIN,
        services=(CRM, FLEET, DATA),
        parties=(
            Party(
                id=DOMAIN.uri + ASSISTANT,
                kind=Kind.AGENT,
                owner="team-support",
                purpose="answers support cases",
            ),
            Party(id=DOMAIN.uri + CRM.workload, kind=Kind.TOOL, owner="team-crm"),
            Party(id=DOMAIN.uri + FLEET.workload, kind=Kind.SERVICE, owner="team-platform"),
            Party(id=DOMAIN.uri + DATA.workload, kind=Kind.SERVICE, owner="team-data"),
            Party(id=ALICE, kind=Kind.HUMAN, labels={"department": "support"}),
            Party(id=BOB, kind=Kind.HUMAN, labels={"department": "support"}),
        ),
        callers=(ASSISTANT, SHADOW),
        bundles=bundles,
        approvers={"support-leads": (ALICE, BOB), "platform-oncall": (BOB,)},
        replicas=replicas,
        ledger=ledger,
    )
