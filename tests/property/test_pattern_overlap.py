"""Two patterns overlap exactly when some SPIFFE ID matches both."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import SpiffeId, SpiffeIdPattern
from authz_server.identity.pattern_overlap import overlap

_ROOT = "spiffe://d/"
# Every segment of up to five letters over a small alphabet, in which dots are special.
_SEGMENTS = [
    "".join(letters)
    for length in range(1, 6)
    for letters in itertools.product("ab.", repeat=length)
    if "".join(letters) not in {".", ".."}
]
_IDS = [SpiffeId.parse(_ROOT + segment) for segment in _SEGMENTS]


@st.composite
def _patterns(draw: st.DrawFn) -> str:
    head = draw(st.text("ab.", max_size=2))
    star = draw(st.sampled_from(["*", "*", ""]))
    tail = draw(st.text("ab.", max_size=2))
    return head + star + tail


def _parse(segment: str) -> SpiffeIdPattern:
    try:
        return SpiffeIdPattern.parse(_ROOT + segment)
    except InvalidValueError:
        assume(False)
        raise


@given(_patterns(), _patterns())
def test_one_segment_against_every_id_there_is(one: str, other: str) -> None:
    # Two letters before and after each star: if any id matches both, one of five letters does.
    first, second = _parse(one), _parse(other)
    witness = any(first.matches(id_) and second.matches(id_) for id_ in _IDS)
    assert overlap(first.text, second.text) is witness


@given(st.lists(st.tuples(_patterns(), _patterns()), min_size=2, max_size=3))
def test_paths_overlap_exactly_when_every_segment_does(pairs: list[tuple[str, str]]) -> None:
    for segment in itertools.chain(*pairs):
        _parse(segment)
    one = _ROOT + "/".join(pair[0] for pair in pairs)
    other = _ROOT + "/".join(pair[1] for pair in pairs)
    each = [overlap(_ROOT + first, _ROOT + second) for first, second in pairs]
    assert overlap(one, other) is all(each)
    assert overlap(other, one) is all(each)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("spiffe://d/a/*", "spiffe://d/*/b", True),
        ("spiffe://d/a/*", "spiffe://e/a/*", False),
        ("spiffe://d/a/*", "spiffe://d/a/*/c", False),
        ("spiffe://d/re*", "spiffe://d/*ch", True),
        ("spiffe://d/ab*", "spiffe://d/ac*", False),
        ("spiffe://d/*ab", "spiffe://d/*cb", False),
        ("spiffe://d/ab*bc", "spiffe://d/abc", False),
        ("spiffe://d/ab*c", "spiffe://d/abc", True),
    ],
)
def test_examples(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) is expected
