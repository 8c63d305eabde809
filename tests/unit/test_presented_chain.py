"""What the delegation headers may look like before anything in them is decoded."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from authz_server.core import limits
from authz_server.core.chain import PresentedChain
from authz_server.core.delegation import presented_chain
from authz_server.core.errors import Reason
from authz_server.core.request import Headers
from tests.harness.chains import POLICY, reason_of

R = "eyJ0.eyJp.c2ln"
L = [f"eyJ{n}.eyJ{n}.c2l{n}" for n in range(6)]


def present(
    root: Sequence[bytes] | str | None, chain: Sequence[bytes] | str | None = None
) -> PresentedChain | None:
    fields: dict[str, tuple[bytes, ...]] = {}
    for name, value in (("txn-token", root), ("delegation-chain", chain)):
        if isinstance(value, str):
            fields[name] = (value.encode("latin-1"),)
        elif value is not None:
            fields[name] = tuple(value)
    return presented_chain(Headers(fields=fields), POLICY)


def test_no_delegation_headers() -> None:
    assert present(None) is None


def test_root_alone() -> None:
    assert present(R) == PresentedChain(root=R, links=())


@pytest.mark.parametrize(
    "text",
    [
        f"{L[0]},{L[1]}",
        f"{L[0]}, {L[1]}",
        f"{L[0]} , {L[1]}",
        f"{L[0]}\t,\t{L[1]}",
        f"  {L[0]},{L[1]}  ",
    ],
)
def test_blanks_as_rfc_9651_has_them(text: str) -> None:
    assert present(R, text) == PresentedChain(root=R, links=(L[0], L[1]))


def test_one_to_four_links() -> None:
    for count in range(1, 5):
        assert present(R, ", ".join(L[:count])) == PresentedChain(root=R, links=tuple(L[:count]))


def test_an_empty_list_has_no_members() -> None:
    # RFC 9651 §3.1: an empty List is not serialised at all; an empty field parses to one.
    assert present(R, "") == PresentedChain(root=R, links=())
    assert present(R, "  ") == PresentedChain(root=R, links=())


LONG = "A" * limits.TOKEN_BYTES_MAX
CASES: Mapping[str, tuple[object, object, Reason]] = {
    "two root lines": ([R.encode(), R.encode()], None, Reason.DUPLICATE_HEADER),
    "two root lines, joined": (f"{R},{R}", None, Reason.DUPLICATE_HEADER),
    "two root lines, joined with blank": (f"{R}, {R}", None, Reason.DUPLICATE_HEADER),
    "two chain lines": (R, [L[0].encode(), L[1].encode()], Reason.DUPLICATE_HEADER),
    "two chain lines, one empty": (R, [L[0].encode(), b""], Reason.DUPLICATE_HEADER),
    "chain without root": (None, L[0], Reason.CHAIN_BROKEN),
    "empty chain without root": (None, "", Reason.CHAIN_BROKEN),
    "five links": (R, ",".join(L[:5]), Reason.CHAIN_TOO_DEEP),
    "a thousand commas": (R, "," * 1000, Reason.CHAIN_TOO_DEEP),
    "root too long": (f"{LONG}.A.A", None, Reason.OVERSIZE),
    "root of 64 kB": ("A" * 65536, None, Reason.OVERSIZE),
    "link too long": (R, f"{LONG}.A.A", Reason.OVERSIZE),
    "chain too long": (R, ",".join([f"{'A' * 4090}.A.A"] * 4), Reason.OVERSIZE),
    "empty root": ("", None, Reason.MALFORMED_TOKEN),
    "blank root": (" ", None, Reason.MALFORMED_TOKEN),
    "blank before root": (f" {R}", None, Reason.MALFORMED_TOKEN),
    "root with a scheme": (f"Bearer {R}", None, Reason.MALFORMED_TOKEN),
    "root of two parts": ("a.b", None, Reason.MALFORMED_TOKEN),
    "root of four parts": ("a.b.c.d", None, Reason.MALFORMED_TOKEN),
    "root with an empty part": ("a..c", None, Reason.MALFORMED_TOKEN),
    "root with obs-fold made a blank": ("eyJ0 .eyJp.c2ln", None, Reason.MALFORMED_TOKEN),
    "root with a bare CR": ("eyJ0\r.eyJp.c2ln", None, Reason.MALFORMED_TOKEN),
    "root with a newline at its end": (f"{R}\n", None, Reason.MALFORMED_TOKEN),
    "root with NUL": (f"{R}\x00", None, Reason.MALFORMED_TOKEN),
    "root not ASCII": ("eyJ0.eyJp.c2l\xff", None, Reason.MALFORMED_TOKEN),
    "root with padding": ("eyJ0.eyJp.c2==", None, Reason.MALFORMED_TOKEN),
    "trailing comma": (R, f"{L[0]},", Reason.MALFORMED_TOKEN),
    "leading comma": (R, f",{L[0]}", Reason.MALFORMED_TOKEN),
    "empty member": (R, f"{L[0]},,{L[1]}", Reason.MALFORMED_TOKEN),
    "comma alone": (R, ",", Reason.MALFORMED_TOKEN),
    "parameter": (R, f"{L[0]};a=1", Reason.MALFORMED_TOKEN),
    "inner list": (R, f"({L[0]} {L[1]})", Reason.MALFORMED_TOKEN),
    "string": (R, f'"{L[0]}"', Reason.MALFORMED_TOKEN),
    "byte sequence": (R, ":YWJj:", Reason.MALFORMED_TOKEN),
    "boolean": (R, "?1", Reason.MALFORMED_TOKEN),
    "integer": (R, "42", Reason.MALFORMED_TOKEN),
    "token that is no JWS": (R, "abc", Reason.MALFORMED_TOKEN),
    "token that starts with a digit": (R, "1yJ0.eyJp.c2ln", Reason.MALFORMED_TOKEN),
    "link with obs-fold made a blank": (R, "eyJ0 .eyJp.c2ln", Reason.MALFORMED_TOKEN),
    "link with a bare CR": (R, "eyJ0.ey\rJp.c2ln", Reason.MALFORMED_TOKEN),
    "leading tab": (R, f"\t{L[0]}", Reason.MALFORMED_TOKEN),
    "trailing tab": (R, f"{L[0]}\t", Reason.MALFORMED_TOKEN),
    "newline": (R, f"{L[0]},\n{L[1]}", Reason.MALFORMED_TOKEN),
    "no-break space": (R, f"{L[0]},\xa0{L[1]}", Reason.MALFORMED_TOKEN),
    "link not ASCII": (R, "eyJ0.eyJp.c2l\xff", Reason.MALFORMED_TOKEN),
}


@pytest.mark.parametrize(("root", "chain", "expected"), CASES.values(), ids=CASES)
def test_refused(
    root: Sequence[bytes] | str | None, chain: Sequence[bytes] | str | None, expected: Reason
) -> None:
    assert reason_of(lambda: present(root, chain)) is expected


def test_an_operator_may_set_lower_bounds() -> None:
    headers = Headers(fields={"txn-token": (R.encode(),), "delegation-chain": (b"a.b.c,a.b.c",)})
    one_link = replace(POLICY, links_max=1)
    assert reason_of(lambda: presented_chain(headers, one_link)) is Reason.CHAIN_TOO_DEEP
    few_bytes = replace(POLICY, total_bytes_max=len(R) + 10)
    assert reason_of(lambda: presented_chain(headers, few_bytes)) is Reason.OVERSIZE
