"""The strict reader accepts a part of what `json` accepts, and reads it the same."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from authz_server.core.errors import InvalidValueError
from authz_server.core.jose import decode_base64url, encode_base64url
from authz_server.core.strict_json import loads

INTEGERS = st.integers(-(2**53 - 1), 2**53 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=40,
)
# Text that is nearly JSON: fragments in any order.
FRAGMENTS = st.lists(
    st.sampled_from(
        ["{", "}", "[", "]", ",", ":", '"', "\\", " ", "\n", "\ufeff"]  # noqa: RUF005
        + ['"a"', '"b"', '""', '"\\ud800"', '"\\ud83d\\ude00"', "null", "true", "NaN"]
        + ["1", "-0", "0.1", "1.5", "1e5", "9007199254740993"]
    ),
    max_size=20,
).map("".join)


def same(left: object, right: object) -> bool:
    """Compare with types, so that 1, 1.0 and true are three values."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@given(VALUES, st.booleans())
def test_what_python_writes_is_read_back(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert same(loads(text.encode(), depth_max=100, members_max=10_000), value)


@given(
    FRAGMENTS.map(str.encode) | st.binary() | st.text().map(lambda t: t.encode("utf-8", "replace"))
)
def test_what_is_accepted_is_read_as_json_reads_it(data: bytes) -> None:
    try:
        value = loads(data, depth_max=8, members_max=30)
    except InvalidValueError:
        return
    assert same(value, json.loads(data))


@given(VALUES, st.integers(0, 6), st.integers(0, 30))
def test_bounds_hold_exactly(value: object, depth_max: int, members_max: int) -> None:
    def depth(item: object) -> int:
        children = (
            item.values() if isinstance(item, dict) else item if isinstance(item, list) else None
        )
        return 0 if children is None else 1 + max(map(depth, children), default=0)

    def members(item: object) -> int:
        children = (
            item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        )
        return len(children) + sum(map(members, children))

    within = depth(value) <= depth_max and members(value) <= members_max
    try:
        loads(json.dumps(value).encode(), depth_max=depth_max, members_max=members_max)
    except InvalidValueError:
        assert not within
    else:
        assert within


@given(st.dictionaries(TEXT, INTEGERS, min_size=1), st.data())
def test_a_repeated_key_is_found_however_it_is_spelled(
    members: dict[str, int], data: st.DataObject
) -> None:
    pairs = [(json.dumps(key), value) for key, value in members.items()]
    key = data.draw(st.sampled_from(sorted(members)))
    spelled = (
        '"' + "".join("".join(f"\\u{unit:04x}" for unit in _utf16(char)) for char in key) + '"'
    )
    pairs.insert(data.draw(st.integers(0, len(pairs))), (spelled, 0))
    text = "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}"
    try:
        loads(text.encode(), depth_max=2, members_max=10_000)
    except InvalidValueError:
        return
    raise AssertionError(text)


def _utf16(char: str) -> list[int]:
    data = char.encode("utf-16-be")
    return [int.from_bytes(data[index : index + 2], "big") for index in range(0, len(data), 2)]


@given(
    st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)
)
def test_a_number_is_exact_or_refused(text: str) -> None:
    from fractions import Fraction

    try:
        value = loads(text.encode(), depth_max=0, members_max=0)
    except InvalidValueError:
        return
    assert isinstance(value, int | float)
    assert math.isfinite(value)
    assert Fraction(repr(value)) == Fraction(text)


@given(st.binary())
def test_base64url_round_trips(data: bytes) -> None:
    if data:
        assert decode_base64url(encode_base64url(data)) == data


@given(st.text("ABab01-_", min_size=1, max_size=12))
def test_base64url_has_one_spelling(text: str) -> None:
    try:
        data = decode_base64url(text)
    except InvalidValueError:
        return
    assert encode_base64url(data) == text


# What the count of names could be misled by: quotes and colons inside texts, blanks around colons.
NAMES = st.text(st.sampled_from('a"\\: \t\n\r01'), max_size=4)
TRICKY = st.recursive(
    NAMES | st.integers(0, 9),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(NAMES, inner), max_size=4),
    max_leaves=12,
)


def spell(value: object, blanks: st.DataObject) -> str:
    """Write JSON in which a list of pairs is an object, names given twice included."""

    def blank() -> str:
        return blanks.draw(st.sampled_from(["", "", " ", "\t\n", "\r "]))

    if isinstance(value, list) and value and all(isinstance(item, tuple) for item in value):
        members = [
            f"{blank()}{json.dumps(name)}{blank()}:{blank()}{spell(item, blanks)}{blank()}"
            for name, item in value
        ]
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(spell(item, blanks) for item in value) + "]"
    return json.dumps(value)


@given(TRICKY, st.data())
def test_a_name_stands_twice_exactly_where_it_does(value: object, data: st.DataObject) -> None:
    text = spell(value, data)
    twice = False

    def pairs(found: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal twice
        twice = twice or len(dict(found)) != len(found)
        return dict(found)

    expected = json.loads(text, object_pairs_hook=pairs)
    try:
        read = loads(text.encode(), depth_max=100, members_max=10_000)
    except InvalidValueError:
        assert twice
    else:
        assert not twice
        assert same(read, expected)
