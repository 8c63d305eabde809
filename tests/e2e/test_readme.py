"""What README.md tells people to write works as printed: configuration, bundle, Envoy filters."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from authz_server.core.chain_cache import ChainCache
from authz_server.envoy_config.binary import envoy_binary
from authz_server.reload.loader import load_snapshot
from authz_server.settings import load_settings
from tests.e2e.forge import Forge

README = Path(__file__).parents[2] / "README.md"
# A block is named by the last code span of the paragraph before it.
_BLOCK = re.compile(r"`([^`\n]+)`[^`\n]*:\n\n```[a-z]+\n(.*?)```", re.DOTALL)


def blocks() -> dict[str, str]:
    text = re.sub(r"\(\[all keys\]\([^)]*\)\)", "", README.read_text("utf-8"))
    return {match[1]: match[2] for match in _BLOCK.finditer(text)}


def test_configuration_and_bundle_load(tmp_path: Path) -> None:
    files = {name: text for name, text in blocks().items() if re.search(r"\.[a-z]+$", name)}
    assert sorted(files) == [
        "authz.yaml",
        "casbin_models/crm/bundle.yaml",
        "casbin_models/crm/model.conf",
        "casbin_models/crm/policy.csv",
        "identities.yaml",
        "point.yaml",
    ]
    forge = Forge()
    (tmp_path / "bundle.pem").write_bytes(forge.authority.pem)
    (tmp_path / "sts.jwks.json").write_bytes(forge.jwks)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    snapshot = load_snapshot(load_settings(tmp_path / "authz.yaml"), chains=ChainCache())

    assert list(snapshot.policies) == ["crm"]


def test_the_enforcement_point_renders(tmp_path: Path) -> None:
    (tmp_path / "point.yaml").write_text(blocks()["point.yaml"])
    command = [sys.executable, "-m", "authz_server", "envoy"]

    for arguments in (
        ["render", "point.yaml", "--write", "envoy.yaml", "--validate"],
        ["lint", "envoy.yaml", "--strict"],
    ):
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_envoy_accepts_the_filters(kind: str, tmp_path: Path) -> None:
    parts = {name: yaml.safe_load(text) for name, text in blocks().items() if name in _FRAGMENTS}
    assert parts.keys() == _FRAGMENTS
    filters = parts["tcp_proxy"] if kind == "tcp" else [_http_manager(parts)]
    bootstrap = {
        "static_resources": {
            "listeners": [
                {
                    "name": "in",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
                    "filter_chains": [{"filters": filters}],
                }
            ],
            "clusters": [*parts["clusters"], _workload("database"), _workload("tool")],
        }
    }
    config = tmp_path / "envoy.json"
    config.write_text(json.dumps(bootstrap))
    argv = [str(envoy_binary()), "--mode", "validate", "--log-level", "error"]
    result = subprocess.run(
        [*argv, "--config-path", str(config)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


_FRAGMENTS = {
    "http_filters",
    "http_connection_manager",
    "typed_per_filter_config",
    "tcp_proxy",
    "clusters",
}


def _http_manager(parts: dict[str, Any]) -> dict[str, Any]:
    extension = "type.googleapis.com/envoy.extensions.filters"
    host = {
        "name": "tool",
        "domains": ["crm.tools.example"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "tool"}}],
        "typed_per_filter_config": parts["typed_per_filter_config"],
    }
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{extension}.http.router.v3.Router"},
    }
    manager = parts["http_connection_manager"] | {
        "@type": f"{extension}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [host]},
        "http_filters": [*parts["http_filters"], router],
    }
    return {"name": "hcm", "typed_config": manager}


def _workload(name: str) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 1}}
    endpoint = {"endpoint": {"address": address}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
