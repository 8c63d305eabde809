"""`authz-server delegation` from the outside: what it prints, writes and exits with."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from authz_server.agent.signing import sign
from authz_server.cli.main import group
from authz_server.core.jose import CompactJws, parse_jwks
from authz_server.demo.authority import TrustDomainAuthority, write_svid
from tests.harness.chains import ROOT_KEY

DOMAIN = "site.example"
STS = "https://sts.site.example"
ASSISTANT, RESEARCH = (f"spiffe://{DOMAIN}/agent/{name}" for name in ("assistant", "research"))
CRM = "https://crm.site.example"


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(group, ["delegation", *arguments], input=stdin)


def printed(*arguments: str, stdin: str = "") -> str:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a configuration, an SVID and a development issuer's key set."""
    directory = tmp_path_factory.mktemp("site")
    authority = TrustDomainAuthority.create(DOMAIN)
    (directory / "bundle.pem").write_bytes(authority.bundle_pem)
    write_svid(authority.issue_svid(ASSISTANT), directory)
    inventory = {
        "identities": [{"id": f"spiffe://{DOMAIN}/agent/*", "kind": "agent", "owner": "t"}]
    }
    (directory / "identities.yaml").write_text(yaml.safe_dump(inventory))
    bundle = directory / "bundles" / "default"
    bundle.mkdir(parents=True)
    (bundle / "bundle.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "default",
                "domain": "data",
                "description": "test",
                "parties": ["caller"],
                "owner": "t",
            }
        )
    )
    (bundle / "model.conf").write_text(
        "[request_definition]\nr = act\n[policy_definition]\np = id, act, eft\n"
        "[policy_effect]\ne = some(where (p.eft == allow)) && !some(where (p.eft == deny))\n"
        "[matchers]\nm = r.act.name == p.act\n"
    )
    (bundle / "policy.csv").write_text("p, read, GET, allow\n")
    (directory / "root.jwt").write_text(printed(*issue_arguments(directory)))
    configuration = {
        "trust_domain": DOMAIN,
        "identity": {
            "trust_bundles": {"source": "files", "files": {DOMAIN: "bundle.pem"}},
            "inventory": "identities.yaml",
        },
        "delegation": {
            "issuers": [
                {
                    "issuer": STS,
                    "jwks_file": "sts.jwks.json",
                    "algorithms": ["ES256"],
                    "max_lifetime_s": 300,
                }
            ],
            "delegator_trust_domains": [DOMAIN],
        },
        "bundles": {"dir": "bundles"},
    }
    (directory / "authz.yaml").write_text(yaml.safe_dump(configuration))
    return directory


def issue_arguments(directory: Path) -> list[str]:
    arguments = ["issue-root", "--key", str(directory / "dev.pem"), "--new-key"]
    arguments += ["--jwks", str(directory / "sts.jwks.json"), "--issuer", STS]
    arguments += ["--trust-domain", DOMAIN, "--subject", "alice@example.org"]
    return [*arguments, "--actor", ASSISTANT, "--scope", "crm.read", "--scope", "x", "--hops", "1"]


def link_arguments(directory: Path, scope: str = "crm.read") -> list[str]:
    arguments = ["link", "--svid", str(directory / "svid.pem")]
    arguments += ["--key", str(directory / "svid.key.pem"), "--to", RESEARCH]
    return [*arguments, "--audience", CRM, "--scope", scope]


def verify_arguments(directory: Path, caller: str, audience: str = CRM) -> list[str]:
    config = str(directory / "authz.yaml")
    return ["verify", "--config", config, "--caller", caller, "--audience", audience]


def test_issue_link_and_verify(site: Path) -> None:
    root = f"@{site / 'root.jwt'}"
    link = printed(*link_arguments(site), root)
    shown = printed(*verify_arguments(site, RESEARCH), root, link)
    assert "exercise, hop_signed, for alice@example.org" in shown
    assert f"{ASSISTANT} -> {RESEARCH}" in shown
    answer = json.loads(printed(*verify_arguments(site, RESEARCH), root, link, "--output", "json"))
    assert answer["verified"] is True
    assert answer["actors"] == [ASSISTANT, RESEARCH]
    assert answer["scope"] == ["crm.read"]


def test_handoff(site: Path) -> None:
    root = f"@{site / 'root.jwt'}"
    link = printed(*link_arguments(site), root)
    arguments = [*verify_arguments(site, ASSISTANT), "--workload-id", RESEARCH]
    answer = json.loads(printed(*arguments, "--output", "json", root, link))
    assert answer["mode"] == "handoff"


def test_a_chain_that_is_refused_exits_1(site: Path) -> None:
    root = (site / "root.jwt").read_text()
    result = run(*verify_arguments(site, RESEARCH), "--output", "json", root)
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert (answer["verified"], answer["reason"]) == (False, "LEAF_MISMATCH")
    result = run(*verify_arguments(site, ASSISTANT), root[:-4] + "AAAA")
    assert result.exit_code == 1
    assert "BAD_SIGNATURE" in result.stdout


def test_a_chain_is_judged_as_of_a_time(site: Path) -> None:
    root = (site / "root.jwt").read_text()
    issued = CompactJws.parse(root).payload["iat"]
    assert isinstance(issued, int)
    later = datetime.fromtimestamp(issued + 600, UTC).isoformat()
    result = run(*verify_arguments(site, ASSISTANT), "--now", later, root)
    assert (result.exit_code, "EXPIRED" in result.stdout) == (1, True)


def test_tokens_come_from_standard_input_too(site: Path) -> None:
    root = (site / "root.jwt").read_text()
    link = printed(*link_arguments(site), stdin=root)
    for text in (f"{root}\n{link}\n", f"{root}, {link}", f"{root}\r\n\t{link}"):
        printed(*verify_arguments(site, RESEARCH), "-", stdin=text)
        printed(*verify_arguments(site, RESEARCH), stdin=text)


def test_the_issuers_key_is_private_and_kept(site: Path) -> None:
    key = site / "dev.pem"
    before = key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    shown = printed(*issue_arguments(site))
    assert key.read_bytes() == before
    assert "PRIVATE" not in shown
    assert list(parse_jwks((site / "sts.jwks.json").read_bytes())) == ["dev-1"]


def test_what_cannot_be_handed_on_exits_2(site: Path) -> None:
    result = run(*link_arguments(site, scope="admin"), f"@{site / 'root.jwt'}")
    assert result.exit_code == 2
    assert "scope" in result.stderr


def test_inspect_says_loudly_that_it_verifies_nothing(site: Path) -> None:
    root = f"@{site / 'root.jwt'}"
    link = printed(*link_arguments(site), root)
    result = run("inspect", root, link)
    assert result.exit_code == 0
    assert "NOT VERIFIED" in result.stdout
    assert "nothing here is verified" in result.stderr
    assert "alice@example.org" in result.stdout
    assert link not in result.stdout
    answer = json.loads(run("inspect", "--output", "json", root, link).stdout)
    assert answer["verified"] is False
    assert answer["tokens"][1]["header"]["x5c"][0]["name"] == ASSISTANT


def test_inspect_is_not_driven_by_what_it_shows() -> None:
    header = {"alg": "ES256", "x5c": ["!", 1]}
    claims = {"sub": "\x1b[2J[bold]x\u202e", "\x1b]0;x": {"exp": 10**15, "aud": ["\n\r"]}}
    result = run("inspect", sign(header, claims, ROOT_KEY))
    assert result.exit_code == 0
    assert not {"\x1b", "\u202e", "\r"} & set(result.stdout)
    assert "[bold]x" in result.stdout
    assert "not a certificate" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "abc"],
        ["inspect", "@/nonexistent/token"],
        ["inspect", "-"],
        ["inspect", "\u00e9.\u00e9.\u00e9"],
        ["verify", "a.b.c"],
        ["verify", "--config", "/nonexistent", "--caller", ASSISTANT, "a.b.c"],
        ["verify", "--config", "x", "--caller", "alice", "a.b.c"],
        ["verify", "--config", "x", "--caller", ASSISTANT, "--now", "yesterday", "a.b.c"],
        ["verify", "--config", "x", "--caller", ASSISTANT, "--now", "2026-01-01T00:00:00", "a"],
        ["link", "a.b.c"],
        [
            "link",
            "--svid",
            "/x",
            "--key",
            "/y",
            "--to",
            RESEARCH,
            "--audience",
            "a",
            "--scope",
            "s",
        ],
        ["issue-root"],
        ["issue-root", "--trust-domain", "UPPER"],
    ],
)
def test_usage_and_unreadable_input_exit_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_missing_issuer_key_is_not_created_unasked(site: Path) -> None:
    arguments = [a for a in issue_arguments(site) if a != "--new-key"]
    arguments[2] = str(site / "other.pem")
    assert run(*arguments).exit_code == 2
    assert not (site / "other.pem").exists()


@pytest.mark.parametrize("command", ["issue-root", "link", "inspect", "verify"])
def test_each_command_shows_an_example(command: str) -> None:
    assert f"authz-server delegation {command}" in printed(command, "--help")
