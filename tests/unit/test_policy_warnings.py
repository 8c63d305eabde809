"""What a server says of a policy that it serves: shadow mode is covered where a server runs."""

import io
import json
from pathlib import Path

from authz_server.core.chain_cache import ChainCache
from authz_server.reload.loader import load_snapshot
from authz_server.servers.event_log import EventLog
from authz_server.servers.policy_warnings import PolicyWarnings
from authz_server.settings import load_settings
from tests.pdp_site import RULES, PdpSite

ANOTHER = "p, sign-first, GET, /sign/*, data.read, signers, escalate"


def test_a_group_without_members_is_told_of_once(tmp_path: Path) -> None:
    site, said = PdpSite.create(tmp_path), io.StringIO()
    warnings = PolicyWarnings(EventLog.json(said), ["approvers"])
    for rules in (RULES, (*RULES, ANOTHER), (*RULES, ANOTHER), RULES, (*RULES, ANOTHER)):
        site.write_rules(rules)
        warnings.loaded(load_snapshot(load_settings(site.configuration), chains=ChainCache()))
    events = list(map(json.loads, said.getvalue().splitlines()))
    told = [(e["event"], e["level"], e["bundle"], e["group"]) for e in events]
    # With the load that brings it, and anew when it comes back.
    assert told == [("approver_group_empty", "warning", "default", "signers")] * 2
