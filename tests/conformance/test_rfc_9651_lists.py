"""`Delegation-Chain` is a List of Tokens as RFC 9651 §4.2.1 parses it, and nothing more.

The cases follow the shape of the HTTP working group's structured-field tests for lists; members are
compact JWSs, the only Tokens admitted.
"""

import pytest

from authz_server.core.delegation import presented_chain
from authz_server.core.errors import Reason
from authz_server.core.request import Headers
from tests.harness.chains import POLICY, reason_of

A, B = "eyJh.YQ.YQ", "eyJi.Yg.Yg"


def parse(raw: list[str]) -> tuple[str, ...]:
    lines = tuple(line.encode("latin-1") for line in raw)
    fields = {"txn-token": (b"eyJ0.dA.dA",), "delegation-chain": lines}
    presented = presented_chain(Headers(fields=fields), POLICY)
    assert presented is not None
    return presented.links


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([f"{A}, {B}"], (A, B)),  # basic list
        ([""], ()),  # empty list
        ([f" {A}, {B}"], (A, B)),  # leading SP list
        ([A], (A,)),  # single item list
        ([f"{A},{B}"], (A, B)),  # no whitespace list
        ([f"{A} , {B}"], (A, B)),  # extra whitespace list
        ([f"{A}\t,\t{B}"], (A, B)),  # tab separated list
        ([f"{A}, {B}  "], (A, B)),  # trailing SP
    ],
)
def test_lists(raw: list[str], expected: tuple[str, ...]) -> None:
    assert parse(raw) == expected


@pytest.mark.parametrize(
    "raw",
    [
        [f"{A}, {B},"],  # trailing comma list
        [f"{A},,{B}"],  # empty item list
        [f"\t{A}"],  # leading tab: §4.2 discards SP only
        [f"{A}\t"],  # trailing tab
        [f"{A} {B}"],  # no separator
        [f"{A}\n, {B}"],
        [f"{A}, \u00a0{B}"],
    ],
)
def test_lists_that_must_fail(raw: list[str]) -> None:
    assert reason_of(lambda: parse(raw)) is Reason.MALFORMED_TOKEN


@pytest.mark.parametrize("raw", [[A, B], [A, "", B], [A, ""]])
def test_a_list_over_several_lines_is_legal_there_and_refused_here(raw: list[str]) -> None:
    assert reason_of(lambda: parse(raw)) is Reason.DUPLICATE_HEADER


@pytest.mark.parametrize(
    "item", [f"{A};a=1", f"({A})", f'"{A}"', "1", "1.5", ":YQ==:", "?1", "@1", "*"]
)
def test_other_items_are_refused(item: str) -> None:
    assert reason_of(lambda: parse([item])) is Reason.MALFORMED_TOKEN
    assert reason_of(lambda: parse([f"{A}, {item}"])) is Reason.MALFORMED_TOKEN
