"""Lint reads configuration as the real Envoy does: its messages, its spellings, its dumps."""

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from authz_server.cli import main
from authz_server.demo.authority import TrustDomainAuthority, write_svid
from authz_server.demo.processes import ProcessGroup
from authz_server.envoy_config.binary import envoy_binary
from authz_server.envoy_config.lint.judge import judge
from authz_server.envoy_config.lint.message import Builder, Message
from authz_server.envoy_config.lint.source import read_source
from tests.e2e.envoy_profiles import RunningEnvoy, start_envoy
from tests.e2e.raw_http import unix_get
from tests.lint_bases import base
from tests.lint_samples import Sample, Tree, find, samples

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("lint-reads")]

ROOT = Path(__file__).parents[2]

# One cluster and one listener with every spelling that Envoy takes though no manual has it.
CLUSTERS = """\
resources:
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: &name odd
  type: static
  lbPolicy: "1"
  connect_timeout: {seconds: 1, nanos: 5e8}
  per_connection_buffer_limit_bytes: 0x4000
  ignore_health_on_host_removal: "YES"
  track_cluster_stats: {timeout_budgets: y, requestResponseSizes: "t"}
  max_requests_per_connection: {value: "7"}
  respect_dns_ttl: "0"
  upstream_connection_options: {tcp_keepalive: {keepalive_probes: 3.0}}
  load_assignment:
    clusterName: *name
    endpoints:
      lb_endpoints:
        endpoint: {address: {pipe: {path: /nowhere, mode: 0600}}}
"""
LISTENERS = """\
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: odd
  address: {socketAddress: {address: 127.0.0.1, portValue: "0"}}
  trafficDirection: inbound
  filter_chains:
  - filters:
    - name: http
      typed_config:
        "@type": EXTENSIONS.filters.network.http_connection_manager.v3.HttpConnectionManager
        statPrefix: odd
        normalizePath: On
        path_with_escaped_slashes_action: 2
        forward_client_cert_details: sanitize_set
        stream_idle_timeout: 300.000s
        rds:
          route_config_name: odd
          config_source: {path_config_source: {path: DIRECTORY/routes.yaml}}
        http_filters:
        - name: envoy.filters.http.ext_authz
          typed_config:
            "@type": EXTENSIONS.filters.http.ext_authz.v3.ExtAuthz
            grpcService: {envoyGrpc: {clusterName: odd}, timeout: {nanos: 250000000}}
            failureModeAllow: "y"
            transport_api_version: 2
        - name: envoy.filters.http.router
          typed_config: {"@type": EXTENSIONS.filters.http.router.v3.Router}
"""
ROUTES = """\
resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: odd
  virtualHosts:
    name: odd
    domains: odd.example.org
    routes:
    - {match: {prefix: /}, route: {cluster: odd, prefixRewrite: /closed/}}
"""
FILES = {"clusters": CLUSTERS, "listeners": LISTENERS, "routes": ROUTES}


def spelled_out(text: str, directory: str) -> str:
    text = text.replace("EXTENSIONS", "type.googleapis.com/envoy.extensions")
    return text.replace("DIRECTORY", directory)


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    # Not `tmp_path`: the path of a Unix socket holds 107 bytes.
    with tempfile.TemporaryDirectory(prefix="lint-") as path:
        for name, text in FILES.items():
            Path(path, f"{name}.yaml").write_text(spelled_out(text, path))
        yield Path(path)


@pytest.fixture(scope="module")
def envoy(directory: Path) -> Iterator[RunningEnvoy]:
    """An Envoy that takes everything from files, by the discovery services."""

    def discovered(name: str) -> dict[str, object]:
        return {"path_config_source": {"path": f"{directory}/{name}.yaml"}}

    tree: dict[str, Any] = {
        "node": {"id": "lint", "cluster": "lint"},
        "admin": {"address": {"pipe": {"path": f"{directory}/admin.sock", "mode": 0o600}}},
        "dynamic_resources": {
            "cds_config": discovered("clusters"),
            "lds_config": discovered("listeners"),
        },
    }
    with ProcessGroup(directory) as group:
        yield start_envoy(tree, "envoy", directory, group)


def test_the_messages_are_those_of_the_binary() -> None:
    command = [sys.executable, str(ROOT / "protos/envoy_messages.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("clusters", "envoy.config.cluster.v3.Cluster"),
        ("listeners", "envoy.config.listener.v3.Listener"),
        ("routes", "envoy.config.route.v3.RouteConfiguration"),
    ],
)
def test_odd_spellings_mean_what_they_mean_to_envoy(
    envoy: RunningEnvoy, directory: Path, name: str, kind: str
) -> None:
    dump = unix_get(envoy.admin, "/config_dump")
    written = message_of(directory.joinpath(f"{name}.yaml").read_bytes(), kind)
    assert said(written) == said(message_of(dump, kind))


def message_of(data: bytes, kind: str) -> Message:
    """Return the only message of type `kind` in a discovery response or dump."""
    source = read_source(data, name="source")
    is_dump = "configs" in source.root.value  # type: ignore[operator]
    root = "envoy.admin.v3.ConfigDump"
    if not is_dump:
        root = "envoy.service.discovery.v3.DiscoveryResponse"
    builder = Builder(source)
    (found,) = builder.message(source.root, root).all(kind)
    assert builder.misread == []
    return found


def said(value: object) -> object:
    """Return what a message says, without what is a default: a dump leaves that out."""
    if isinstance(value, Message):
        fields = {name: said(one) for name, one in value.fields.items()}
        defaults: tuple[object, ...] = (False, 0, "", [], "AUTO", "HTTP1")
        return {"@type": value.type} | {k: v for k, v in fields.items() if v not in defaults}
    return [said(one) for one in value] if isinstance(value, list) else value


def test_a_running_envoy_is_judged_by_what_it_was_sent(
    envoy: RunningEnvoy, directory: Path
) -> None:
    def found(*arguments: str) -> dict[str, set[str]]:
        result = CliRunner().invoke(main.group, ["envoy", "lint", "--output", "json", *arguments])
        assert result.exit_code == 1, result.output
        rules: dict[str, set[str]] = {}
        for one in map(json.loads, result.stdout.splitlines()):
            rules.setdefault(one["rule"], set()).update(one["resources"])
        return rules

    live = found("--admin", f"unix://{envoy.admin}")
    files = found(*(f"{directory}/{name}.yaml" for name in FILES))
    of_process = {"EA806"}
    assert live.keys() - of_process == files.keys()
    assert {"EA201", "EA320"} <= live.keys()
    assert live["EA201"] == {"listener `odd`"}
    assert {"routes `odd`", "virtual host `odd`"} <= live["EA320"]


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("ext_authz", {"failure_mode_allow": 1}),
        ("ext_authz", {"failure_mode_allow": "maybe"}),
        ("service", {"timeout": "250ms"}),
        ("service", {"timeout": 1}),
        ("hcm", {"forward_client_cert_details": "SANITISE_SET"}),
        ("hcm", {"stat_prefix": 5}),
        ("hcm", {"no_such_field": 1}),
        ("listener", {"per_connection_buffer_limit_bytes": "1_000"}),
    ],
    ids=str,
)
def test_what_lint_does_not_understand_envoy_refuses(
    part: str, setting: dict[str, object], svid: Path
) -> None:
    tree = copy.deepcopy(base("http"))
    find(tree, part).update(setting)
    (finding,) = judge([read_source(json.dumps(tree).encode(), name="envoy.json")])
    assert finding.rule.id in {"EA001", "EA002"}
    assert refusal(tree, svid)


@pytest.fixture(scope="module")
def svid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that the bases name: Envoy reads them when it validates."""
    path = tmp_path_factory.mktemp("svid")
    authority = TrustDomainAuthority.create("prod.example.org")
    _, key = write_svid(authority.issue_svid("/service/data-api"), path)
    key.rename(path / "svid.key")
    path.joinpath("bundle.pem").write_bytes(authority.bundle_pem)
    return path


def refusal(tree: Tree, svid: Path) -> str:
    """Return why Envoy refuses a bootstrap; empty if it does not."""
    path = svid / "bootstrap.json"
    path.write_text(json.dumps(tree).replace("/run/authz/", f"{svid}/"))
    command = [envoy_binary(), "--mode", "validate", "--config-path", path, "--log-level", "error"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr


# What Envoy does not start with: lint is not alone in finding it.
REFUSED = {"EA001-1", "EA001-2", "EA002-1", "EA002-2", "EA002-3", "EA003-1", "EA105-1", "EA106-1"}


@pytest.mark.deep
@pytest.mark.parametrize("sample", samples(), ids=lambda sample: sample.id)
def test_envoy_takes_the_unsafe_samples(sample: Sample, svid: Path) -> None:
    """A sample that no Envoy runs would prove nothing; and validation is no lint."""
    assert bool(refusal(sample.unsafe(base(sample.base)), svid)) == (sample.id in REFUSED)
