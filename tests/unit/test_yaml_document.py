"""YAML as configuration: one meaning for one text, and a place for every fault."""

import pytest

from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.yaml_document import DEPTH_MAX, SOURCE_CHARS_MAX, YamlDocument


def _parse(text: str | bytes) -> YamlDocument:
    return YamlDocument.parse(text if isinstance(text, bytes) else text.encode(), file="f.yaml")


def _faults(text: str | bytes) -> list[tuple[int, int, str]]:
    with pytest.raises(ConfigurationError) as caught:
        _parse(text)
    return [(fault.line, fault.column, fault.message) for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # Booleans, numbers and dates of YAML 1.1 that YAML 1.2 reads as text.
        ("off", "off"),
        ("no", "no"),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("0777", "0777"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("1e3", "1e3"),
        (".inf", ".inf"),
        ("9" * 19, "9" * 19),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("-7", -7),
        ("0", 0),
        ("1.5", 1.5),
        ("'1'", "1"),
        ('"true"', "true"),
        ("'~'", "~"),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert _parse(f"key: {text}").value == {"key": value}


def test_a_byte_order_mark_does_not_shift_positions() -> None:
    document = _parse(b"\xef\xbb\xbfa: 1\n")
    assert document.value == {"a": 1}
    assert document.fault(("a",), "m").column == 4


def test_an_empty_text_is_none() -> None:
    assert _parse("").value is None
    assert _parse("# nothing\n").value is None


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (
            "a: 1\nb: 2\na: 3\nb: 4\n",
            [(3, 1, "key `a` stands twice"), (4, 1, "key `b` stands twice")],
        ),
        ("a: {b: 1, b: 2}\n", [(1, 11, "key `b` stands twice")]),
        ("on:\n  a: 1\n", []),
        ("1: a\n", [(1, 1, "key `1` must be text; quote it")]),
        ("true: a\n", [(1, 1, "key `true` must be text; quote it")]),
        ("? [a]\n: b\n", [(1, 3, "a key must be text")]),
        ("a: &x 1\nb: *x\n", [(2, 4, "aliases are not supported; repeat the value")]),
        ("a: !!str 1\n", [(1, 4, "tags are not supported; quote a value to make it text")]),
        (
            "a: !!python/name:os.system\n",
            [(1, 4, "tags are not supported; quote a value to make it text")],
        ),
        ("--- 1\n--- 2\n", [(2, 1, "only one document may stand in the file")]),
        ("a: b: c\n", [(1, 5, "not YAML: mapping values are not allowed in this context")]),
        ("a: 'x\n", [(2, 1, "not YAML: found unexpected end of stream")]),
        ("\ta: 1\n", [(1, 1, "not YAML: found character that cannot start any token")]),
        (b"a: 1\nb: \xff\n", [(2, 0, "not UTF-8")]),
        (b"a: \x00\n", [(0, 0, "not YAML: control characters are not allowed")]),
        ("[" * 100_000, [(1, DEPTH_MAX + 2, f"nested deeper than {DEPTH_MAX} levels")]),
    ],
)
def test_faults_and_their_places(text: str | bytes, faults: list[tuple[int, int, str]]) -> None:
    if faults:
        assert _faults(text) == faults
    else:
        _parse(text)


def test_aliases_cannot_make_a_small_text_large() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{this}: &{this} [*{before}, *{before}]\n"
        for before, this in zip("abcdefg", "bcdefgh", strict=True)
    )
    assert len(_faults(bomb)) == 14


def test_a_fault_stands_at_the_scalar_or_at_the_key_of_a_collection() -> None:
    document = _parse("one:\n  two:\n    - three\n    - {four: 5}\n")

    def place(*path: str | int) -> tuple[int, int]:
        fault = document.fault(path, "m")
        return fault.line, fault.column

    assert place("one", "two", 0) == (3, 7)
    assert place("one", "two") == (2, 3)
    assert place("one", "two", 1) == (4, 7)
    assert place("one", "two", 1, "four") == (4, 14)
    assert document.key_fault(("one", "two", 1, "four"), "m").column == 8
    # What does not exist is shown at the nearest part that does.
    assert place("one", "missing", "deeper") == (1, 1)
    assert place("one", "two", 1, "missing") == (4, 7)


def test_a_fault_shows_its_line_unless_it_is_very_long() -> None:
    document = _parse("a: 1\nb: 'x'\n")
    assert document.fault(("b",), "wrong") == Fault(
        file="f.yaml", message="wrong", line=2, column=4, source="b: 'x'"
    )
    long = _parse("a: " + "x" * SOURCE_CHARS_MAX)
    assert long.fault(("a",), "wrong").source == ""


def test_a_line_with_credentials_is_not_shown() -> None:
    document = _parse("ledger: {url: 'postgresql://authz:secret@db/authz', mode: x}\na: b@c\n")
    assert document.fault(("ledger", "mode"), "wrong").source == ""
    assert document.fault(("a",), "wrong").source == "a: b@c"
