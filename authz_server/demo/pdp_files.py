"""Write everything the PDP reads: configuration, inventory, keys and policy bundles."""

import shutil
from collections.abc import Mapping

import yaml

from authz_server.demo.layout import Layout
from authz_server.demo.plan import MeshPlan, Party

HTTP_PORT = 9192


def write_pdp_files(
    layout: Layout,
    plan: MeshPlan,
    *,
    identity: Mapping[str, object],
    issuer: str,
    jwks: str,
) -> None:
    """Write the files below `layout.pdp`.

    `identity` has `grpc` (where to listen), `tls` and `trust_bundles`, as the configuration has
    them; `issuer` may mint root grants, with a
    key in its JWK Set `jwks`.
    """
    (layout.pdp / "sts.jwks.json").write_text(jwks)
    (layout.pdp / "identities.yaml").write_text(
        yaml.safe_dump({"identities": [_entry(party) for party in plan.parties]}, sort_keys=False)
    )
    shutil.copytree(plan.bundles, layout.bundles, dirs_exist_ok=True)
    layout.configuration.write_text(
        yaml.safe_dump(_configuration(layout, plan, identity, issuer), sort_keys=False)
    )


def _configuration(
    layout: Layout, plan: MeshPlan, identity: Mapping[str, object], issuer: str
) -> dict[str, object]:
    return {
        "trust_domain": str(plan.trust_domain),
        "tls": identity["tls"],
        "listen": {
            "grpc": identity["grpc"],
            "http": f"{layout.loopback}:{HTTP_PORT}",
        },
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
        "ledger": {"url": "sqlite:///authz.db", "mode": "durable"},
        "approvals": {
            "ttl_s": 900,
            "groups": {group: list(people) for group, people in plan.approvers.items()},
        },
    }


def _entry(party: Party) -> dict[str, object]:
    optional = {"owner": party.owner, "purpose": party.purpose, "labels": dict(party.labels)}
    return {"id": party.id, "kind": str(party.kind)} | {k: v for k, v in optional.items() if v}
