"""The grammar of SPIFFE-ID §2, position by position over all 256 one-byte characters."""

import string

import pytest

from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import SpiffeId, SpiffeIdPattern, TrustDomain

CHARACTERS = [chr(code) for code in range(256)]
DOMAIN_CHARACTERS = set(string.ascii_lowercase + string.digits + "._-")  # §2.1
PATH_CHARACTERS = set(string.ascii_letters + string.digits + "._-")  # §2.2


def accepted(template: str) -> set[str]:
    """Return the characters which, put in place of `?`, make a SPIFFE ID."""
    found = set()
    for character in CHARACTERS:
        text = template.replace("?", character)
        try:
            spiffe_id = SpiffeId.parse(text)
        except InvalidValueError:
            continue
        assert str(spiffe_id) == text, "what is accepted is canonical"
        found.add(character)
    return found


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # The separator makes another, valid, path: td.example with the path /x/a, or a/b.
        ("spiffe://?/a", DOMAIN_CHARACTERS),
        ("spiffe://td?x/a", DOMAIN_CHARACTERS | {"/"}),
        ("spiffe://td?/a", DOMAIN_CHARACTERS),
        ("spiffe://?td/a", DOMAIN_CHARACTERS),
        ("spiffe://td/?a", PATH_CHARACTERS),
        ("spiffe://td/a?b", PATH_CHARACTERS | {"/"}),
        ("spiffe://td/a?", PATH_CHARACTERS),
        ("spiffe://td/?", PATH_CHARACTERS - {"."}),
        ("spiffe://td/a/?/b", PATH_CHARACTERS - {"."}),
        ("spiffe://td/.?", PATH_CHARACTERS - {"."}),
        ("?spiffe://td/a", set()),
        ("spiffe?://td/a", set()),
        ("spiffe:?/td/a", {"/"}),
        ("?piffe://td/a", {"s"}),
        ("spiffe://td?a", {"/"}),
    ],
)
def test_one_character_in_each_position(template: str, expected: set[str]) -> None:
    assert accepted(template) == expected


@pytest.mark.parametrize("template", ["?", "td?", "?td", "t?d"])
def test_one_character_of_a_trust_domain(template: str) -> None:
    found = set()
    for character in CHARACTERS:
        try:
            TrustDomain.parse(template.replace("?", character))
        except InvalidValueError:
            continue
        found.add(character)
    assert found == DOMAIN_CHARACTERS


@pytest.mark.parametrize("template", ["spiffe://td/?", "spiffe://td/a?b", "spiffe://td/agent-?/x"])
def test_a_pattern_admits_a_star_more_than_an_id(template: str) -> None:
    for character in CHARACTERS:
        text = template.replace("?", character)
        try:
            pattern = SpiffeIdPattern.parse(text)
        except InvalidValueError:
            assert character not in accepted(template) | {"*"}
        else:
            assert character in accepted(template) | {"*"}
            assert pattern.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe:///a",
        "spiffe://td.example",
        "spiffe://td.example/",
        "spiffe://td.example/agent/a/",
        "spiffe://td.example//a",
        "spiffe://td.example/a//b",
        "spiffe://td.example/./a",
        "spiffe://td.example/a/..",
        "spiffe://td.example/agent/%61",
        "spiffe://td.example:8080/a",
        "spiffe://user@td.example/a",
        "spiffe://td.example/a?x=1",
        "spiffe://td.example/a#x",
        "SPIFFE://td.example/a",
        "spiffe://TD.example/a",
        "spiffe://td.example/a\n",
        "spiffe://td.example\n/a",
        "spiffe://td.example/a\x00",
        "spiffe://td.example/agent/a;URI=spiffe://td.example/agent/admin",
        "spiffe://td.example/\u0430",  # Cyrillic
        "https://td.example/agent/a",
        "spiffe://td.example/" + "a" * 2029,
        "spiffe://" + "a" * 256 + "/a",
    ],
)
def test_what_is_no_workload_id(text: str) -> None:
    with pytest.raises(InvalidValueError):
        SpiffeId.parse(text)


def test_the_longest_ids() -> None:
    assert len(str(SpiffeId.parse("spiffe://td.example/" + "a" * 2028))) == 2048  # §2.3
    assert TrustDomain.parse("a" * 255).name == "a" * 255


def test_parts() -> None:
    spiffe_id = SpiffeId.parse("spiffe://td.example/ns/prod/sa/agent")
    assert spiffe_id.trust_domain == TrustDomain("td.example")
    assert spiffe_id.path == "/ns/prod/sa/agent"
    assert spiffe_id.trust_domain.uri == "spiffe://td.example"


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("spiffe://td/agent/*", "spiffe://td/agent/a", True),
        ("spiffe://td/agent/*", "spiffe://td/agent/a/b", False),
        ("spiffe://td/agent/*", "spiffe://other/agent/a", False),
        ("spiffe://td/agent/r-*", "spiffe://td/agent/r-1", True),
        ("spiffe://td/agent/r-*", "spiffe://td/agent/x-1", False),
        ("spiffe://td/*/a", "spiffe://td/x/a", True),
        ("spiffe://td/a.b", "spiffe://td/axb", False),
        ("spiffe://td/a", "spiffe://td/a", True),
    ],
)
def test_patterns(pattern: str, text: str, expected: bool) -> None:
    assert SpiffeIdPattern.parse(pattern).matches(SpiffeId.parse(text)) is expected


@pytest.mark.parametrize(
    "text", ["spiffe://*/a", "spiffe://td*/a", "spiffe://td", "spiffe://td/**", "spiffe://td/a*b*"]
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(InvalidValueError):
        SpiffeIdPattern.parse(text)


def test_specificity_orders_patterns() -> None:
    texts = ["spiffe://td/*", "spiffe://td/agent-*", "spiffe://td/agent-1"]
    ordered = sorted(texts, key=lambda text: SpiffeIdPattern.parse(text).specificity)
    assert ordered == texts
