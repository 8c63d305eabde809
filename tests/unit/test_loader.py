"""A snapshot from real files: everything or every fault, and never a mixture of two states."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from authz_server.core.chain_cache import ChainCache
from authz_server.core.errors import ConfigurationError
from authz_server.core.snapshot import Snapshot
from authz_server.core.spiffe import TrustDomain
from authz_server.demo.authority import TrustDomainAuthority
from authz_server.policy.bundle import PolicyBundle
from authz_server.reload import loader
from authz_server.reload.bundles import load_tested_bundles
from authz_server.reload.content import concerns, fingerprint
from authz_server.reload.loader import load_snapshot
from authz_server.reload.memo import Memo
from authz_server.reload.tables import PolicyTables
from authz_server.settings import Settings, load_settings
from tests.pdp_site import ISSUER, RULES, TRUST_DOMAIN, PdpSite


@pytest.fixture
def site(tmp_path: Path) -> PdpSite:
    directory = tmp_path / "site"
    directory.mkdir()
    return PdpSite.create(directory)


def _settings(site: PdpSite) -> Settings:
    return load_settings(site.configuration)


def _load(site: PdpSite) -> Snapshot:
    return load_snapshot(load_settings(site.configuration), chains=ChainCache())


def _faults(site: PdpSite) -> list[tuple[str, int, str]]:
    with pytest.raises(ConfigurationError) as caught:
        _load(site)
    return [
        (str(Path(fault.file).relative_to(site.directory)), fault.line, fault.message)
        for fault in caught.value.faults
    ]


def _configure(site: PdpSite, old: str, new: str) -> None:
    text = site.configuration.read_text()
    assert old in text
    site.configuration.write_text(text.replace(old, new))


def test_a_snapshot_holds_what_the_files_say(site: PdpSite) -> None:
    settings = load_settings(site.configuration)
    chains = ChainCache()
    snapshot = load_snapshot(settings, chains=chains)
    assert snapshot.trust_domain == TRUST_DOMAIN
    assert snapshot.trust.bundles[TRUST_DOMAIN].authorities == site.authority.bundle.authorities
    assert set(snapshot.trust.issuers[ISSUER].keys) == {"dev-1"}
    assert snapshot.trust.issuers[ISSUER].algorithms == {"ES256"}
    assert snapshot.trust.issuers[ISSUER].max_lifetime_s == 300
    assert snapshot.delegation.require is True
    assert snapshot.delegation.delegator_trust_domains == {TRUST_DOMAIN}
    assert snapshot.inventory.find_subject("alice@example.org") is not None
    assert list(snapshot.policies) == ["default"]
    assert snapshot.chains is chains
    assert snapshot.admit_unregistered is False
    assert snapshot.bind_txn is False


def test_settings_reach_the_snapshot(site: PdpSite) -> None:
    _configure(site, "delegation:\n", "delegation:\n  require: false\n  limits: {skew_s: 7}\n")
    _configure(site, "identity:\n", "identity:\n  unregistered: allow\n")
    _configure(site, "approvals:\n", "approvals:\n  bind_txn: true\n")
    _configure(site, "\nbundles:\n", "\nbundles:\n  mode: {default: enforce}\n")
    snapshot = _load(site)
    assert snapshot.delegation.require is False
    assert snapshot.delegation.skew_s == 7
    assert snapshot.admit_unregistered is True
    assert snapshot.bind_txn is True
    assert snapshot.modes == {"default": "enforce"}


def test_equal_content_has_equal_revisions_wherever_it_lies(site: PdpSite, tmp_path: Path) -> None:
    first = _load(site)
    assert _load(site).revision == first.revision
    moved = tmp_path / "elsewhere"
    shutil.copytree(site.directory, moved)
    copy = load_snapshot(load_settings(moved / site.configuration.name), chains=ChainCache())
    assert copy.revision == first.revision
    assert copy.trust.revision == first.trust.revision


_CHANGES: dict[str, Callable[[PdpSite], object]] = {
    "policy": lambda site: site.write_rules(RULES[:2]),
    "inventory": lambda site: _append(site.directory / "identities.yaml", "# later\n"),
    "trust": lambda site: (site.directory / "trust.pem").write_bytes(
        TrustDomainAuthority.create(TRUST_DOMAIN).bundle_pem
    ),
    "jwks": lambda site: _append(site.directory / "sts.jwks.json", "\n"),
    "require": lambda site: _configure(site, "delegation:\n", "delegation:\n  require: false\n"),
    "limits": lambda site: _configure(
        site, "delegation:\n", "delegation:\n  limits: {skew_s: 1}\n"
    ),
    "lifetime": lambda site: _configure(site, "- issuer:", "- max_lifetime_s: 9\n    issuer:"),
    "algorithms": lambda site: _configure(
        site, "- issuer:", "- algorithms: [ES256, ES384]\n    issuer:"
    ),
    "unregistered": lambda site: _configure(
        site, "identity:\n", "identity:\n  unregistered: allow\n"
    ),
    "bind_txn": lambda site: _configure(site, "approvals:\n", "approvals:\n  bind_txn: true\n"),
}
_OF_TRUST = {"trust", "jwks", "lifetime", "algorithms"}


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@pytest.mark.parametrize("name", sorted(_CHANGES))
def test_every_change_makes_another_revision(site: PdpSite, name: str) -> None:
    before = _load(site)
    _CHANGES[name](site)
    after = _load(site)
    assert after.revision != before.revision
    # SECURITY: proofs are remembered under the trust revision.
    assert (after.trust.revision != before.trust.revision) == (name in _OF_TRUST)


def test_the_faults_of_all_files_come_at_once(site: PdpSite) -> None:
    (site.directory / "trust.pem").write_text("no certificate")
    (site.directory / "sts.jwks.json").write_text('{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}')
    (site.directory / "identities.yaml").write_text("identities:\n  - {id: a}\n")
    site.write_rules(["p, broken"])
    found = {(file, line) for file, line, _ in _faults(site)}
    assert found >= {
        ("trust.pem", 0),
        ("sts.jwks.json", 0),
        ("identities.yaml", 2),
        ("bundles/default/policy.csv", 1),
    }


def test_every_missing_file_is_named(site: PdpSite) -> None:
    for name in ("trust.pem", "sts.jwks.json", "identities.yaml"):
        (site.directory / name).unlink()
    shutil.rmtree(site.directory / "bundles")
    missing = "cannot be read: No such file or directory"
    assert _faults(site) == [
        ("trust.pem", 0, missing),
        ("sts.jwks.json", 0, missing),
        ("identities.yaml", 0, missing),
        ("bundles", 0, missing),
    ]


def test_no_bundle_is_a_fault(site: PdpSite) -> None:
    shutil.rmtree(site.bundle)
    ((file, _, message),) = _faults(site)
    assert file == "bundles"
    assert "no policy bundle" in message


def test_a_mode_for_no_bundle_is_a_fault(site: PdpSite) -> None:
    _configure(site, "\nbundles:\n", "\nbundles:\n  mode: {tools: enforce}\n")
    assert _faults(site) == [
        ("bundles", 0, "no policy bundle is called `tools`, as `bundles.mode` has it")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "trust bundle is not a sequence of PEM certificates"),
        (b"-----BEGIN PRIVATE KEY-----\n", "trust bundle contains a private key"),
    ],
)
def test_a_faulty_trust_bundle(site: PdpSite, content: bytes, message: str) -> None:
    (site.directory / "trust.pem").write_bytes(content)
    assert _faults(site) == [("trust.pem", 0, message)]


def test_a_repeated_authority_counts_once(site: PdpSite) -> None:
    pem = site.authority.bundle_pem
    (site.directory / "trust.pem").write_bytes(pem + pem)
    assert len(_load(site).trust.bundles[TRUST_DOMAIN].authorities) == len(
        site.authority.bundle.authorities
    )


def test_authorities_of_several_files_add_up(site: PdpSite) -> None:
    other = TrustDomainAuthority.create(TRUST_DOMAIN)
    (site.directory / "next.pem").write_bytes(other.bundle_pem)
    _configure(site, f"{TRUST_DOMAIN}: trust.pem", f"{TRUST_DOMAIN}: [trust.pem, next.pem]")
    assert set(_load(site).trust.bundles[TRUST_DOMAIN].authorities) == {
        *site.authority.bundle.authorities,
        *other.bundle.authorities,
    }


def test_a_foreign_domain_keeps_its_own_authorities(site: PdpSite) -> None:
    other = TrustDomainAuthority.create("partner.example")
    (site.directory / "partner.pem").write_bytes(other.bundle_pem)
    _configure(
        site,
        f"{TRUST_DOMAIN}: trust.pem",
        f"{TRUST_DOMAIN}: trust.pem\n      partner.example: partner.pem",
    )
    bundles = _load(site).trust.bundles
    assert bundles[TrustDomain("partner.example")].authorities == other.bundle.authorities
    assert bundles[TRUST_DOMAIN].authorities == site.authority.bundle.authorities


def test_keys_that_serve_only_other_algorithms_are_a_fault(site: PdpSite) -> None:
    _configure(site, "- issuer:", "- algorithms: [EdDSA, PS256]\n    issuer:")
    assert _faults(site) == [("sts.jwks.json", 0, "has no key for `EdDSA`, `PS256`")]


def test_an_empty_key_set_takes_every_grant_back(site: PdpSite) -> None:
    (site.directory / "sts.jwks.json").write_text('{"keys": []}')
    assert not _load(site).trust.issuers[ISSUER].keys


def test_a_file_of_unreasonable_size(site: PdpSite) -> None:
    with (site.directory / "trust.pem").open("r+b") as file:
        file.truncate(1024 * 1024 + 1)
    assert _faults(site) == [("trust.pem", 0, "is longer than 1048576 bytes")]


def test_a_pipe_or_a_directory_is_no_file(site: PdpSite) -> None:
    for name in ("trust.pem", "identities.yaml"):
        (site.directory / name).unlink()
    os.mkfifo(site.directory / "trust.pem")
    (site.directory / "identities.yaml").mkdir()
    assert _faults(site) == [
        ("trust.pem", 0, "is not a regular file"),
        ("identities.yaml", 0, "cannot be read: Is a directory"),
    ]


Interrupt = Callable[[Callable[[int], None]], list[int]]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Have something done in the middle of each load: after the trust bundle is read, and before
    the policies are. Returns the list that the numbers of the loads are appended to.
    """

    def install(between: Callable[[int], None]) -> list[int]:
        loads: list[int] = []

        def load_after_interruption(
            root: Path, *, tables: PolicyTables, memo: Memo
        ) -> Mapping[str, PolicyBundle]:
            loads.append(len(loads) + 1)
            between(loads[-1])
            return load_tested_bundles(root, tables=tables, memo=memo)

        name = "authz_server.reload.loader.load_tested_bundles"
        monkeypatch.setattr(name, load_after_interruption)
        return loads

    return install


def _swap(site: PdpSite) -> Callable[[int], None]:
    """Replace trust bundle and policy together, in the middle of the first load."""
    other = TrustDomainAuthority.create(TRUST_DOMAIN).bundle_pem

    def swap(load: int) -> None:
        if load == 1:
            (site.directory / "trust.pem").write_bytes(other)
            site.write_rules(RULES[:1])

    return swap


def _is_mixture(snapshot: Snapshot, site: PdpSite) -> bool:
    authorities = snapshot.trust.bundles[TRUST_DOMAIN].authorities
    policy = snapshot.policies["default"]
    assert isinstance(policy, PolicyBundle)
    has_old_trust = authorities == site.authority.bundle.authorities
    has_old_policy = len(policy.rules) == len(RULES)
    return has_old_trust != has_old_policy


def test_a_single_pass_would_mix_two_states(site: PdpSite, interrupt: Interrupt) -> None:
    interrupt(_swap(site))
    naive = loader._snapshot(
        _settings(site),
        ChainCache(),
        loader._Sources(tables=PolicyTables({}), memo=Memo()),
        loader._Faults(),
    )
    assert naive is not None
    assert _is_mixture(naive, site)


def test_files_that_change_during_a_load_are_read_again(
    site: PdpSite, interrupt: Interrupt
) -> None:
    loads = interrupt(_swap(site))
    snapshot = _load(site)
    assert loads == [1, 2]
    assert not _is_mixture(snapshot, site)
    assert snapshot.trust.bundles[TRUST_DOMAIN].authorities != site.authority.bundle.authorities


def test_faults_of_a_mixture_are_not_reported(site: PdpSite, interrupt: Interrupt) -> None:
    def repair(load: int) -> None:
        if load == 1:
            (site.directory / "trust.pem").write_bytes(site.authority.bundle_pem)

    (site.directory / "trust.pem").write_bytes(b"half wri")
    loads = interrupt(repair)
    assert _load(site).policies
    assert loads == [1, 2]


def test_the_same_bytes_written_in_between_count_as_a_change(
    site: PdpSite, interrupt: Interrupt
) -> None:
    """What was there and back again in between may have been read in part."""

    def there_and_back(load: int) -> None:
        if load == 1:
            site.write_rules(RULES[:1])
            site.write_rules(RULES)

    loads = interrupt(there_and_back)
    _load(site)
    assert loads == [1, 2]


def test_files_that_never_settle_are_refused(site: PdpSite, interrupt: Interrupt) -> None:
    loads = interrupt(lambda load: site.write_rules([*RULES, f"# change {load}"]))
    with pytest.raises(ConfigurationError, match="files changed during each of 5 attempts"):
        _load(site)
    assert len(loads) == loader.ATTEMPTS_MAX


def test_the_fingerprint_tells_content_from_version(site: PdpSite) -> None:
    settings = _settings(site)
    before = fingerprint(settings)
    assert fingerprint(settings) == before
    site.write_rules(RULES)  # the same bytes in a new file
    rewritten = fingerprint(settings)
    assert rewritten.content == before.content
    assert rewritten.versions != before.versions
    site.write_rules(RULES[:1])
    assert fingerprint(settings).content != before.content


@pytest.mark.parametrize(
    "change",
    [
        lambda site: (site.bundle / "policy.csv").unlink(),
        lambda site: (site.bundle / "policy-2.csv").touch(),
        lambda site: (site.bundle / "policy.csv").rename(site.bundle / "policy-1.csv"),
        lambda site: (site.directory / "bundles" / "other").mkdir(),
        lambda site: (site.directory / "trust.pem").unlink(),
        lambda site: (site.directory / "identities.yaml").write_text(""),
    ],
)
def test_the_fingerprint_sees(site: PdpSite, change: Callable[[PdpSite], object]) -> None:
    settings = _settings(site)
    before = fingerprint(settings)
    change(site)
    assert fingerprint(settings).content != before.content


@pytest.mark.parametrize(
    "change",
    [
        lambda site: (site.bundle / ".policy.csv.swp").touch(),
        lambda site: (site.directory / "bundles" / ".git").mkdir(),
        lambda site: (site.directory / "authz.db").write_bytes(b"x"),
    ],
)
def test_the_fingerprint_does_not_see(site: PdpSite, change: Callable[[PdpSite], object]) -> None:
    settings = _settings(site)
    before = fingerprint(settings)
    change(site)
    assert fingerprint(settings).content == before.content


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("trust.pem", True),
        ("identities.yaml", True),
        ("sts.jwks.json", True),
        ("..data", True),
        ("bundles", True),
        ("bundles/default/policy.csv", True),
        ("authz.db", False),
        ("authz.db-wal", False),
        ("authz.yaml", False),
    ],
)
def test_only_changes_of_our_files_concern_us(site: PdpSite, name: str, expected: bool) -> None:
    assert concerns(_settings(site), site.directory / name) is expected
