"""Destinations of tunnels and labels of listeners: one reading, or a fault of the request."""

from hypothesis import given
from hypothesis import strategies as st

from authz_server.core import limits
from authz_server.core.attributes import Protocol
from authz_server.core.errors import RequestFault
from authz_server.core.paths import canonical_destination
from authz_server.core.request import AccessRequest, RouteContext

_ODD = st.text(st.sampled_from("abAZ09.-_:[]@,;/?#%+ \0ä"), max_size=40)
_KEYS = st.sampled_from(
    ["node", "bundle", "resource", "audience", "workload_id", "protocol", "require_delegation"]
)
_VALUES = st.sampled_from(["", "true", "false", "tcp", "http", "spiffe://a.example/b", "x"])


@given(_ODD | st.from_regex(r"[a-z.]{1,9}:[0-9]{1,6}", fullmatch=True))
def test_a_destination_is_its_own_canonical_form(authority: str) -> None:
    try:
        host, port = canonical_destination(authority)
    except RequestFault:
        return
    assert 0 < port < 65536
    assert canonical_destination(f"{host}:{port}") == (host, port)
    assert not set(host) & set("@,/?# ")
    assert len(host) <= limits.HOST_BYTES_MAX


@given(st.dictionaries(_KEYS | _ODD, _VALUES | _ODD, max_size=6))
def test_labels_describe_a_listener_or_deny(labels: dict[str, str]) -> None:
    request = AccessRequest(
        peer_certificate="",
        peer_principal="",
        source_address=None,
        listener=None,
        destination_principal="",
        node=labels.get("node"),
        sni=None,
        http=None,
        extensions={},
        labels=labels,
    )
    try:
        route = RouteContext.of(request)
    except RequestFault:
        return
    assert route.protocol is Protocol.TCP
    # Nothing that was said is left out.
    assert route.require_delegation == (labels.get("require_delegation") == "true")
    assert route.bundle == labels.get("bundle", "default")
    assert route.resource == labels.get("resource")
    assert route.audience == labels.get("audience")
