"""`x-forwarded-client-cert`: its two forms, and whose word about whom counts."""

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from authz_server.core import limits
from authz_server.core.callers import CallerPolicy, ProvedCaller, prove_caller
from authz_server.core.errors import InvalidValueError, Reason, RequestFault
from authz_server.core.request import AccessRequest, Headers, HttpRequest
from authz_server.core.revocation import check_caller
from authz_server.core.snapshot import Revocations
from authz_server.core.spiffe import SpiffeId, SpiffeIdPattern
from authz_server.core.xfcc import XfccElement, parse_xfcc
from authz_server.demo.authority import envoy_certificate
from tests.harness.chains import NOW, PARTNER, STRANGER, TRUST, reason_of, svid, workload

EDGE, GATEWAY, ENVOY = (workload(f"proxy/{name}") for name in ("edge", "gateway", "crm"))
AGENT, OTHER = workload("agent/a"), workload("agent/admin")
HASH = "ab" * 32
POLICY = CallerPolicy(
    trusted_proxies=(
        SpiffeIdPattern.parse("spiffe://td.example/proxy/edge"),
        SpiffeIdPattern.parse("spiffe://td.example/proxy/gate*"),
    )
)


def request(peer: SpiffeId | None, *lines: str) -> AccessRequest:
    fields = {"x-forwarded-client-cert": tuple(line.encode() for line in lines)} if lines else {}
    http = HttpRequest(
        method="GET", scheme="https", host="crm", path="/", headers=Headers(fields=fields)
    )
    return AccessRequest(
        peer_certificate=envoy_certificate(svid(peer)) if peer else "",
        peer_principal=str(peer) if peer else "",
        source_address=None,
        listener=None,
        destination_principal=str(ENVOY),
        node=None,
        sni=None,
        http=http,
        extensions={},
    )


def prove(peer: SpiffeId | None, *lines: str, policy: CallerPolicy = POLICY) -> ProvedCaller:
    return prove_caller(request(peer, *lines), policy, TRUST, NOW)


def hop(by: SpiffeId | str, uri: SpiffeId | str, more: str = "") -> str:
    return f"By={by};Hash={HASH};URI={uri}{more}"


def as_json(*hops: tuple[SpiffeId | str, SpiffeId | str]) -> str:
    return json.dumps([{"by": [str(by)], "hash": HASH, "uri": [str(uri)]} for by, uri in hops])


# --- whose word counts -------------------------------------------------------------------------

OWN = hop(ENVOY, EDGE)  # what the Envoy that asks adds about its own peer
BELIEVED: Mapping[str, tuple[SpiffeId, str, SpiffeId, str, tuple[SpiffeId, ...]]] = {
    # peer, header -> principal, assurance, proxies
    "one proxy, header passed on": (EDGE, hop(EDGE, AGENT), AGENT, "proxied", (EDGE,)),
    "one proxy, our Envoy appends": (EDGE, f"{hop(EDGE, AGENT)},{OWN}", AGENT, "proxied", (EDGE,)),
    "a blank after the comma": (EDGE, f"{hop(EDGE, AGENT)}, {OWN}", AGENT, "proxied", (EDGE,)),
    "two proxies": (
        GATEWAY,
        f"{hop(EDGE, AGENT)},{hop(GATEWAY, EDGE)},{hop(ENVOY, GATEWAY)}",
        AGENT,
        "proxied",
        (GATEWAY, EDGE),
    ),
    "what a client forged stays behind it": (
        EDGE,
        f"{hop(EDGE, OTHER)},{hop(EDGE, AGENT)},{OWN}",
        AGENT,
        "proxied",
        (EDGE,),
    ),
    "a proxy that calls by itself": (EDGE, OWN, EDGE, "mtls", ()),
    "a proxy in front of a proxy": (
        GATEWAY,
        f"{hop(GATEWAY, EDGE)},{hop(ENVOY, GATEWAY)}",
        EDGE,
        "proxied",
        (GATEWAY,),
    ),
    "json": (EDGE, as_json((EDGE, AGENT), (ENVOY, EDGE)), AGENT, "proxied", (EDGE,)),
    "json with a forged element": (
        EDGE,
        as_json((EDGE, OTHER), (EDGE, AGENT), (ENVOY, EDGE)),
        AGENT,
        "proxied",
        (EDGE,),
    ),
    "not a proxy of ours: ignored": (AGENT, hop(AGENT, OTHER), AGENT, "mtls", ()),
    "not a proxy of ours: not even read": (AGENT, "\x00[", AGENT, "mtls", ()),
    "a name that only looks trusted": (ENVOY, hop(ENVOY, OTHER), ENVOY, "mtls", ()),
}


@pytest.mark.parametrize(
    ("peer", "header", "principal", "assurance", "proxies"), BELIEVED.values(), ids=BELIEVED
)
def test_the_principal_is_the_first_whom_no_trusted_proxy_is(
    peer: SpiffeId,
    header: str,
    principal: SpiffeId,
    assurance: str,
    proxies: tuple[SpiffeId, ...],
) -> None:
    proved = prove(peer, header)
    assert (proved.spiffe_id, proved.assurance, proved.proxies) == (principal, assurance, proxies)
    assert (proved.certificate_sha256 == HASH) == bool(proxies)


def test_without_the_header_the_proxy_is_the_principal() -> None:
    assert prove(EDGE).spiffe_id == EDGE


def test_without_configuration_nobody_is_believed() -> None:
    proved = prove(EDGE, hop(EDGE, AGENT), policy=CallerPolicy())
    assert (proved.spiffe_id, proved.assurance) == (EDGE, "mtls")


def test_without_a_certificate_the_header_is_nothing() -> None:
    assert reason_of(lambda: prove(None, hop(EDGE, AGENT))) is Reason.NO_PRINCIPAL


REFUSED: Mapping[str, tuple[str, Reason]] = {
    "written by another proxy": (hop(GATEWAY, AGENT), Reason.MALFORMED_PRINCIPAL),
    "written by nobody": (f"Hash={HASH};URI={AGENT}", Reason.MALFORMED_PRINCIPAL),
    "written by two": (f"By={EDGE};By={ENVOY};URI={AGENT}", Reason.MALFORMED_PRINCIPAL),
    "a client without a certificate": (hop(EDGE, ""), Reason.MALFORMED_PRINCIPAL),
    "no URI member": (f"By={EDGE};Hash={HASH};DNS=a", Reason.MALFORMED_PRINCIPAL),
    # spiffe-22: one URI with a semicolon and two URIs are the same bytes.
    "a semicolon in the URI": (hop(EDGE, f"{AGENT};URI={OTHER}"), Reason.MALFORMED_PRINCIPAL),
    "a semicolon and any other member": (hop(EDGE, AGENT, ";x=1"), Reason.MALFORMED_PRINCIPAL),
    "not a SPIFFE ID": (hop(EDGE, "https://td.example/a"), Reason.MALFORMED_PRINCIPAL),
    "upper case": (hop(EDGE, "spiffe://TD.example/a"), Reason.MALFORMED_PRINCIPAL),
    "dot segment": (hop(EDGE, "spiffe://td.example/agent/../a"), Reason.MALFORMED_PRINCIPAL),
    "trust domain only": (hop(EDGE, "spiffe://td.example"), Reason.MALFORMED_PRINCIPAL),
    "another domain": (hop(EDGE, workload("a", STRANGER)), Reason.UNKNOWN_TRUST_DOMAIN),
    "nothing": ("", Reason.MALFORMED_PRINCIPAL),
    "no pairs": ("hello", Reason.MALFORMED_PRINCIPAL),
    "not ASCII": (hop(EDGE, "spiffe://td.example/agent/а"), Reason.MALFORMED_PRINCIPAL),
    "an open quote swallows the proxy's word": (
        f'{hop(EDGE, OTHER)};Subject=",{hop(EDGE, AGENT)}',
        Reason.MALFORMED_PRINCIPAL,
    ),
    "an open quote that a later one closes": (
        f'{hop(EDGE, OTHER)};Subject=",{hop(EDGE, AGENT)};Subject="CN=a"',
        Reason.MALFORMED_PRINCIPAL,
    ),
    "json and text": (f"{as_json((EDGE, OTHER))},{hop(EDGE, AGENT)}", Reason.MALFORMED_PRINCIPAL),
    "text and json": (f"{hop(EDGE, AGENT)},{as_json((EDGE, OTHER))}", Reason.MALFORMED_PRINCIPAL),
    "json with a repeated member": (
        f'[{{"by":["{EDGE}"],"uri":["{AGENT}"],"uri":["{OTHER}"]}}]',
        Reason.MALFORMED_PRINCIPAL,
    ),
}


@pytest.mark.parametrize(("header", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_exact_is_refused(header: str, expected: Reason) -> None:
    assert reason_of(lambda: prove(EDGE, header)) is expected


def test_two_lines_are_refused() -> None:
    refused = reason_of(lambda: prove(EDGE, hop(EDGE, AGENT), hop(EDGE, OTHER)))
    assert refused is Reason.DUPLICATE_HEADER


def test_a_federated_client_is_found() -> None:
    partner = workload("agent/p", PARTNER)
    assert prove(EDGE, hop(EDGE, partner)).spiffe_id == partner


def test_the_first_untrusted_caller_ends_the_walk() -> None:
    """Left of it stands what that caller wrote, in the shape that a naive reader takes first."""
    forged = f"{hop(EDGE, OTHER)},{hop(AGENT, OTHER)}"
    header = f"{forged},{hop(EDGE, AGENT)},{OWN}"
    assert str(OTHER) in header.split(",", maxsplit=1)[0]
    assert prove(EDGE, header).spiffe_id == AGENT


@pytest.mark.parametrize("revoked", [EDGE, AGENT])
def test_a_revoked_proxy_denies_as_a_revoked_caller_does(revoked: SpiffeId) -> None:
    revocations = Revocations(spiffe_id=frozenset({str(revoked)}))
    proved = prove(EDGE, hop(EDGE, AGENT))
    assert reason_of(lambda: check_caller(proved, revocations)) is Reason.REVOKED
    check_caller(proved, Revocations(spiffe_id=frozenset({str(OTHER)})))


def test_the_proxy_s_own_certificate_still_counts() -> None:
    odd = replace(request(EDGE, hop(EDGE, AGENT)), peer_principal=str(GATEWAY))
    with pytest.raises(RequestFault) as caught:
        prove_caller(odd, POLICY, TRUST, NOW)
    assert caught.value.reason is Reason.MALFORMED_PRINCIPAL


# --- the two forms -----------------------------------------------------------------------------


def test_every_member_of_the_text_form() -> None:
    text = (
        f'By=spiffe://d/p;Hash={HASH};Cert="-----BEGIN%20C%0A=";Chain="a=b,c;d";'
        r'Subject="CN=\"x, y\",O=z";URI=spiffe://d/a;DNS=a.d;DNS=b.d;Issuer=""'
        ",by=spiffe://d/q;uri="
    )
    assert parse_xfcc(text) == (
        XfccElement(by=("spiffe://d/p",), uris=("spiffe://d/a",), certificate_sha256=HASH),
        XfccElement(by=("spiffe://d/q",), uris=()),
    )


def test_the_json_form_needs_no_escaping_of_ours() -> None:
    text = json.dumps([{"by": ["spiffe://d/p"], "uri": ["a,By=x;URI=y"], "hash": HASH, "dns": []}])
    assert parse_xfcc(text)[0].uris == ("a,By=x;URI=y",)


@pytest.mark.parametrize(
    "text",
    [
        *("By", "By=a;", "By=a,", ",By=a", "By=a,,By=b", ";By=a", " By=a", "By=a ;URI=b", "By=a=b"),
        *('By="a', 'By="a"b', r"By=a\b", "Foo=a", "By=a\n", "Hash=xyz", f"Hash={HASH};Hash={HASH}"),
        *("[]", "[", "{}", "[1]", '[{"by":1}]', '[{"by":[1]}]', '[{"foo":"a"}]'),
        *('[{"by":[["a"]]}]', '[{"by":"\\ud800"}]', "null", '[{"hash":["ab","cd"]}]'),
        ",".join(["By=a"] * (limits.XFCC_ELEMENTS_MAX + 1)),
        "By=" + "a" * limits.XFCC_BYTES_MAX,
    ],
)
def test_anything_else_is_neither(text: str) -> None:
    with pytest.raises(InvalidValueError):
        parse_xfcc(text)
