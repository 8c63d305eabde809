"""Our canonical JSON is that of the `rfc8785` library, byte for byte, however it was spelled."""

import json
import struct
from typing import cast

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from authz_server.core.canonical_json import dumps
from authz_server.core.errors import InvalidValueError
from authz_server.core.strict_json import JsonValue, loads

# Where the two orders of names disagree: around U+D800, above U+FFFF, and below both.
CHARACTERS = st.sampled_from(
    'aZ0\x00\x1f\x7f"\\/é\u2028\ud7ff\ue000\ufb33\uffff\U00010000😀\U0010ffff'
)
TEXTS = st.text(CHARACTERS, max_size=4) | st.text(st.characters(codec="utf-8"), max_size=8)
INTEGERS = st.integers(-(2**53 - 1), 2**53 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
# Around every exponent at which Python or ECMAScript changes its form.
EDGES = st.builds(
    lambda digits, exponent: float(f"{digits}e{exponent}"),
    st.integers(-99_999, 99_999),
    st.integers(-12, 24),
)
NUMBERS_IN_TEXT = st.sampled_from(["1.0,", "2e-7", ".0", "-0.0]", "1e+22}"])
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | EDGES | TEXTS | NUMBERS_IN_TEXT,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(TEXTS, inner, max_size=6),
    max_leaves=30,
)


@given(VALUES)
@example({"\ue000": 1, "\U00010000": 2})  # UTF-16: D800 DC00 before E000
@example({"a": [1.0, -0.0, 1e-7, 1e21, 1e20, 0.0001, 1e-5, 9007199254740994.0], "😀": "x"})
@example(["1.0,", {"x": 1.0}])
def test_equal_to_the_library(value: JsonValue) -> None:
    assert dumps(value) == rfc8785.dumps(value)


@given(st.binary(min_size=8, max_size=8))
def test_every_double_has_the_form_of_the_library(data: bytes) -> None:
    (number,) = struct.unpack("<d", data)
    if number == number and abs(number) != float("inf"):
        assert dumps(number) == rfc8785.dumps(number)


# RFC 8785 appendix B: IEEE 754 bits and what ECMAScript makes of them.
APPENDIX_B = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}


@pytest.mark.parametrize(("bits", "text"), APPENDIX_B.items())
def test_the_numbers_of_the_rfc(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert dumps(number).decode() == text


def test_the_names_of_the_rfc() -> None:
    """RFC 8785 §3.2.3, its example of sorting."""
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    ordered = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    found = json.loads(dumps(dict.fromkeys(names)), object_pairs_hook=list)
    assert [name for name, _ in found] == ordered


@given(VALUES, st.booleans(), st.integers(0, 3))
def test_every_spelling_of_a_value_has_one_form(
    value: JsonValue, ascii_only: bool, blanks: int
) -> None:
    spelled = json.dumps(value, ensure_ascii=ascii_only, indent=blanks or None).encode()
    assert dumps(loads(spelled, depth_max=100, members_max=10_000)) == dumps(value)


@pytest.mark.parametrize("beside", [None, 1.0, "😀"])
def test_a_lone_surrogate_has_no_form(beside: JsonValue) -> None:
    values: list[JsonValue] = []
    for text in ("\ud800", "\udfff", "a\udfff1\udfff", "\udfff1\udfff"):
        values += [text, [text, beside], {text: beside}, {"a": {"b": [beside, text]}}]
    for value in values:
        with pytest.raises(InvalidValueError):
            dumps(value)


def test_a_copy_is_made_only_of_what_needs_one() -> None:
    """The value itself stays as it was."""
    value: JsonValue = {"b": [1.0], "a": {"😀": 1e-7, "\uffff": 2}}
    before = json.dumps(value)
    dumps(value)
    assert json.dumps(value) == before
    assert isinstance(cast("dict[str, list[float]]", value)["b"][0], float)
