"""One spelling or a denial: canonical path, query and host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz_server.core.attributes import AMBIGUOUS
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.paths import Target, canonical_host, parse_query

CANONICAL = [
    ("/", "/", ()),
    ("/a", "/a", ("a",)),
    ("/a/", "/a", ("a",)),  # a deny rule on /admin must hold for /admin/
    ("/%61dmin", "/admin", ("admin",)),  # RFC 3986 §6.2.2.2: unreserved escapes are equivalent
    ("/a%7Eb", "/a~b", ("a~b",)),
    ("/caf%c3%a9", "/caf%C3%A9", ("caf%C3%A9",)),  # §6.2.2.1: hex digits in upper case
    ("/a%20b", "/a%20b", ("a%20b",)),
    ("/x%3Fy", "/x%3Fy", ("x%3Fy",)),  # an escaped `?` is data, not the start of a query
    ("/message:send", "/message:send", ("message:send",)),
    ("/...", "/...", ("...",)),
    ("/.well-known/x", "/.well-known/x", (".well-known", "x")),
    ("/a..b/c", "/a..b/c", ("a..b", "c")),
]

REFUSED = [
    "",  # CONNECT
    "*",  # OPTIONS *
    "admin",
    "http://a.example/admin",
    "//evil/admin",
    "/public//admin",
    "/admin//",
    "/public/../admin",
    "/public/./admin",
    "/..",
    "/.",
    "/admin/.",
    "/public/%2e%2e/admin",
    "/public/%2E./admin",
    "/public/..%2fadmin",
    "/public/..%2Fadmin",
    "/public/..%5cadmin",
    "/public\\..\\admin",
    "/%252e%252e/admin",
    "/a%25",
    "/%2500",
    "/admin%00",
    "/admin%00.html",
    "/admin%0a",
    "/admin%7f",
    "/admin%09",
    "/admin%20",
    "/%20admin",
    "/a/%20/b",
    "/admin;x=1",
    "/..;/admin",
    "/admin%3bx",
    "/public#/../admin",
    "/public%23/admin",
    "/admin x",
    "/adm\u00edn",
    "/adm\u0131n",
    "/\uff0e\uff0e/admin",
    "/a\x00b",
    "/a\nb",
    "/a\tb",
    "/%c0%ae%c0%ae/admin",  # overlong "."
    "/%ff",
    "/%e2%82",
    "/%u002e/admin",
    "/%",
    "/%4",
    "/%zz",
    "/a|b",
    '/a"b',
    "/a<b>",
    "/a^b",
    "/a`b",
    "/a{b}",
    "/a?x#y",
    "/a?x y",
    "/a?\xff",
]


@pytest.mark.parametrize(("raw", "path", "segments"), CANONICAL)
def test_canonical_path(raw: str, path: str, segments: tuple[str, ...]) -> None:
    target = Target.parse(raw + "?q=/../%2f")
    assert (target.path, target.query, target.segments) == (path, "q=/../%2f", segments)


@pytest.mark.parametrize("raw", REFUSED)
def test_path_with_two_readings_is_denied(raw: str) -> None:
    with pytest.raises(RequestFault) as caught:
        Target.parse(raw)
    assert caught.value.reason is Reason.NON_CANONICAL_PATH


def test_path_bounds() -> None:
    for raw in ("/" + "a" * 4096, "/a?" + "b" * 8192, "/a" * 257):
        with pytest.raises(RequestFault) as caught:
            Target.parse(raw)
        assert caught.value.reason is Reason.OVERSIZE
    assert len(Target.parse("/a" * 256).segments) == 256


@given(st.text(min_size=1, max_size=40))
def test_any_text_is_canonical_or_a_fault(text: str) -> None:
    try:
        target = Target.parse("/" + text)
    except RequestFault:
        return
    # What is accepted is a fixed point: canonicalising again changes nothing.
    again = Target.parse(target.path)
    assert again.path == target.path
    assert target.path.isascii()
    assert not {"", ".", ".."} & set(target.segments)


PCHAR = st.sampled_from([*list("ab.~-_%/;\\?#:@!$&'()*+,= "), "%2e", "%2F", "%5c", "%61", "%C3%A9"])


@given(st.lists(PCHAR, max_size=12))
def test_path_alphabet_has_one_reading(parts: list[str]) -> None:
    """Whatever is accepted decodes to text in which no separator or dot segment appears anew."""
    import urllib.parse

    try:
        target = Target.parse("/" + "".join(parts))
    except RequestFault:
        return
    decoded = urllib.parse.unquote(target.path)
    assert urllib.parse.unquote(decoded) == decoded
    assert decoded.count("/") == target.path.count("/")
    assert not {".", ".."} & set(decoded.split("/"))
    assert "\\" not in decoded
    assert ";" not in decoded


def test_query_is_decoded_and_duplicates_are_ambiguous() -> None:
    assert parse_query("a=1&b=%2e%2e%2F&c+d=x+y&e") == {"a": "1", "b": "../", "c d": "x y", "e": ""}
    assert parse_query("") == {}
    duplicate = parse_query("id=1&%69d=2&id=3")
    assert duplicate["id"] is AMBIGUOUS


@pytest.mark.parametrize("query", ["a=%", "a=%zz", "%f=1", "a=%ff", "a=%c0%ae"])
def test_malformed_query_is_denied(query: str) -> None:
    with pytest.raises(RequestFault) as caught:
        parse_query(query)
    assert caught.value.reason is Reason.MALFORMED_REQUEST


def test_query_bounds() -> None:
    with pytest.raises(RequestFault) as caught:
        parse_query("&".join(f"a{i}" for i in range(257)))
    assert caught.value.reason is Reason.OVERSIZE


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("crm.tools.example", "crm.tools.example"),
        ("CRM.Tools.Example:443", "crm.tools.example"),
        ("localhost:1", "localhost"),
        ("192.0.2.1:443", "192.0.2.1"),
        ("[0:0:0:0:0:0:0:1]:443", "[::1]"),
        ("[2001:DB8:0::0001]", "[2001:db8::1]"),
        ("10.example", "10.example"),
        ("xn--dmin-53d.example", "xn--dmin-53d.example"),
        ("127.0.0.1:8080", "127.0.0.1"),
        ("[::1]:8080", "[::1]"),
        ("[2001:DB8::1]", "[2001:db8::1]"),
        ("svc_a.ns.svc.cluster.local", "svc_a.ns.svc.cluster.local"),
    ],
)
def test_canonical_host(authority: str, host: str) -> None:
    assert canonical_host(authority) == host


@pytest.mark.parametrize(
    "authority",
    [
        "",
        ":80",
        "a.example.",
        ".a.example",
        "a..example",
        "a.example@b.example",
        "user:pw@a.example",
        "a.example,b.example",
        "a.example, b.example",
        "a.example b.example",
        "a.example:",
        "a.example:0",
        "a.example:65536",
        "a.example:8a",
        "a.example:80:80",
        "a.example/x",
        "a.example?x",
        "a.example#x",
        "a.example\\x",
        "a.example%2e",
        "a.example\n",
        "a.example\x00",
        "\u0430.example",
        "[::1",
        "[::1]x",
        "[::1]:",
        "::1",
        "-a.example",
        "a" * 300,
        "2130706433",
        "0177.0.0.1",
        "127.1",
        "0x7f.0.0.1",
        "127.0.0.0x1",
        "0x",
        "192.0.2.256",
        "example.1",
        "[::ffff:10.0.0.1]",
        "[::ffff:a00:1]",
        "[1]",
        "[:]",
        "[::1::]",
        "[1.2.3.4]",
    ],
)
def test_malformed_host_is_denied(authority: str) -> None:
    with pytest.raises(RequestFault) as caught:
        canonical_host(authority)
    assert caught.value.reason is Reason.MALFORMED_REQUEST
