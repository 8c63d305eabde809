"""`decisions explain` names file and line of each rule, and says when that is another revision."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from authz_server.cli import main
from authz_server.core.chain_cache import ChainCache
from authz_server.ledger.store import Ledger
from authz_server.reload.loader import load_snapshot
from authz_server.settings import load_settings
from tests.ledger_samples import TTL_S, deny, record
from tests.pdp_site import RULES, PdpSite


@pytest.fixture
def site(tmp_path: Path) -> PdpSite:
    site = PdpSite.create(tmp_path)
    snapshot = load_snapshot(load_settings(site.configuration), chains=ChainCache())
    decision = deny(rules=("closed", "vanished"), bundle="default", revision=snapshot.revision)
    ledger = Ledger.open(f"sqlite:///{site.ledger}", approval_ttl_s=TTL_S)
    ledger.commit([record(decision, "d-1")])
    ledger.close()
    return site


def explain(site: PdpSite, *options: str) -> str:
    arguments = ["decisions", "explain", "d-1", *options]
    result = CliRunner().invoke(main.group, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_each_rule_has_its_line_of_that_revision(site: PdpSite) -> None:
    text = explain(site, "--config", str(site.configuration))
    assert f"closed at {site.bundle}/policy.csv:3" in text
    assert "vanished not on disk" in text
    assert "another revision" not in text


def test_a_changed_policy_is_said_to_be_another_revision(site: PdpSite) -> None:
    site.write_rules(("p, new, GET, /new/*, data.read, , allow", *RULES))
    text = explain(site, "--config", str(site.configuration))
    assert "another revision than the one that decided" in text
    assert "closed at" in text
    assert "policy.csv:4" in text


def test_a_policy_that_does_not_load_stops_no_explanation(site: PdpSite) -> None:
    site.write_rules(("p, broken",))
    text = explain(site, "--config", str(site.configuration))
    assert "does not load now" in text
    assert "closed not on disk" in text


def test_without_a_configuration_the_ids_stand_alone(site: PdpSite) -> None:
    assert "rules: closed, vanished" in explain(site, "--ledger", f"sqlite:///{site.ledger}")


def test_the_json_stays_the_record(site: PdpSite) -> None:
    arguments = ["decisions", "show", "d-1", "--output", "json", "--ledger"]
    result = CliRunner().invoke(main.group, [*arguments, f"sqlite:///{site.ledger}"])
    assert json.loads(result.stdout)["rules"] == ["closed", "vanished"]
