"""Lint of Envoy configuration: each rule finds its unsafe setting, and nothing else."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from authz_server.core.errors import ConfigurationError
from authz_server.envoy_config.lint.judge import RULES, judge
from authz_server.envoy_config.lint.rule import Finding, Severity
from authz_server.envoy_config.lint.source import read_source
from tests.lint_bases import BASES, base
from tests.lint_samples import Sample, Tree, find, samples

EXAMPLES = Path(__file__).parents[2] / "envoy"
K8S = EXAMPLES.parent / "k8s"
SAMPLES = samples()


def lint(tree: object) -> list[Finding]:
    """Judge one configuration, as JSON."""
    return judge([read_source(json.dumps(tree).encode(), name="envoy.json")])


def ids(tree: object) -> set[str]:
    return {finding.rule.id for finding in lint(tree)}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.id)
def test_an_unsafe_setting_is_found_and_nothing_else(sample: Sample) -> None:
    assert ids(sample.unsafe(base(sample.base))) == sample.expected


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.id)
def test_the_setting_put_right_is_clean(sample: Sample) -> None:
    assert ids(sample.safe(base(sample.base))) == set()


def test_every_rule_has_a_sample_and_an_id_of_its_own() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert {rule.id for rule in RULES} == {sample.rule for sample in SAMPLES}


@pytest.mark.parametrize(
    "example",
    sorted([*EXAMPLES.glob("*.yaml"), *EXAMPLES.glob("rendered/*"), *K8S.glob("**/envoy.json")]),
    ids=lambda path: str(path.relative_to(EXAMPLES.parent)),
)
def test_what_we_ship_is_clean(example: Path) -> None:
    assert judge([read_source(example.read_bytes(), name=str(example))]) == []


ELSEWHERE = [one for one in SAMPLES if one.base == "http" and "http_filters" not in str(one.values)]


@pytest.mark.parametrize("sample", ELSEWHERE, ids=lambda sample: sample.id)
def test_the_same_setting_is_found_in_every_configuration_that_has_it(sample: Sample) -> None:
    for name in ("mcp", "remote"):
        if (sample.rule, name) not in UNLESS:
            assert sample.rule in ids(sample.unsafe(base(name))), name


@pytest.mark.parametrize("name", BASES)
def test_what_we_render_is_clean(name: str) -> None:
    assert not ids(base(name))


# What is unsafe only where something is missing that these have.
UNLESS = {("EA219", "mcp"), ("EA906", "mcp"), ("EA701", "remote")}


def test_every_spelling_of_protobuf_json_is_read() -> None:
    """lowerCamelCase names, enumerations by number, numbers as text: the same is found."""
    for sample in SAMPLES:
        if sample.rule in {"EA001", "EA002"}:
            continue
        changed = sample.unsafe(base(sample.base))
        assert ids(respelled(changed)) == ids(changed), sample.id


def respelled(value: Any, key: str = "") -> Any:
    """Return `value` as another writer of protobuf JSON would write it."""
    if isinstance(value, dict):
        # Keys of maps are data: they hold dots or are names that an operator chose.
        if key in {"context_extensions", "static_layer", "metadata", "json_format"}:
            return value
        return {camel(k): respelled(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [respelled(one, key) for one in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return ENUMS.get(value, value) if isinstance(value, str) else value


ENUMS = {"SANITIZE_SET": 3, "REJECT_REQUEST": 2, "TLSv1_3": "4", "ON_DOWNSTREAM_DATA": 1}


def camel(key: str) -> str:
    if "." in key or key.startswith(("@", "authz", ":")):
        return key
    head, *rest = key.split("_")
    return head + "".join(part.capitalize() for part in rest)


def test_yaml_and_json_give_the_same_places_of_what_is_wrong() -> None:
    text = EXAMPLES.joinpath("http-enforcement-point.yaml").read_text()
    text = text.replace("failure_mode_allow: false", "failure_mode_allow: yes")
    (finding,) = judge([read_source(text.encode(), name="envoy.yaml")])
    line = next(n for n, one in enumerate(text.splitlines(), 1) if "failure_mode_allow" in one)
    column = text.splitlines()[line - 1].index("yes") + 1
    assert (finding.at.line, finding.at.column) == (line, column)
    assert finding.at.json_path == (
        "$.static_resources.listeners[0].filter_chains[0].filters[0].typed_config"
        ".http_filters[0].typed_config.failure_mode_allow"
    )
    tree = json.dumps(yaml.safe_load(text), indent=1)
    (finding,) = judge([read_source(tree.encode(), name="envoy.json")])
    line = next(n for n, one in enumerate(tree.splitlines(), 1) if "failure_mode_allow" in one)
    assert finding.at.line == line
    assert finding.at.source.line(finding.at.place).lstrip().startswith('"failure_mode_allow"')


# --- what may be given --------------------------------------------------------------------------


def unsafe_http() -> Tree:
    tree = copy.deepcopy(base("http"))
    find(tree, "ext_authz")["failure_mode_allow"] = True
    return tree


def parts_of(tree: Tree) -> dict[str, Any]:
    """The same configuration in every form that lint takes, each with the same fault."""
    resources = tree["static_resources"]
    listener, clusters = resources["listeners"][0], resources["clusters"]
    manager = find(tree, "hcm")

    def any_of(kind: str, value: Tree) -> Tree:
        return {"@type": f"type.googleapis.com/envoy.{kind}", **value}

    lds = {"version_info": "1", "resources": [any_of("config.listener.v3.Listener", listener)]}
    wrapped = any_of(
        "service.discovery.v3.Resource", {"name": "data", "resource": lds["resources"][0]}
    )
    return {
        "bootstrap": tree,
        "static resources": resources,
        "listener": listener,
        "listener with its type": lds["resources"][0],
        "manager": {k: v for k, v in manager.items() if k != "@type"},
        "manager with its type": manager,
        "discovery response": lds,
        "discovery response of wrapped resources": {"resources": [wrapped]},
        "dump of a static listener": {
            "configs": [
                any_of("admin.v3.BootstrapConfigDump", {"bootstrap": tree}),
                any_of(
                    "admin.v3.ListenersConfigDump",
                    {"static_listeners": [{"listener": lds["resources"][0]}]},
                ),
                any_of(
                    "admin.v3.ClustersConfigDump",
                    {
                        "static_clusters": [
                            {"cluster": any_of("config.cluster.v3.Cluster", one)}
                            for one in clusters
                        ]
                    },
                ),
            ]
        },
        "dump of a dynamic listener": {
            "configs": [
                any_of(
                    "admin.v3.ListenersConfigDump",
                    {
                        "dynamic_listeners": [
                            {"name": "data", "active_state": {"listener": lds["resources"][0]}}
                        ]
                    },
                ),
            ]
        },
    }


@pytest.mark.parametrize("form", parts_of(unsafe_http()))
def test_every_form_of_configuration_is_judged(form: str) -> None:
    assert ids(parts_of(unsafe_http())[form]) - {"EA005"} == {"EA201"}


def test_routes_and_clusters_of_other_files_are_those_that_a_listener_names() -> None:
    tree = copy.deepcopy(base("http"))
    manager = find(tree, "hcm")
    table = manager.pop("route_config") | {"name": "table"}
    manager["rds"] = {"route_config_name": "table", "config_source": {"ads": {}}}
    files = [tree["static_resources"]["listeners"][0], table, *tree["static_resources"]["clusters"]]

    def found(*given: Any) -> set[str]:
        sources = [
            read_source(json.dumps(one).encode(), name=f"{n}.json") for n, one in enumerate(given)
        ]
        return {finding.rule.id for finding in judge(sources)}

    assert found(*files) == set()
    assert found(files[0]) == {"EA004", "EA005"}
    table["virtual_hosts"][0]["routes"][0]["route"]["prefix_rewrite"] = "/closed"
    assert found(*files) == {"EA320"}
    assert found(table) == {"EA320"}


def test_a_dump_is_judged_by_what_is_in_force() -> None:
    """A refused update and a listener that drains do not count, nor does the bootstrap twice."""
    dump = parts_of(unsafe_http())["dump of a dynamic listener"]
    state = dump["configs"][0]["dynamic_listeners"][0]
    state["draining_state"] = state.pop("active_state")
    state["error_state"] = {"failed_configuration": state["draining_state"]["listener"]}
    state["error_state"]["failed_configuration"] |= {"of_a_newer_envoy": True}
    assert ids(dump) == set()
    twice = parts_of(unsafe_http())["dump of a static listener"]
    assert [finding.rule.id for finding in lint(twice)] == ["EA201"]


def test_what_a_dump_hides_is_not_guessed() -> None:
    tree = copy.deepcopy(base("http"))
    extensions = find(tree, "checks")["context_extensions"]
    extensions |= dict.fromkeys(extensions, "[redacted]")
    assert ids(tree) == {"EA006"}
    extensions["audiance"] = "[redacted]"
    assert ids(tree) == {"EA006", "EA311"}


def test_a_typed_struct_is_judged_as_what_it_stands_for() -> None:
    tree = unsafe_http()
    entry = find(tree, "ext_authz_entry")
    settings = entry["typed_config"]
    entry["typed_config"] = {
        "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
        "type_url": settings.pop("@type"),
        "value": settings,
    }
    (finding,) = lint(tree)
    assert finding.rule.id == "EA201"
    assert finding.at.json_path.endswith(".typed_config.value.failure_mode_allow")


def test_settings_that_were_discovered_are_judged() -> None:
    tree = unsafe_http()
    entry = find(tree, "ext_authz_entry")
    settings = entry.pop("typed_config")
    entry["config_discovery"] = {"config_source": {"ads": {}}, "type_urls": [settings["@type"]]}
    assert {"EA004", "EA101"} <= ids(tree)
    ecds = {
        "@type": "type.googleapis.com/envoy.admin.v3.EcdsConfigDump",
        "ecds_filters": [
            {
                "ecds_filter": {
                    "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
                    "name": entry["name"],
                    "typed_config": settings,
                }
            }
        ],
    }
    dump = parts_of(tree)["dump of a static listener"]
    dump["configs"].append(ecds)
    assert ids(dump) == {"EA201"}


def test_an_outbound_listener_is_for_this_machine_alone() -> None:
    tree = yaml.safe_load(EXAMPLES.joinpath("tcp-outbound.yaml").read_text())
    listener = find(tree, "listener")
    assert ids(tree) == set()
    listener["address"]["socket_address"]["address"] = "0.0.0.0"
    assert ids(tree) == {"EA102"}
    listener["address"]["socket_address"]["address"] = "127.0.0.1"
    del listener["traffic_direction"]
    assert ids(tree) == {"EA102"}


def matched_by(**where: Any) -> Tree:
    """Return an Envoy that speaks TLS to those PDPs alone that `where` labels, as Envoy Gateway."""
    tree = copy.deepcopy(base("remote"))
    pdp = find(tree, "pdp")
    labels = {"name": "backend/tls/0"}
    metadata = {"filter_metadata": {"envoy.transport_socket_match": labels}}
    socket = pdp.pop("transport_socket")
    pdp["transport_socket_matches"] = [
        {"name": "tls", "match": where.get("match", labels), "transport_socket": socket}
    ]
    (locality,) = pdp["load_assignment"]["endpoints"]
    holders = {"locality": [locality], "endpoints": locality["lb_endpoints"]}
    for holder in holders.get(where.get("labelled", ""), ()):
        holder["metadata"] = metadata
    return tree


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"labelled": "endpoints"}, set()),
        ({"labelled": "locality"}, set()),
        ({"match": {}}, set()),
        ({}, {"EA701"}),  # nobody matches, and there is no default
        ({"labelled": "endpoints", "match": {"name": "another"}}, {"EA701"}),
    ],
    ids=["endpoints", "locality", "all", "none", "others"],
)
def test_tls_to_the_pdp_by_match(where: dict[str, Any], expected: set[str]) -> None:
    assert ids(matched_by(**where)) == expected


@pytest.mark.parametrize(
    ("rule", "left_out"), [("EA702", "validation_context"), ("EA704", "tls_certificates")]
)
def test_tls_by_match_is_judged_as_any(rule: str, left_out: str) -> None:
    tree = matched_by(labelled="endpoints")
    (match,) = find(tree, "pdp")["transport_socket_matches"]
    del match["transport_socket"]["typed_config"]["common_tls_context"][left_out]
    assert ids(tree) == {rule}


def test_what_leads_nowhere_needs_no_question() -> None:
    tree = copy.deepcopy(base("http"))
    find(tree, "hcm")["http_filters"] = find(tree, "hcm")["http_filters"][-1:]
    route = find(tree, "route")
    del route["route"]
    route["direct_response"] = {"status": 200}
    assert ids(tree) == set()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not Envoy configuration"),
        ("[]", "not Envoy configuration"),
        ("lsten: 1", "not Envoy configuration"),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n", "a Kubernetes object"),
        ("name: crm\nworkload_id: spiffe://x.example/crm\nprotocol: mcp\n", "envoy render` makes"),
        ("{", "not YAML"),
        ('{"name": 1', "not YAML"),
        ("admin: {}\nadmin: {}\n", "key `admin` stands twice"),
        ('{"admin": {}, "admin": {}}', "key `admin` stands twice"),
        ("admin: {}\n---\nadmin: {}\n", "only one document"),
        ("admin: !!binary aGVsbG8=\n", "tags are not supported"),
        ("admin: *nobody\n", "alias `nobody` has no value yet"),
        ("? [a]\n: 1\n", "a key must be text"),
        ("[" * 5000, "nested deeper"),
        ('{"admin":' * 5000, "nested deeper"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_no_configuration_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        judge([read_source(text.encode(), name="envoy")])


def test_aliases_do_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("authz_server.envoy_config.lint.message.VALUES_MAX", 10_000)

    def hundred(first: str, name: str) -> str:
        return f"[&{name} {first}" + f", *{name}" * 99 + "]"

    endpoints = hundred("{load_balancing_weight: 1}", "a")
    groups = hundred(f"{{lb_endpoints: {endpoints}}}", "b")
    clusters = hundred(f"{{name: c, load_assignment: {{endpoints: {groups}}}}}", "c")
    source = read_source(f"static_resources: {{clusters: {clusters}}}".encode(), name="envoy.yaml")
    with pytest.raises(ConfigurationError, match="too large"):
        judge([source])


def test_the_snippets_of_the_readme_let_nothing_past() -> None:
    readme = EXAMPLES.parent.joinpath("README.md").read_text()
    blocks = [yaml.safe_load(one) for one in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)]
    http, tcp = copy.deepcopy(base("http")), copy.deepcopy(base("tcp"))
    named = {one[0]["name"]: one for one in blocks if isinstance(one, list) and "name" in one[0]}
    find(http, "hcm")["http_filters"][:-1] = named["envoy.filters.http.ext_authz"]
    find(tcp, "chain")["filters"] = named["envoy.filters.network.ext_authz"]
    manager = next(one for one in blocks if isinstance(one, dict) and "normalize_path" in one)
    for key in manager:
        find(http, "hcm").pop(key)
    find(http, "hcm").update(manager)
    route = next(
        one for one in blocks if isinstance(one, dict) and "envoy.filters.http.ext_authz" in one
    )
    find(http, "virtual_host")["typed_per_filter_config"] = route
    for tree in (http, tcp):
        found = [finding for finding in lint(tree) if finding.rule.severity is Severity.ERROR]
        assert found == []
