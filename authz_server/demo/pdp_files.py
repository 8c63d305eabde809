"""Write everything the PDP reads: configuration, inventory, keys and policy bundles."""

import shutil
from collections.abc import Mapping, Sequence

import yaml

from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.demo.layout import Layout
from authz_server.demo.plan import MeshPlan, Party
from authz_server.settings.addresses import GrpcAddress, TcpAddress

_HTTP_PORT = 9192
PORT_STEP = 10  # between the ports of one replica and the next


def write_pdp_files(
    layout: Layout,
    plan: MeshPlan,
    *,
    listen: Sequence[GrpcAddress],
    identity: Mapping[str, object],
    issuer: DevelopmentIssuer,
) -> None:
    """Write the files below `layout.pdp`.

    `listen` is where each replica answers Envoys. `identity` has `tls` and `trust_bundles`, as the
    configuration has them; `issuer` may mint root grants.
    """
    (layout.pdp / "sts.jwks.json").write_text(issuer.jwks())
    (layout.pdp / "identities.yaml").write_text(
        yaml.safe_dump({"identities": [_entry(party) for party in plan.parties]}, sort_keys=False)
    )
    shutil.copytree(plan.bundles, layout.bundles, dirs_exist_ok=True)
    for replica, grpc in enumerate(listen):
        configuration = _configuration(plan, identity, issuer.issuer) | {
            "listen": {"grpc": str(grpc), "http": str(http_address(layout, replica))},
            "ledger": _ledger(plan, replica),
        }
        layout.replica_configuration(replica).write_text(
            yaml.safe_dump(configuration, sort_keys=False)
        )


def http_address(layout: Layout, replica: int) -> TcpAddress:
    """Return where replica number `replica`, from 0, serves health and metrics."""
    return TcpAddress(layout.loopback, _HTTP_PORT + PORT_STEP * replica)


def _ledger(plan: MeshPlan, replica: int) -> dict[str, object]:
    if plan.ledger is None:
        return {"url": "sqlite:///authz.db", "mode": "durable"}
    return {"url": plan.ledger, "outbox": f"outbox-{replica + 1}.db", "mode": "durable"}


def _configuration(
    plan: MeshPlan, identity: Mapping[str, object], issuer: str
) -> dict[str, object]:
    return {
        "trust_domain": str(plan.trust_domain),
        "tls": identity["tls"],
        "identity": {
            "trust_bundles": identity["trust_bundles"],
            "inventory": "identities.yaml",
            "unregistered": "deny",
        },
        "delegation": {
            "issuers": [
                {
                    "issuer": issuer,
                    "jwks_file": "sts.jwks.json",
                    "algorithms": ["ES256"],
                    "max_lifetime_s": 300,
                }
            ],
            "delegator_trust_domains": [str(plan.trust_domain)],
            "require": True,
        },
        "bundles": {"dir": "bundles"},
        "approvals": {
            "ttl_s": 900,
            "groups": {group: list(people) for group, people in plan.approvers.items()},
        },
    }


def _entry(party: Party) -> dict[str, object]:
    optional = {"owner": party.owner, "purpose": party.purpose, "labels": dict(party.labels)}
    return {"id": party.id, "kind": str(party.kind)} | {k: v for k, v in optional.items() if v}
