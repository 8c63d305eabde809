"""Envoy's messages as values and as text: nothing that matters is left out, or read otherwise."""

import dataclasses
import json
from datetime import timedelta

import pytest
import yaml
from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterCommonLbConfig
from envoy_data_plane.envoy.config.core.v3 import Http1ProtocolOptions
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import BufferSettings, ExtAuthz
from envoy_data_plane.envoy.extensions.filters.http.mcp.v3 import Mcp
from envoy_data_plane.envoy.type.v3 import Percent

from authz_server.envoy_config.messages import ALWAYS_WRITTEN, BEYOND_STUBS, packed, tree_of
from authz_server.envoy_config.text import Form, written
from authz_server.envoy_config.tree import Tree


def test_a_misspelt_field_or_a_wrong_type_fails_when_it_is_written() -> None:
    with pytest.raises(Exception, match="failure_mode_alow"):
        ExtAuthz(failure_mode_alow=False)  # type: ignore[call-arg]
    with pytest.raises(Exception, match="valid integer"):
        BufferSettings(max_request_bytes="many")  # type: ignore[arg-type]


def test_false_is_written_where_it_matters() -> None:
    # The message itself cannot tell it from a field that nobody set.
    assert "failure_mode_allow" not in ExtAuthz(failure_mode_allow=False).to_dict()
    assert tree_of(ExtAuthz(failure_mode_allow=False)) == {"failure_mode_allow": False}
    assert tree_of(BufferSettings())["allow_partial_message"] is False
    assert tree_of(Http1ProtocolOptions()) == {"accept_http_10": False}
    never_panic = ClusterCommonLbConfig(healthy_panic_threshold=Percent(value=0))
    assert tree_of(never_panic) == {"healthy_panic_threshold": {"value": 0.0}}


@pytest.mark.parametrize("table", [ALWAYS_WRITTEN], ids=["always-written"])
def test_fields_that_are_always_written_exist(table: dict[type, frozenset[str]]) -> None:
    for kind, names in table.items():
        assert names <= {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", BEYOND_STUBS, ids=lambda kind: kind.__name__)
def test_fields_beyond_the_stubs_are_not_in_them_yet(kind: type) -> None:
    known = {field.name for field in dataclasses.fields(kind)}
    assert not BEYOND_STUBS[kind] & known, "set it in the message, and drop it from BEYOND_STUBS"


def test_only_listed_fields_go_round_the_messages() -> None:
    assert tree_of(packed(Mcp(), attribute_source="VERIFY")) == {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.mcp.v3.Mcp",
        "attribute_source": "VERIFY",
    }
    with pytest.raises(KeyError, match="attribute_sauce"):
        packed(Mcp(), attribute_sauce="VERIFY")
    with pytest.raises(KeyError, match="failure_mode_allow"):
        packed(ExtAuthz(), failure_mode_allow="true")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "0.25s"),
        (900, "900s"),
        (0.000001, "0.000001s"),
        (86400 * 400, "34560000s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    cluster = Cluster(connect_timeout=timedelta(seconds=seconds))
    assert tree_of(cluster)["connect_timeout"] == text


AWKWARD = ["n", "Yes", "off", "~", "", "1e3", "0x1f", "1:30", "- a", "a: b", "a #b", "\n", "é", "#"]


@pytest.mark.parametrize("form", Form)
def test_text_is_text_to_every_reader(form: Form) -> None:
    tree: Tree = {"names": AWKWARD, "n": {"y": False, "zero": 0, "half": 0.5, "empty": {}}}
    text = written(tree, form)
    assert (json.loads if form is Form.JSON else yaml.safe_load)(text) == tree
    if form is Form.YAML:
        # What a reader of YAML 1.1, such as Envoy's, would take for something else is quoted.
        assert '"n":\n  "y": false' in text
        assert all(f'- "{value}"' in text for value in ("n", "Yes", "off", "1e3", "0x1f", "1:30"))


def test_parts_that_are_the_same_are_written_twice() -> None:
    shared = {"a": "b"}
    assert "&" not in written({"x": shared, "y": shared}, Form.YAML)
