"""Any file of `envoy render` is refused with a reason, or is a configuration that always asks."""

import json
from collections.abc import Iterator
from typing import Any

from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap
from hypothesis import given, settings
from hypothesis import strategies as st

from authz_server.core.errors import ConfigurationError, Fault
from authz_server.envoy_config.bootstrap import bootstrap
from authz_server.envoy_config.messages import BEYOND_STUBS, tree_of
from authz_server.envoy_config.spec_file import EnvoySpec, parse_spec

_LABEL = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)
_HOST = st.from_regex(r"[a-z][a-z0-9]{0,8}(\.[a-z][a-z0-9]{0,8}){0,2}", fullmatch=True)
_ID = st.from_regex(r"spiffe://prod\.example(/[a-z0-9]{1,6}){1,3}", fullmatch=True)
_TEXT = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FF).filter(str.isprintable), min_size=1
)
_PORT = st.integers(1, 65535)
_LOCAL = st.builds("127.0.0.1:{}".format, _PORT) | st.builds("unix:///run/{}".format, _LABEL)
_ANYWHERE = _LOCAL | st.builds("10.0.0.{}:{}".format, st.integers(1, 9), _PORT)
_FILES = st.just({"certificate": "/c", "private_key": "/k", "trust_bundle": "/b"})
_SVID = _FILES | st.builds(
    lambda spiffe_id: {"agent": "unix:///agent.sock", "spiffe_id": spiffe_id}, _ID
)


@st.composite
def _pdps(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        return {"addresses": draw(st.lists(_LOCAL, min_size=1, max_size=3, unique=True))}
    addresses = draw(st.lists(_ANYWHERE, min_size=1, max_size=3, unique=True))
    pdp = {"addresses": addresses, "spiffe_id": draw(_ID)}
    return pdp | draw(st.just({}) | st.fixed_dictionaries({"timeout_s": st.floats(0.001, 10)}))


@st.composite
def _points(draw: st.DrawFn, name: str) -> dict[str, Any]:
    point = {
        "name": name,
        "listen": draw(_ANYWHERE),
        "upstream": draw(_ANYWHERE),
        "upstream_spiffe_id": draw(_ID),
        "protocol": draw(st.sampled_from(["http", "grpc", "mcp", "a2a", "tcp"])),
        "workload_id": draw(_ID),
        "bundle": draw(_TEXT),
        "labels": draw(st.dictionaries(_TEXT, _TEXT, max_size=2)),
    }
    if point["protocol"] == "tcp" and draw(st.booleans()):
        return point | {"domains": draw(st.lists(_HOST, max_size=2))}
    point["audience"] = draw(_TEXT)
    if point["protocol"] == "tcp":
        tunnel = st.builds("{}:{}".format, _HOST, _PORT)
        return point | {"tunnels": draw(st.lists(tunnel, min_size=1, max_size=2, unique=True))}
    forwarded = st.sampled_from(["SANITIZE_SET", "APPEND_FORWARD"])
    return point | {
        "domains": draw(st.lists(_HOST, min_size=1, max_size=2, unique=True)),
        "strip_delegation": draw(st.booleans()),
        "require_delegation": draw(st.booleans()),
        "forwarded_certificate": draw(forwarded),
    }


@st.composite
def _ways_out(draw: st.DrawFn, name: str) -> dict[str, Any]:
    way = {"name": name, "listen": draw(_LOCAL)}
    if draw(st.booleans()):
        peer = st.fixed_dictionaries({"upstream": _ANYWHERE, "spiffe_id": _ID})
        return way | {"hosts": draw(st.dictionaries(_HOST, peer, min_size=1, max_size=3))}
    return way | {"protocol": "tcp", "upstream": draw(_ANYWHERE), "spiffe_id": draw(_ID)}


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(_LABEL, min_size=1, max_size=3, unique=True))
    cut = draw(st.integers(0, len(names)))
    file: dict[str, Any] = {
        "svid": draw(_SVID),
        "pdp": draw(_pdps()),
        "enforcement_points": [draw(_points(name)) for name in names[:cut]],
        "outbound": [draw(_ways_out(name)) for name in names[cut:]],
    }
    if draw(st.booleans()):
        file["admin"] = "unix:///admin.sock"
    return file


def _faults(data: bytes) -> tuple[Fault, ...]:
    try:
        parse_spec(data, file="points.yaml")
    except ConfigurationError as error:
        return error.faults
    return ()


def _parsed(file: object) -> EnvoySpec | None:
    data = json.dumps(file).encode()
    if faults := _faults(data):
        # Two that listen at one address are drawn now and then; nothing else may be wrong.
        assert all("is where another part" in fault.message for fault in faults), faults
        return None
    return parse_spec(data, file="points.yaml")


def _mappings(tree: object) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if type(tree) is list else ():
        yield from _mappings(value)


# Each example is a whole configuration, at 20 ms: a quarter of what the profile asks for.
@settings(max_examples=settings().max_examples // 4)
@given(files())
def test_whatever_is_rendered(file: dict[str, Any]) -> None:
    if (spec := _parsed(file)) is None:
        return
    message = bootstrap(
        spec.points, node=spec.node, admin_socket=spec.admin_socket, outbound=spec.outbound
    )
    tree = tree_of(message)
    _asks_at_every_way_in_and_proves_at_every_way_out(tree)
    # The one overlay that is not in the messages.
    beyond = {name for names in BEYOND_STUBS.values() for name in names}
    for mapping in _mappings(tree):
        for name in beyond & mapping.keys():
            del mapping[name]
    assert tree_of(Bootstrap.parse(bytes(message))) == tree


def _asks_at_every_way_in_and_proves_at_every_way_out(tree: dict[str, Any]) -> None:
    resources = tree["static_resources"]
    for listener in resources["listeners"]:
        kinds = [str(mapping.get("@type")) for mapping in _mappings(listener)]
        asks = any(kind.endswith("ext_authz.v3.ExtAuthz") for kind in kinds)
        proves = any(kind.endswith("DownstreamTlsContext") for kind in kinds)
        assert asks == proves == (listener.get("traffic_direction") != "OUTBOUND")
    for mapping in _mappings(tree):
        assert mapping.get("failure_mode_allow", False) is False
        assert mapping.get("allow_partial_message", False) is False
        assert not mapping.keys() & {"disabled", "filter_enabled", "shadow_mode"}
        if str(mapping.get("@type")).endswith("UpstreamTlsContext"):
            assert "match_typed_subject_alt_names" in json.dumps(mapping)
    for cluster in resources["clusters"]:
        if "transport_socket" not in cluster:
            addresses = list(_mappings(cluster["load_assignment"]))
            hosts = {each["address"] for each in addresses if "port_value" in each}
            assert hosts <= {"127.0.0.1"}


_KEYS = st.sampled_from(
    [
        "name",
        "listen",
        "pdp",
        "svid",
        "addresses",
        "domains",
        "hosts",
        "tunnels",
        "labels",
        "agent",
        "enforcement_points",
        "outbound",
        "protocol",
        "upstream",
        "spiffe_id",
        "access_log",
        "admin",
    ]
)
_ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.sampled_from(["tcp", "unix:///x", "127.0.0.1:1", "spiffe://a/b", "*", "stdout"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(_KEYS | st.text(min_size=1, max_size=3), inner)
    ),
    max_leaves=6,
)


def _with(value: Any, path: list[str], new: object) -> Any:
    if not path:
        return new
    if isinstance(value, list):
        return [_with(item, path, new) for item in value] or new
    below = value if isinstance(value, dict) else {}
    return below | {path[0]: _with(below.get(path[0]), path[1:], new)}


@settings(max_examples=settings().max_examples // 2)
@given(files(), st.lists(st.tuples(st.lists(_KEYS, max_size=3), _ODD), min_size=1, max_size=3))
def test_anything_else_is_a_fault_with_a_place(
    file: dict[str, Any], changes: list[tuple[list[str], object]]
) -> None:
    value: Any = file
    for path, odd in changes:
        value = _with(value, path, odd)
    for fault in _faults(json.dumps(value, indent=1).encode()):
        assert fault.file == "points.yaml"
        assert fault.line
        assert fault.message
        assert not fault.message.startswith("`` ")
        assert "pydantic" not in fault.message


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_bytes_are_a_point_or_a_fault(data: bytes) -> None:
    assert _faults(data)
