"""`AUTHZ_` variables: laid over the file, and named in every fault they cause."""

import os
from pathlib import Path

import pytest

from authz_server.core.errors import ConfigurationError
from authz_server.core.spiffe import TrustDomain
from authz_server.settings import Settings, load_settings
from authz_server.settings.addresses import TcpAddress, UnixAddress

_FILE = """\
trust_domain: prod.example.org
listen: {grpc: "127.0.0.1:1", http: "127.0.0.1:2"}
identity:
  trust_bundles: {files: {prod.example.org: bundle.pem}}
  inventory: identities.yaml
delegation:
  issuers: [{issuer: "https://sts", jwks_file: sts.jwks.json}]
approvals: {ttl_s: 60, groups: {finance: ["a@x"]}}
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("AUTHZ_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "authz.yaml"
    path.write_text(_FILE)
    return path


def _load(path: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings(path)


def _faults(path: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        _load(path, monkeypatch, **variables)
    return [
        str(fault).replace(str(path), "FILE").partition("\n")[0] for fault in caught.value.faults
    ]


def test_a_variable_replaces_the_value_of_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _load(
        path,
        monkeypatch,
        AUTHZ_LISTEN__GRPC="unix:///run/a.sock",
        AUTHZ_LEDGER__MODE="off",
        AUTHZ_APPROVALS__TTL_S="7",
        AUTHZ_APPROVALS__BIND_TXN="true",
        AUTHZ_DELEGATION__LIMITS__SKEW_S="5",
        AUTHZ_BUNDLES__DIR="models",
    )
    assert settings.listen.grpc == (UnixAddress(Path("/run/a.sock")),)
    assert settings.listen.http == TcpAddress("127.0.0.1", 2)
    assert settings.ledger.mode == "off"
    assert settings.approvals.ttl_s == 7
    assert settings.approvals.bind_txn is True
    assert settings.approvals.groups == {"finance": ("a@x",)}
    assert settings.delegation.limits.skew_s == 5
    assert settings.bundles.dir == path.parent / "models"


def test_lists_are_replaced_and_mappings_merged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _load(
        path,
        monkeypatch,
        AUTHZ_LISTEN__GRPC='["127.0.0.1:5", "unix:///run/a.sock"]',
        AUTHZ_DELEGATION__ISSUERS='[{"issuer": "https://other", "jwks_file": "o.json"}]',
        AUTHZ_IDENTITY__TRUST_BUNDLES__FILES='{"other.org": "other.pem"}',
        AUTHZ_APPROVALS='{"ttl_s": 8, "groups": {"it": ["b@x"]}}',
        AUTHZ_APPROVALS__TTL_S="9",
    )
    assert [str(address) for address in settings.listen.grpc] == [
        "127.0.0.1:5",
        "unix:///run/a.sock",
    ]
    assert [issuer.issuer for issuer in settings.delegation.issuers] == ["https://other"]
    assert set(settings.identity.trust_bundles.files) == {
        TrustDomain("prod.example.org"),
        TrustDomain("other.org"),
    }
    assert settings.approvals.groups == {"finance": ("a@x",), "it": ("b@x",)}
    assert settings.approvals.ttl_s == 9, "the variable of the longer path wins"


def test_a_faulty_variable_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _faults(
        path,
        monkeypatch,
        AUTHZ_LISTEN__GRPC="0.0.0.0:9191",
        AUTHZ_APPROVALS__TTL_S="soon",
        AUTHZ_LEDGER__MODE="",
        AUTHZ_TLS='{"mode": "files", "cert": "x"}',
        AUTHZ_BUNDLES__DRI="x",
        AUTHZ_TRUST_DOMAIN__NAME="p.org",
    ) == [
        "AUTHZ_APPROVALS__TTL_S: error: `approvals.ttl_s` must be a whole number",
        "AUTHZ_BUNDLES__DRI: error: `bundles.dri` is not a known key; did you mean `dir`?",
        "AUTHZ_LEDGER__MODE: error: `ledger.mode` must be `durable`, `async` or `off`",
        "AUTHZ_TLS: error: `tls.cert` is not a known key",
        "AUTHZ_TRUST_DOMAIN__NAME: error: `trust_domain` must be text",
    ]


def test_a_fault_between_file_and_variable_is_shown_where_it_can_be_repaired(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _faults(path, monkeypatch, AUTHZ_LISTEN__GRPC="0.0.0.0:9191") == [
        "AUTHZ_LISTEN__GRPC: error: `listen.grpc` must be loopback or a Unix socket while "
        "`tls.mode` is `plaintext`"
    ]
    monkeypatch.delenv("AUTHZ_LISTEN__GRPC")
    assert _faults(path, monkeypatch, AUTHZ_TRUST_DOMAIN="other.org") == [
        "FILE:4:19: error: `identity.trust_bundles.files` must name a bundle for `other.org`"
    ]


def test_a_variable_that_sets_nothing_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _faults(
        path, monkeypatch, AUTHZ_LISTEN_GRPC="x", AUTHZ_LEGDER__MODE="off", AUTHZ_="1", AUTHZ_X="1"
    ) == [
        "AUTHZ_: error: sets no key of the configuration",
        "AUTHZ_LEGDER__MODE: error: sets no key of the configuration; "
        "did you mean `AUTHZ_LEDGER__MODE`?",
        "AUTHZ_LISTEN_GRPC: error: sets no key of the configuration; "
        "did you mean `AUTHZ_LISTEN__GRPC`?",
        "AUTHZ_X: error: sets no key of the configuration",
    ]


def test_a_variable_of_absurd_depth_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "AUTHZ_BUNDLES" + "__X" * 5000
    assert _faults(path, monkeypatch, **{name: "1"}) == [
        f"{name}: error: sets no key of the configuration"
    ]


def test_malformed_json_is_refused_together_with_a_broken_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("a: [\n")
    assert _faults(path, monkeypatch, AUTHZ_APPROVALS='{"ttl_s": 1', AUTHZ_X="1") == [
        "FILE:2:1: error: not YAML: did not find expected node content",
        "AUTHZ_APPROVALS:2:1: error: not YAML: did not find expected ',' or '}'",
        "AUTHZ_X: error: sets no key of the configuration",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "AUTHZ_SERVICE_HOST",
        "AUTHZ_SERVICE_PORT",
        "AUTHZ_SERVICE_PORT_GRPC_TLS",
        "AUTHZ_PORT",
        "AUTHZ_PORT_9191_TCP",
        "AUTHZ_PORT_9191_TCP_PROTO",
        "AUTHZ_PORT_9191_TCP_PORT",
        "AUTHZ_PORT_9191_UDP_ADDR",
        "AUTHZ_SERVER_SERVICE_HOST",
        "AUTHZ_SERVER_HEADLESS_PORT_9191_TCP_ADDR",
    ],
)
def test_variables_that_kubernetes_makes_for_a_service_are_let_be(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plain = load_settings(path)
    assert _load(path, monkeypatch, **{name: "tcp://10.0.0.1:9191"}) == plain


def test_everything_can_come_from_the_environment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("")
    settings = _load(
        path,
        monkeypatch,
        AUTHZ_TRUST_DOMAIN="p.org",
        AUTHZ_IDENTITY='{"trust_bundles": {"files": {"p.org": "b.pem"}}, "unregistered": "allow"}',
        AUTHZ_DELEGATION__REQUIRE="false",
    )
    assert settings.trust_domain == TrustDomain("p.org")
    assert settings.identity.trust_bundles.files[TrustDomain("p.org")] == (path.parent / "b.pem",)
