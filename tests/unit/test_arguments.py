"""Declared arguments: what a pointer finds in a body, and what it refuses to guess."""

import json

import pytest

from authz_server.core import limits
from authz_server.core.arguments import NamedArguments, Pointer, attribute_value, declared
from authz_server.core.attributes import AMBIGUOUS
from authz_server.core.errors import InvalidValueError

# RFC 6901 §5, its document and every pointer of it that leads to a scalar or a list.
RFC_6901 = json.loads(
    r"""{"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5,
    "k\"l": 6, " ": 7, "m~n": 8}"""
)


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/foo", ("bar", "baz")),
        ("/foo/0", "bar"),
        ("/", 0),
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ('/k"l', 6),
        ("/ ", 7),
        ("/m~0n", 8),
    ],
)
def test_the_pointers_of_the_rfc(pointer: str, value: object) -> None:
    parsed = Pointer.parse(pointer)
    assert declared({"x": parsed}, RFC_6901) == {"x": value}
    assert str(parsed) == pointer


@pytest.mark.parametrize("text", ["a", "a/b", "#/a", "/~", "/~2", "/a~", "/a/-", "/" + "a" * 512])
def test_what_is_no_pointer(text: str) -> None:
    with pytest.raises(InvalidValueError):
        Pointer.parse(text)


def test_an_escaped_escape_is_read_once() -> None:
    assert Pointer.parse("/~01").tokens == ("~1",)  # RFC 6901 §4: first `~1`, then `~0`


def value_of(pointer: str, body: str) -> object:
    return declared({"x": Pointer.parse(pointer)}, json.loads(body))["x"]


@pytest.mark.parametrize(
    ("pointer", "body"),
    [
        ("/a", "{}"),
        ("/a", '{"a": null}'),
        ("/a/b", "{}"),
        ("/a/b", '{"a": null}'),
        ("/a/b", '{"a": {}}'),
        ("/a/0", '{"a": []}'),
        ("/a/1/b", '{"a": [{"b": 1}]}'),
        ("", "null"),
    ],
)
def test_what_the_body_lacks_is_none(pointer: str, body: str) -> None:
    assert value_of(pointer, body) is None


@pytest.mark.parametrize(
    ("pointer", "body"),
    [
        ("/a", '{"a": {"b": 1}}'),
        ("/a", '{"a": [[1]]}'),
        ("/a", '{"a": [{}]}'),
        ("/a/b", '{"a": 1}'),
        ("/a/b", '{"a": "text"}'),
        ("/a/b", '{"a": [{"b": 1}]}'),
        ("/a/0", '{"a": "text"}'),
        ("/a/01", '{"a": [1, 2]}'),
        ("/a/\u0661", '{"a": [1, 2]}'),  # an ARABIC-INDIC DIGIT ONE is no index
        ("/a/9999999999", '{"a": [1]}'),
        ("/a", "[1]"),
        ("/a", '"a"'),
        ("/a", json.dumps({"a": [0] * (limits.ARGUMENT_ITEMS_MAX + 1)})),
    ],
)
def test_another_shape_than_declared_is_ambiguous(pointer: str, body: str) -> None:
    assert value_of(pointer, body) is AMBIGUOUS


@pytest.mark.parametrize(
    "body",
    [
        '{"Amount": 9}',
        '{"amount": 1, "AMOUNT": 9}',
        '{"amount": 1, "\\u0041mount": 9}',
    ],
)
def test_a_name_in_another_letter_case_is_ambiguous(body: str) -> None:
    """A case-insensitive reader takes the other one, or the last of both."""
    assert value_of("/amount", body) is AMBIGUOUS
    assert value_of("/order/amount", f'{{"order": {body}}}') is AMBIGUOUS
    assert value_of("/0/amount", f"[{body}]") is AMBIGUOUS
    assert NamedArguments(json.loads(body), {}).get("amount") is AMBIGUOUS


def test_letters_that_fold_to_ascii_are_other_cases_too() -> None:
    assert value_of("/key", '{"\u212aey": 9}') is AMBIGUOUS  # KELVIN SIGN, as Go folds it
    assert value_of("/sum", '{"\u017fum": 9}') is AMBIGUOUS  # LONG S


def test_an_object_on_an_array_index_has_its_own_member() -> None:
    assert value_of("/a/0", '{"a": {"0": "x"}}') == "x"


def test_a_list_as_long_as_may_be_is_a_tuple() -> None:
    items = [0] * limits.ARGUMENT_ITEMS_MAX
    assert attribute_value(items) == tuple(items)


def test_declared_arguments_hide_those_of_the_same_name() -> None:
    document = {"amount": "low", "order": {"amount": 7}, "tags": ["a", "b"], "deep": {"x": 1}}
    arguments = NamedArguments(
        document, declared({"amount": Pointer.parse("/order/amount")}, document)
    )
    assert arguments["amount"] == 7
    assert arguments["tags"] == ("a", "b")
    assert arguments["deep"] is AMBIGUOUS
    assert arguments.get("missing") is None
    assert sorted(arguments) == ["amount", "deep", "order", "tags"]
    assert len(arguments) == 4
