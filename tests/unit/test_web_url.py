"""URLs that somebody is asked to call: one spelling, and nothing with two readings."""

import pytest

from authz_server.core.errors import InvalidValueError
from authz_server.core.web_url import WebUrl


@pytest.mark.parametrize(
    ("text", "canonical", "host"),
    [
        ("https://hook.example/done", "https://hook.example/done", "hook.example"),
        ("HTTPS://Hook.EXAMPLE:443", "https://hook.example/", "hook.example"),
        ("http://hook.example:80/", "http://hook.example/", "hook.example"),
        ("http://hook.example:443/", "http://hook.example:443/", "hook.example"),
        ("https://hook.example:0443/", "https://hook.example/", "hook.example"),
        ("https://hook.example?x=1", "https://hook.example/?x=1", "hook.example"),
        ("https://hook.example/%61%2d?x=%41", "https://hook.example/a-?x=%41", "hook.example"),
        ("https://hook.example/@x", "https://hook.example/@x", "hook.example"),
        (
            "https://xn--bcher-kva.example/",
            "https://xn--bcher-kva.example/",
            "xn--bcher-kva.example",
        ),
        ("http://127.0.0.1/", "http://127.0.0.1/", "127.0.0.1"),
        ("http://[::1]:8080/", "http://[::1]:8080/", "[::1]"),
        ("http://[0:0::0:1]/", "http://[::1]/", "[::1]"),
    ],
)
def test_one_spelling(text: str, canonical: str, host: str) -> None:
    url = WebUrl.parse(text)
    assert (url.text, url.host) == (canonical, host)
    assert WebUrl.parse(url.text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hook.example",
        "/done",
        "//hook.example/",
        "https:hook.example",
        "https:/hook.example",
        "https:///hook.example",
        "ftp://hook.example/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "gopher://hook.example/",
        # User information: what stands before `@` is for people to read, not for a resolver.
        "https://hook.example@collector.example/",
        "https://hook.example:443@collector.example/",
        "https://u:p@hook.example/",
        # WHATWG reads a backslash as `/`, RFC 3986 has none.
        "https://hook.example\\@collector.example/",
        "https://collector.example\\.hook.example/",
        "https:\\\\hook.example/",
        # Fragments, blanks and controls.
        "https://hook.example#@collector.example/",
        "https://hook.example/#x",
        "https://hook.example /",
        " https://hook.example/",
        "https://hook.example/\n",
        "https://hook.exam\tple/",
        "https://hook.example/\r\nx: y",
        "https://hook.example/\x00",
        # Names that a resolver maps to others, or not.
        "https://h\u00f6ok.example/",
        "https://hook\u3002example/",
        "https://hook\uff0eexample/",
        "https://\u24d7ook.example/",
        "https://hook.example\u2028/",
        "https://hook.example./",
        "https://hook..example/",
        "https://-hook.example/",
        "https://hook%2eexample/",
        "https://hook.example%00.collector.example/",
        "https://hook.example,collector.example/",
        # Addresses in other forms than dotted decimal.
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1.1/",
        "http://127.0.0.0x1/",
        "http://hook.example.0x7f/",
        "http://256.0.0.1/",
        "http://0/",
        "http://[::ffff:169.254.169.254]/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://[::1/",
        "http://::1/",
        "http://[::1]x/",
        "http://[fe80::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://[127.0.0.1]/",
        # Ports and paths.
        "https://hook.example:/",
        "https://hook.example:0/",
        "https://hook.example:65536/",
        "https://hook.example:x/",
        "https://hook.example:80:80/",
        "https://hook.example/../x",
        "https://hook.example//x",
        "https://hook.example/%2e%2e/x",
        "https://hook.example/%252e",
        "https://hook.example/" + "a" * 5000,
    ],
)
def test_what_is_no_url(text: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        WebUrl.parse(text)
    # SECURITY: the detail of a denial is shown and stored, the URL is not.
    assert "example" not in str(caught.value)
