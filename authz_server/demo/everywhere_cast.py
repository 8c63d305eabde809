"""The mesh with an enforcement point of every kind, and who takes part in it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from authz_server.core.attributes import Kind, Protocol
from authz_server.demo.cast import ALICE, ANALYST, ASSISTANT, BOB, CRM, DATA, DOMAIN, SHADOW
from authz_server.demo.plan import MeshPlan, Party, Service, WayOut

DATABASE, DATABASE_ROLE = "orders", "orders"

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
# `socket` is where the server of this run answers.
ORDERS_DB: Final = Service(
    name="orders-db",
    workload="/service/orders-db",
    host="orders-db.internal",
    protocol=Protocol.TCP,
    bundle="infrastructure",
    resource="orders-db",
    tunnels=("orders-db.internal:5432",),
)

OUTBOUND: Final = WayOut(name="outbound", workload=ASSISTANT, services=(DATA.name, ORDERS_DB.name))

_OWNERS: Final = {
    CRM.name: (Kind.TOOL, "team-crm"),
    ANALYST.name: (Kind.AGENT, "team-research"),
    FLEET.name: (Kind.SERVICE, "team-platform"),
    DATA.name: (Kind.SERVICE, "team-data"),
    ORDERS_DB.name: (Kind.SERVICE, "team-orders"),
}


def everywhere_plan(
    bundles: Path,
    *,
    database: Path | None = None,
    replicas: int = 1,
    ledger: str | None = None,
) -> MeshPlan:
    """Return the mesh, with the policy bundles in directory `bundles`.

    `database` is the socket of a PostgreSQL; without one the mesh has no TCP service.
    """
    services: tuple[Service, ...] = (CRM, ANALYST, FLEET, DATA)
    if database is not None:
        services += (replace(ORDERS_DB, socket=database),)
    return MeshPlan(
        trust_domain=DOMAIN,
        services=services,
        parties=tuple(_parties(services)),
        callers=(ASSISTANT, SHADOW),
        ways_out=(OUTBOUND,),
        bundles=bundles,
        approvers={"support-leads": (ALICE, BOB), "platform-oncall": (BOB,)},
        replicas=replicas,
        ledger=ledger,
    )


def _parties(services: tuple[Service, ...]) -> Iterator[Party]:
    yield Party(
        id=DOMAIN.uri + ASSISTANT,
        kind=Kind.AGENT,
        owner="team-support",
        purpose="answers support cases",
    )
    for service in services:
        kind, owner = _OWNERS[service.name]
        yield Party(id=DOMAIN.uri + service.workload, kind=kind, owner=owner)
    for person in (ALICE, BOB):
        yield Party(id=person, kind=Kind.HUMAN, labels={"department": "support"})
