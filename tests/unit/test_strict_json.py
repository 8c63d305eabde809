"""JSON that two readers could take for two things is refused."""

import pytest

from authz_server.core.errors import InvalidValueError
from authz_server.core.strict_json import loads

REFUSED = {
    "byte order mark": b'\xef\xbb\xbf{"a":1}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "invalid UTF-8": b'"\xff"',
    "overlong UTF-8": b'"\xc0\xaf"',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "empty": b"",
    "blank": b" ",
    "duplicate key": b'{"a":1,"a":1}',
    "duplicate key, escaped": b'{"a":1,"\\u0061":2}',
    "duplicate key, nested": b'[{"x":{"a":1,"a":2}}]',
    "duplicate empty key": b'{"":1,"":2}',
    "lone high surrogate": b'"\\ud800"',
    "lone low surrogate": b'"\\uDC00"',
    "swapped surrogates": b'"\\udc00\\ud800"',
    "lone surrogate in a key": b'{"\\ud800":1}',
    "NaN": b"NaN",
    "Infinity": b"[Infinity]",
    "-Infinity": b'{"a":-Infinity}',
    "integer over 2^53-1": b"9007199254740992",
    "integer under -(2^53-1)": b"-9007199254740992",
    "5000-digit integer": b"9" * 5000,
    "integer a float cannot keep": b"9007199254740993.0",
    "overflow": b"1e400",
    "negative overflow": b"-1e400",
    "underflow": b"1e-400",
    "huge exponent": b"1e999999999999999999999",
    "tiny exponent": b"1e-999999999999999999999",
    "too precise": b"0.1000000000000000055511151231257827",
    "300-digit fraction": b"0." + b"1" * 300,
    "trailing data": b"{} {}",
    "trailing comma": b"[1,]",
    "comment": b"/**/1",
    "single quotes": b"{'a':1}",
    "unquoted key": b"{a:1}",
    "control character": b'"a\x00b"',
    "newline in a string": b'"a\nb"',
    "leading zero": b"01",
    "plus sign": b"+1",
    "hexadecimal": b"0x1",
    "bare point": b"1.",
    "unterminated": b'{"a":',
    "unterminated string": b'"' * 9,
    "nested too deep": b"[" * 9 + b"]" * 9,
    "nested beyond recursion": b"[" * 100_000 + b"]" * 100_000,
    "nested beyond recursion, open": b'{"a":' * 100_000,
    "too many elements": b"[" + b"1," * 20 + b"1]",
    "too many members over levels": b"[[1,1,1,1,1,1,1,1,1,1],[1,1,1,1,1,1,1,1,1,1]]",
}

ACCEPTED: dict[str, tuple[bytes, object]] = {
    "object": (b' {"a": [1, -2.5, true, null, "x"]} ', {"a": [1, -2.5, True, None, "x"]}),
    "largest integer": (b"9007199254740991", 2**53 - 1),
    "smallest integer": (b"-9007199254740991", -(2**53 - 1)),
    "a tenth": (b"0.1", 0.1),
    "trailing zeros": (b"1.500000000000000000000", 1.5),
    "exponent": (b"1e5", 1e5),
    "largest double": (b"1.7976931348623157e308", 1.7976931348623157e308),
    "zero with an exponent": (b"0e400", 0.0),
    "surrogate pair": (b'"\\ud83d\\ude00"', "\U0001f600"),
    "escaped backslash before ud800": (b'"\\\\ud800"', "\\ud800"),
    "equal keys in sibling objects": (b'[{"a":1},{"a":2}]', [{"a": 1}, {"a": 2}]),
    "keys that differ in case": (b'{"a":1,"A":2}', {"a": 1, "A": 2}),
    "keys equal after NFC only": ('{"\u00e9":1,"e\u0301":2}'.encode(), {"\u00e9": 1, "e\u0301": 2}),
    "commas and brackets in a string": (b'"' + b"[,{" * 50 + b'"', "[,{" * 50),
    "scalar": (b"null", None),
    "empty containers": (b"[[],{}]", [[], {}]),
}


def parse(data: bytes) -> object:
    return loads(data, depth_max=8, members_max=20)


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_refused(data: bytes) -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse(data)
    assert str(caught.value)


@pytest.mark.parametrize(("data", "expected"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(data: bytes, expected: object) -> None:
    assert parse(data) == expected


@pytest.mark.parametrize("depth_max", [0, 1, 2, 7])
def test_depth_is_exact(depth_max: int) -> None:
    def nested(depth: int) -> bytes:
        return (
            b'{"a":' * (depth // 2)
            + b"[" * (depth - depth // 2)
            + (b"]" * (depth - depth // 2) + b"}" * (depth // 2))
        )

    if depth_max:
        loads(nested(depth_max), depth_max=depth_max, members_max=100)
    with pytest.raises(InvalidValueError, match="deep"):
        loads(nested(depth_max + 1), depth_max=depth_max, members_max=100)


@pytest.mark.parametrize("members", [1, 2, 19, 20])
def test_members_are_counted_exactly(members: int) -> None:
    data = b"[" + b",".join([b'"[,,{"'] * members) + b"]"
    loads(data, depth_max=1, members_max=members)
    with pytest.raises(InvalidValueError, match="members"):
        loads(data, depth_max=1, members_max=members - 1)
