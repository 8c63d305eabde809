"""One PDP in a directory: trust domain, inventory, one policy bundle, configuration, requests.

Everything is minted on the spot. `PdpSite.write` makes what `authz-server serve` reads;
`check_request` makes the bytes an Envoy would send.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from authz_server.agent.delegator import Delegator
from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.agent.svid import Svid
from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.demo.authority import TrustDomainAuthority, envoy_certificate

TRUST_DOMAIN = TrustDomain.parse("site.example.org")
ISSUER = "https://sts.site.example.org"
AUDIENCE = "https://data.site.example.org"
SUBJECT = "alice@example.org"
ASSISTANT = SpiffeId.parse("spiffe://site.example.org/agent/assistant")
RESEARCH = SpiffeId.parse("spiffe://site.example.org/agent/research")

_MODEL = """\
[request_definition]
r = sub, chain, act, obj

[policy_definition]
p = id, act, path, scope, obligation, eft

[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))

[matchers]
m = r.act.name == p.act && keyMatch(r.obj.path, p.path) && p.scope in r.chain.scope
"""

# What the paths of the site mean: /open is allowed, /ask escalates, all else is denied.
RULES = (
    "p, open-read, GET, /open/*, data.read, , allow",
    "p, ask-first, GET, /ask/*, data.read, approvers, escalate",
    "p, closed, GET, /open/closed/*, data.read, , deny",
)
_BUNDLE = {
    "name": "default",
    "domain": "data",
    "description": "policy of the test site",
    "parties": ["caller"],
    "owner": "tests",
}
_INVENTORY = {
    "identities": [
        {"id": f"spiffe://{TRUST_DOMAIN}/agent/*", "kind": "agent", "owner": "team-agents"},
        {"id": SUBJECT, "kind": "human"},
    ]
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PdpSite:
    """The files of one PDP, and the keys that its callers hold."""

    directory: Path
    authority: TrustDomainAuthority
    issuer: DevelopmentIssuer
    assistant: Svid
    research: Svid

    @classmethod
    def create(cls, directory: Path, *, rules: Sequence[str] = RULES, **sections: object) -> Self:
        """Write a site below `directory`; `sections` replace those of the configuration."""
        authority = TrustDomainAuthority.create(TRUST_DOMAIN)
        site = cls(
            directory=directory,
            authority=authority,
            issuer=DevelopmentIssuer.create(issuer=ISSUER, trust_domain=TRUST_DOMAIN),
            assistant=authority.issue_svid(ASSISTANT),
            research=authority.issue_svid(RESEARCH),
        )
        site._write(rules, sections)
        return site

    @property
    def configuration(self) -> Path:
        """The configuration file."""
        return self.directory / "authz.yaml"

    @property
    def bundle(self) -> Path:
        """The directory of the one policy bundle."""
        return self.directory / "bundles" / "default"

    @property
    def ledger(self) -> Path:
        """The database of the ledger."""
        return self.directory / "state" / "authz.db"

    def chain(self, *, links: int = 1) -> Mapping[str, str]:
        """Return delegation headers: a root for the assistant, and a link to the research agent."""
        scope = ("data.read", "data.write")
        root = self.issuer.issue_root(subject=SUBJECT, actor=ASSISTANT, scope=scope, hops=links)
        if not links:
            return {"txn-token": root}
        link = Delegator(self.assistant).link(
            root, to=RESEARCH, audience=(AUDIENCE,), scope=("data.read",)
        )
        return {"txn-token": root, "delegation-chain": link}

    def check_request(
        self, path: str, *, headers: Mapping[str, str] | None = None, svid: Svid | None = None
    ) -> bytes:
        """Return the bytes of a CheckRequest: `GET path` by the research agent, with its chain."""
        request = CheckRequest()
        attributes = request.attributes
        attributes.source.address.socket_address.address = "127.0.0.1"
        attributes.source.address.socket_address.port_value = 40000
        attributes.source.certificate = envoy_certificate(svid or self.research)
        attributes.destination.address.socket_address.address = "127.0.0.1"
        attributes.destination.address.socket_address.port_value = 10443
        attributes.context_extensions["audience"] = AUDIENCE
        http = attributes.request.http
        http.id, http.protocol, http.scheme = "1", "HTTP/2", "https"
        http.method, http.path, http.host = "GET", path, "data.site.example.org"
        lines = {":method": "GET", ":path": path, ":authority": http.host, ":scheme": "https"}
        extra = self.chain() if headers is None else headers
        for name, value in {**lines, "user-agent": "tests", **extra}.items():
            http.header_map.headers.add(key=name, raw_value=value.encode())
        return request.SerializeToString()

    def write_rules(self, rules: Sequence[str]) -> None:
        """Replace the rules on disk in one step."""
        temporary = self.bundle / ".policy.csv.new"
        temporary.write_text("\n".join(rules) + "\n")
        temporary.replace(self.bundle / "policy.csv")

    def _write(self, rules: Sequence[str], sections: Mapping[str, object]) -> None:
        self.bundle.mkdir(parents=True)
        # Apart from what is watched for changes, as on a volume of its own.
        self.ledger.parent.mkdir()
        (self.bundle / "model.conf").write_text(_MODEL)
        (self.bundle / "bundle.yaml").write_text(yaml.safe_dump(_BUNDLE))
        self.write_rules(rules)
        (self.directory / "trust.pem").write_bytes(self.authority.bundle_pem)
        (self.directory / "sts.jwks.json").write_text(self.issuer.jwks())
        (self.directory / "identities.yaml").write_text(yaml.safe_dump(_INVENTORY))
        configuration = {
            "trust_domain": str(TRUST_DOMAIN),
            "listen": {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0"},
            "identity": {
                "trust_bundles": {"files": {str(TRUST_DOMAIN): "trust.pem"}},
                "inventory": "identities.yaml",
            },
            "delegation": {"issuers": [{"issuer": ISSUER, "jwks_file": "sts.jwks.json"}]},
            "bundles": {"dir": "bundles"},
            "ledger": {"url": "sqlite:///state/authz.db"},
            "approvals": {"groups": {"approvers": ["bob@example.org"]}},
        }
        self.configuration.write_text(yaml.safe_dump(configuration | dict(sections)))
