"""Who takes part in the story: people, agents, services, and the mesh they live in."""

from pathlib import Path
from typing import Final

from authz_server.core.attributes import Kind, Protocol
from authz_server.core.spiffe import TrustDomain
from authz_server.demo.plan import MeshPlan, Party, Service

DOMAIN: Final = TrustDomain.parse("demo.example.org")

ALICE, BOB = "alice@example.org", "bob@example.org"
ASSISTANT, RESEARCH = "/agent/support-assistant", "/agent/research"
BILLING, SHADOW = "/agent/billing", "/agent/shadow"  # the latter is in no inventory

CRM: Final = Service(
    name="crm",
    module="authz_server.demo.services.crm",
    workload="/tool/crm",
    host="crm.tools.demo.example.org",
    protocol=Protocol.MCP,
    bundle="tools",
    resource="crm",
)
DATA: Final = Service(
    name="data",
    module="authz_server.demo.services.data_api",
    workload="/service/data-api",
    host="data.demo.example.org",
    bundle="data",
    resource="customer-data",
)
RESEARCH_SERVICE: Final = Service(
    name="research",
    module="authz_server.demo.services.research",
    workload=RESEARCH,
    host="research.agents.demo.example.org",
    bundle="agents",
    resource="research",
)

# Not in the story: what the official A2A client is tested with, and the mesh of every kind has.
ANALYST: Final = Service(
    name="analyst",
    module="authz_server.demo.services.a2a_agent",
    workload="/agent/analyst",
    host="analyst.agents.demo.example.org",
    protocol=Protocol.A2A,
    bundle="agents",
    resource="analyst",
)


def _agent(path: str, owner: str, purpose: str) -> Party:
    return Party(id=DOMAIN.uri + path, kind=Kind.AGENT, owner=owner, purpose=purpose)


def plan(bundles: Path) -> MeshPlan:
    """Return the mesh the story is set in, with the policy bundles in directory `bundles`."""
    return MeshPlan(
        trust_domain=DOMAIN,
        services=(CRM, DATA, RESEARCH_SERVICE),
        parties=(
            _agent(ASSISTANT, "team-support", "answers support cases"),
            _agent(RESEARCH, "team-research", "looks things up for other agents"),
            _agent(BILLING, "team-finance", "sends invoices"),
            Party(id=DOMAIN.uri + CRM.workload, kind=Kind.TOOL, owner="team-crm"),
            Party(id=DOMAIN.uri + DATA.workload, kind=Kind.SERVICE, owner="team-data"),
            Party(id=ALICE, kind=Kind.HUMAN, labels={"department": "support"}),
            Party(id=BOB, kind=Kind.HUMAN, labels={"department": "support"}),
        ),
        bundles=bundles,
        # Alice is a member too: that she is asked for is no reason to let her answer herself.
        approvers={"support-leads": (ALICE, BOB)},
    )
