"""The configuration file: every key, every refusal with its place, all of them at once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from authz_server.core import limits
from authz_server.core.errors import ConfigurationError
from authz_server.core.spiffe import TrustDomain
from authz_server.settings import Settings, load_settings
from authz_server.settings.addresses import TcpAddress, UnixAddress

_MINIMAL = """\
trust_domain: prod.example.org
identity:
  trust_bundles: {files: {prod.example.org: bundle.pem}}
  inventory: identities.yaml
delegation:
  issuers: [{issuer: "https://sts", jwks_file: sts.jwks.json}]
"""

Load = Callable[[str], Settings]


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AUTHZ_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(text: str) -> Settings:
        path = tmp_path / "authz.yaml"
        path.write_text(text)
        return load_settings(path)

    return write_and_load


def _faults(load: Load, text: str) -> list[tuple[int, int, str]]:
    with pytest.raises(ConfigurationError) as caught:
        load(text)
    return [(fault.line, fault.column, fault.message) for fault in caught.value.faults]


def test_defaults(load: Load, tmp_path: Path) -> None:
    settings = load(_MINIMAL)
    assert settings.trust_domain == TrustDomain("prod.example.org")
    assert settings.listen.grpc == (TcpAddress("127.0.0.1", 9191),)
    assert settings.listen.http == TcpAddress("127.0.0.1", 9192)
    assert settings.tls.mode == "plaintext"
    assert settings.identity.unregistered == "deny"
    assert settings.delegation.require is True
    assert settings.delegation.delegator_trust_domains is None
    assert settings.delegation.limits.links_max == limits.LINKS_MAX
    assert settings.delegation.issuers[0].algorithms == ("ES256",)
    assert settings.delegation.issuers[0].max_lifetime_s == 300
    assert settings.bundles.dir == tmp_path / "casbin_models"
    assert settings.ledger.url == f"sqlite:///{tmp_path}/authz.db"
    assert settings.ledger.mode == "durable"
    assert settings.approvals.ttl_s == 900
    assert settings.approvals.single_use is True


def test_every_key(load: Load, tmp_path: Path) -> None:
    settings = load("""\
trust_domain: prod.example.org
listen: {grpc: ["[::1]:0", "unix:///run/authz/grpc.sock"], http: "0.0.0.0:9192"}
tls: {mode: plaintext, allowed_clients: []}
identity:
  trust_bundles:
    source: files
    files: {prod.example.org: [a.pem, /etc/b.pem], other.example: c.pem}
    socket: null
  inventory: ids/identities.yaml
  unregistered: allow
  trusted_proxies: []
delegation:
  issuers:
    - {issuer: "https://sts", jwks_file: k.json, algorithms: [ES384, EdDSA], max_lifetime_s: 60}
    - {issuer: "https://two", jwks_file: l.json, jwks_url: null, algorithms: ES256}
  delegator_trust_domains: [prod.example.org, other.example]
  require: false
  limits: {links_max: 0, actors_max: 1, total_bytes_max: 1, skew_s: 0, link_lifetime_s_max: 1}
bundles: {dir: models, mode: {tools: enforce}}
ledger: {url: "sqlite:////var/lib/authz.db", mode: off, retention_days: null}
approvals: {ttl_s: 60, single_use: false, bind_txn: true, groups: {fin: ["a@x", "b@x"]}}
""")
    assert settings.listen.grpc == (
        TcpAddress("::1", 0),
        UnixAddress(Path("/run/authz/grpc.sock")),
    )
    assert list(map(str, settings.listen.grpc)) == ["[::1]:0", "unix:///run/authz/grpc.sock"]
    files = settings.identity.trust_bundles.files
    assert files[TrustDomain("prod.example.org")] == (tmp_path / "a.pem", Path("/etc/b.pem"))
    assert settings.identity.inventory == tmp_path / "ids" / "identities.yaml"
    assert settings.delegation.issuers[0].jwks_file == tmp_path / "k.json"
    assert settings.delegation.issuers[1].algorithms == ("ES256",)
    assert settings.delegation.limits.links_max == 0
    assert settings.bundles.dir == tmp_path / "models"
    assert settings.ledger.url == "sqlite:////var/lib/authz.db"
    assert settings.ledger.mode == "off"
    assert settings.approvals.groups == {"fin": ("a@x", "b@x")}


@pytest.mark.parametrize("mode", ["durable", "async"])
def test_a_bundle_in_shadow_needs_a_ledger(load: Load, mode: str) -> None:
    """What passes although the policy says no must be on record."""
    text = "bundles: {mode: {t: shadow, u: enforce}}\nledger: {mode: %s}\n" + _MINIMAL
    assert load(text % mode).bundles.mode == {"t": "shadow", "u": "enforce"}
    wrong = "`ledger.mode` must not be `off` while `bundles.mode` has a bundle in `shadow`"
    assert _faults(load, text % "off") == [(2, 16, wrong)]
    assert load((text % "off").replace("shadow", "enforce")).ledger.mode == "off"


def test_settings_are_frozen(load: Load) -> None:
    settings = load(_MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        settings.ledger.mode = "off"  # type: ignore[misc]


_TAIL = """\
identity:
  trust_bundles: {files: {prod.example.org: bundle.pem}}
  inventory: identities.yaml
delegation: {require: false}
"""
_HTTPS = "must be an address `https://host[:port]/path` without credentials"
_ALGORITHMS = "`ES256`, `ES384`, `PS256`, `RS256` or `EdDSA`"


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("ledger: {retention_days: 0}", 26, "`ledger.retention_days` must be at least 1"),
        (
            'ledger: {url: "mysql://db/authz"}',
            15,
            "`ledger.url` must be `sqlite:///path` or `postgresql://…`",
        ),
        (
            "ledger: {checkpoint_sinks: [http://audit]}",
            29,
            "`ledger.checkpoint_sinks[0]` must be `stdout`, a file or `https://…`",
        ),
        (
            'ledger: {url: "sqlite+aiosqlite:///authz.db"}',
            15,
            "`ledger.url` must be `sqlite:///path` or `postgresql://…`",
        ),
        ("bundles: {mode: {t: observe}}", 21, "`bundles.mode.t` must be `enforce` or `shadow`"),
        ("bundles: {mode: shadow}", 17, "`bundles.mode` must be a mapping"),
        ("retention_days: 1", 1, "`retention_days` is not a known key"),
        # Values.
        (
            'tls: {allowed_clients: ["spiffe://a/*"]}',
            7,
            "`tls.allowed_clients` needs `tls.mode` `files` or `workload_api`",
        ),
        (
            'tls: {mode: files, certificate: a, private_key: b, allowed_clients: ["spiffe://a"]}',
            70,
            "`tls.allowed_clients[0]` is not valid: pattern names a trust domain, not a workload",
        ),
        (
            'tls: {mode: files, certificate: a, allowed_clients: ["spiffe://prod.example.org/e"]}',
            1,
            "`tls.private_key` is required while `tls.mode` is `files`",
        ),
        ("tls: {certificate: a}", 20, "`tls.certificate` is for `tls.mode` `files` alone"),
        (
            "tls: {max_connection_age_s: 0}",
            29,
            "`tls.max_connection_age_s` must be at least 1",
        ),
        ("tls: {mode: mtls}", 13, "`tls.mode` must be `plaintext`, `files` or `workload_api`"),
        ("ledger: {mode: on}", 16, "`ledger.mode` must be `durable`, `async` or `off`"),
        ("ledger: {mode: true}", 16, "`ledger.mode` must be `durable`, `async` or `off`"),
        (
            "ledger: {url: 'sqlite://'}",
            15,
            "`ledger.url` must be `sqlite:///path`; a database in memory keeps no record",
        ),
        (
            "ledger: {url: 'sqlite:///:memory:'}",
            15,
            "`ledger.url` must be `sqlite:///path`; a database in memory keeps no record",
        ),
        (
            "ledger: {url: 'sqlite:///a.db?mode=ro'}",
            15,
            "`ledger.url` must be `sqlite:///path` without options",
        ),
        ("approvals: {ttl_s: 0}", 20, "`approvals.ttl_s` must be at least 1"),
        ("approvals: {ttl_s: 604801}", 20, "`approvals.ttl_s` must be at most 604800"),
        ("approvals: {ttl_s: true}", 20, "`approvals.ttl_s` must be a whole number"),
        ("approvals: {ttl_s: 1.5}", 20, "`approvals.ttl_s` must be a whole number"),
        ("approvals: {ttl_s: soon}", 20, "`approvals.ttl_s` must be a whole number"),
        ("approvals: {single_use: maybe}", 25, "`approvals.single_use` must be true or false"),
        ("approvals: {groups: [a]}", 13, "`approvals.groups` must be a mapping"),
        ("approvals: {groups: {a: b}}", 25, "`approvals.groups.a` must be a list"),
        ("approvals: {groups: {a: [1]}}", 26, "`approvals.groups.a[0]` must be text"),
        ("approvals:", 11, "`approvals` must be a mapping"),
        ("bundles: {dir: ''}", 16, "`bundles.dir` must be printable text, not empty"),
        ("bundles: {dir: 7}", 16, "`bundles.dir` must be text"),
        ('bundles: {dir: "a\\0b"}', 16, "`bundles.dir` must be printable text, not empty"),
        # Keys.
        ("legder: {}", 1, "`legder` is not a known key; did you mean `ledger`?"),
        ("zzz: {}", 1, "`zzz` is not a known key"),
        (
            "approvals: {ttl: 5}",
            13,
            "`approvals.ttl` is not a known key; did you mean `ttl_s`?",
        ),
        ("listen: {Grpc: x}", 10, "`listen.Grpc` is not a known key; did you mean `grpc`?"),
        # Addresses.
        (
            'listen: {grpc: "0.0.0.0:9191"}',
            16,
            "`listen.grpc` must be loopback or a Unix socket while `tls.mode` is `plaintext`",
        ),
        (
            'listen: {grpc: ["127.0.0.1:1", "authz.example.org:9191"]}',
            32,
            "`listen.grpc[1]` must be loopback or a Unix socket while `tls.mode` is `plaintext`",
        ),
        ("listen: {grpc: []}", 10, "`listen.grpc` must not be empty"),
        ("listen: {grpc: 9191}", 16, "`listen.grpc` must be a list"),
        (
            'listen: {grpc: "127.0.0.1"}',
            16,
            "`listen.grpc` is not valid: expected `host:port`, with IPv6 in brackets",
        ),
        (
            'listen: {http: "unix:///x"}',
            16,
            "`listen.http` is not valid: expected `host:port`, with IPv6 in brackets",
        ),
    ],
)
def test_a_faulty_line(load: Load, line: str, column: int, message: str) -> None:
    text = f"# a comment\n{line}\ntrust_domain: prod.example.org\n{_TAIL}"
    assert _faults(load, text) == [(2, column, message)]


@pytest.mark.parametrize(
    ("identity", "faults"),
    [
        (
            "{trust_bundles: {source: workload_api}, inventory: i}",
            [
                (
                    2,
                    12,
                    "`identity.trust_bundles.socket` is required while `source` is `workload_api`",
                )
            ],
        ),
        (
            "{trust_bundles: {files: {p.org: b}, socket: '/s'}, inventory: i}",
            [
                (
                    2,
                    55,
                    "`identity.trust_bundles.socket` is not valid: "
                    "expected `unix:///path` with an absolute path",
                )
            ],
        ),
        (
            "{trust_bundles: {files: {p.org: b}, endpoints: [{trust_domain: p.org, "
            "url: 'http://e', profile: https_spiffe}, {trust_domain: o.org, url: 'https://e/', "
            "profile: https_web, bundle: x}]}, inventory: i}",
            [
                (
                    2,
                    86,
                    "`identity.trust_bundles.endpoints[0].url` must be an address "
                    "`https://host[:port]/path` without credentials",
                ),
                (
                    2,
                    191,
                    "`identity.trust_bundles.endpoints[1].bundle` is for the profile "
                    "`https_spiffe` alone",
                ),
            ],
        ),
        (
            "{trust_bundles: {files: {p.org: b}, endpoints: [{trust_domain: p.org, "
            "url: 'https://e', profile: https_web}]}, inventory: i}",
            [
                (
                    2,
                    74,
                    "`identity.trust_bundles.endpoints[0].trust_domain` has a bundle from "
                    "somewhere else already",
                )
            ],
        ),
        (
            "{trust_bundles: {files: {p.org: b}}, inventory: i, trusted_proxies: ['spiffe://q.org/x']}",
            [(2, 80, "`identity.trusted_proxies[0]` is of `q.org`, which has no bundle here")],
        ),
        (
            "{trust_bundles: {files: {P.ORG: b, p.org: []}}, inventory: i}",
            [
                (
                    2,
                    36,
                    "`identity.trust_bundles.files.P.ORG` is not valid: trust domain has a "
                    "character outside `[a-z0-9._-]`, or none",
                ),
                (2, 46, "`identity.trust_bundles.files.p.org` must not be empty"),
            ],
        ),
        (
            "{trust_bundles: {files: {o.org: b}}}",
            [
                (2, 1, "`identity.inventory` is required while `identity.unregistered` is `deny`"),
                (2, 28, "`identity.trust_bundles.files` must name a bundle for `p.org`"),
            ],
        ),
        (
            "{unregistered: perhaps}",
            [(2, 26, "`identity.unregistered` must be `deny` or `allow`")],
        ),
    ],
)
def test_a_faulty_identity(load: Load, identity: str, faults: list[Any]) -> None:
    text = f"trust_domain: p.org\nidentity: {identity}\ndelegation: {{require: false}}\n"
    assert sorted(_faults(load, text)) == sorted(faults)


@pytest.mark.parametrize(
    ("delegation", "faults"),
    [
        (
            "{issuers: []}",
            [
                (
                    2,
                    14,
                    "`delegation.issuers` must name an issuer while `delegation.require` is true",
                )
            ],
        ),
        ("{require: 2}", [(2, 23, "`delegation.require` must be true or false")]),
        (
            "{issuers: [{issuer: a, jwks_url: 'http://x.example'}]}",
            [(2, 46, f"`delegation.issuers[0].jwks_url` {_HTTPS}")],
        ),
        (
            "{issuers: [{issuer: a}, {jwks_file: b}]}",
            [
                (
                    2,
                    24,
                    "`delegation.issuers[0]` must have exactly one of `jwks_file` and `jwks_url`",
                ),
                (2, 37, "`delegation.issuers[1].issuer` is required"),
            ],
        ),
        (
            "{issuers: [{issuer: a, jwks_file: b}, {issuer: a, jwks_file: c}]}",
            [(2, 60, "`delegation.issuers[1].issuer` is listed twice")],
        ),
        (
            "{issuers: [{issuer: a, jwks_file: b, algorithms: [ES256, none, HS256]}]}",
            [
                (2, 70, f"`delegation.issuers[0].algorithms[1]` must be {_ALGORITHMS}"),
                (2, 76, f"`delegation.issuers[0].algorithms[2]` must be {_ALGORITHMS}"),
            ],
        ),
        (
            "{issuers: [{issuer: a, jwks_file: b, max_lifetime_s: 3601}]}",
            [(2, 66, "`delegation.issuers[0].max_lifetime_s` must be at most 3600")],
        ),
        (
            "{require: false, delegator_trust_domains: [p.org, o.org]}",
            [
                (
                    2,
                    63,
                    "`delegation.delegator_trust_domains[1]` has no bundle in "
                    "`identity.trust_bundles`",
                )
            ],
        ),
        (
            "{require: false, limits: {links_max: 5, actors_max: 0, total_bytes_max: 16385, "
            "skew_s: 31, link_lifetime_s_max: 901}}",
            [
                (2, 50, "`delegation.limits.links_max` must be at most 4"),
                (2, 65, "`delegation.limits.actors_max` must be at least 1"),
                (2, 85, "`delegation.limits.total_bytes_max` must be at most 16384"),
                (2, 100, "`delegation.limits.skew_s` must be at most 30"),
                (2, 125, "`delegation.limits.link_lifetime_s_max` must be at most 900"),
            ],
        ),
    ],
)
def test_a_faulty_delegation(load: Load, delegation: str, faults: list[Any]) -> None:
    identity = "{trust_bundles: {files: {p.org: b}}, inventory: i}"
    text = f"trust_domain: p.org\ndelegation: {delegation}\nidentity: {identity}\n"
    assert sorted(_faults(load, text)) == sorted(faults)


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ("Prod.org", "trust domain has a character outside `[a-z0-9._-]`, or none"),
        ("spiffe://p.org", "trust domain has a character outside `[a-z0-9._-]`, or none"),
        ("p" * 256, "trust domain is longer than 255 bytes"),
    ],
)
def test_a_faulty_trust_domain(load: Load, domain: str, message: str) -> None:
    found = _faults(load, f"trust_domain: {domain}\n{_TAIL}")
    assert found == [(1, 15, f"`trust_domain` is not valid: {message}")]


def test_faults_of_all_sections_come_at_once_in_the_order_of_the_file(load: Load) -> None:
    text = """\
listen: {grpc: "0.0.0.0:1"}
ledger: {mode: sync, retention_days: 0}
delegation: {issuers: [{issuer: a, jwks_url: b}], limits: {skew_s: 99}}
legder: {}
"""
    assert _faults(load, text) == [
        (1, 1, "`trust_domain` is required"),
        (1, 1, "`identity.inventory` is required while `identity.unregistered` is `deny`"),
        (1, 16, "`listen.grpc` must be loopback or a Unix socket while `tls.mode` is `plaintext`"),
        (2, 16, "`ledger.mode` must be `durable`, `async` or `off`"),
        (2, 38, "`ledger.retention_days` must be at least 1"),
        (3, 46, f"`delegation.issuers[0].jwks_url` {_HTTPS}"),
        (3, 68, "`delegation.limits.skew_s` must be at most 30"),
        (4, 1, "`legder` is not a known key; did you mean `ledger`?"),
    ]


def test_a_repeated_key_is_refused_although_one_of_its_values_would_do(load: Load) -> None:
    text = _MINIMAL + "ledger: {mode: durable}\nledger: {mode: off}\n"
    assert _faults(load, text) == [(8, 1, "key `ledger` stands twice")]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(tmp_path / "none.yaml")
    (fault,) = caught.value.faults
    assert str(fault) == f"{tmp_path}/none.yaml: error: cannot be read: No such file or directory"


def test_a_file_that_is_no_mapping(load: Load) -> None:
    assert _faults(load, "- a\n") == [(1, 1, "configuration must be a mapping")]


def test_a_file_of_unreasonable_size(load: Load) -> None:
    assert _faults(load, "#" * (1024 * 1024 + 1)) == [(0, 0, "is larger than 1048576 bytes")]


def test_a_fault_is_shown_under_its_line(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(_MINIMAL + "approvals: {ttl: 5}\n")
    assert str(caught.value) == (
        f"{tmp_path}/authz.yaml:7:13: error: `approvals.ttl` is not a known key; "
        "did you mean `ttl_s`?\n"
        "    approvals: {ttl: 5}\n"
        "                ^"
    )


@pytest.mark.parametrize(
    ("text", "address", "local"),
    [
        ("127.0.0.1:9191", TcpAddress("127.0.0.1", 9191), True),
        ("127.8.9.1:1", TcpAddress("127.8.9.1", 1), True),
        ("localhost:0", TcpAddress("localhost", 0), True),
        ("[::1]:65535", TcpAddress("::1", 65535), True),
        ("0.0.0.0:1", TcpAddress("0.0.0.0", 1), False),
        ("[::]:1", TcpAddress("::", 1), False),
        ("[::ffff:10.0.0.1]:1", TcpAddress("::ffff:10.0.0.1", 1), False),
        ("authz.example.org:1", TcpAddress("authz.example.org", 1), False),
        ("localhost.example.org:1", TcpAddress("localhost.example.org", 1), False),
    ],
)
def test_tcp_addresses(text: str, address: TcpAddress, local: bool) -> None:
    assert TcpAddress.parse(text) == address
    assert address.is_local is local
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "a",
        "a:",
        "a:b",
        "a:65536",
        "a:-1",
        "a:1\n",
        "::1:1",
        "[127.0.0.1]:1",
        "[::1:1",
        "a b:1",
        "http://a:1",
        "a:1/",
        "a:٣",
    ],
)
def test_malformed_tcp_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|port|IPv6"):
        TcpAddress.parse(text)


@pytest.mark.parametrize(
    "text", ["unix:x", "unix://x", "unix:///", "unix:///a/", "/a", "unix:///" + "a" * 107]
)
def test_malformed_unix_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"unix:///path|107 bytes"):
        UnixAddress.parse(text)


def test_the_longest_unix_address() -> None:
    assert UnixAddress.parse("unix:///" + "a" * 106).is_local
