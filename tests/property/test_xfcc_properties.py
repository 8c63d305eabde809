"""`x-forwarded-client-cert`, whatever a client puts in front of it: it can deny itself, no more."""

import json
from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from authz_server.core.errors import InvalidValueError, RequestFault
from authz_server.core.xfcc import XfccElement, parse_xfcc
from tests.unit.test_xfcc_callers import AGENT, EDGE, ENVOY, HASH, OTHER, hop, prove

# The characters that mean something in either form, and pieces of what Envoy writes.
_PIECES = st.sampled_from(
    [*'",;=\\[]{}: \t\na', f"By={EDGE}", f"URI={OTHER}", 'Subject="', '";', "Hash=" + HASH, "By="]
)
_FORGED = st.lists(_PIECES, max_size=12).map("".join) | st.text(max_size=30)
# What Envoy adds after it: its own client, and with more details its quoted members too.
_OWN = f'By={ENVOY};Hash={HASH};Subject="O=\\"x\\", CN=y";URI={EDGE};DNS=edge.example'


@given(forged=_FORGED, subject=st.sampled_from(["", ';Subject="CN=a,b"', ';Subject=""']))
@example(forged=hop(EDGE, OTHER), subject="")
@example(forged=f'By={EDGE};URI={OTHER};Subject="', subject=';Subject="CN=a"')
@example(forged=f'By={EDGE};URI={OTHER};Subject="', subject=';Subject=""')
@example(forged="[", subject="")
def test_a_client_cannot_become_another_by_what_it_sends(forged: str, subject: str) -> None:
    for header in (
        f"{forged},{hop(EDGE, AGENT)}{subject}",
        f"{forged},{hop(EDGE, AGENT)}{subject},{_OWN}",
    ):
        try:
            proved = prove(EDGE, header)
        except (RequestFault, UnicodeEncodeError):
            continue
        assert proved.spiffe_id == AGENT


_TEXT = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), max_size=10)
_NAMES = st.lists(_TEXT, max_size=3)
_ELEMENTS = st.lists(
    st.tuples(_NAMES, _NAMES, st.sampled_from([None, HASH])), min_size=1, max_size=4
)


def expected(elements: Sequence[tuple[list[str], list[str], str | None]]) -> list[XfccElement]:
    return [
        XfccElement(by=tuple(by), uris=tuple(filter(None, uris)), certificate_sha256=digest)
        for by, uris, digest in elements
    ]


@given(_ELEMENTS)
def test_json_is_read_as_it_was_written(
    elements: list[tuple[list[str], list[str], str | None]],
) -> None:
    document = [
        {"by": by, "uri": uris} | ({"hash": digest} if digest else {})
        for by, uris, digest in elements
    ]
    assert list(parse_xfcc(json.dumps(document))) == expected(elements)


@given(_ELEMENTS)
def test_quoted_text_is_read_as_it_was_written(
    elements: list[tuple[list[str], list[str], str | None]],
) -> None:
    written = []
    for by, uris, digest in elements:
        pairs = [("By", text) for text in by] + [("URI", text) for text in uris]
        quoted = [
            f'{name}="{text.replace(chr(92), chr(92) * 2).replace(chr(34), chr(92) + chr(34))}"'
            for name, text in [*pairs, ("DNS", "")]
        ]
        written.append(";".join([*quoted, *([f"Hash={digest}"] if digest else [])]))
    assert list(parse_xfcc(",".join(written))) == expected(elements)


@given(st.text(max_size=60))
def test_anything_is_read_or_refused(text: str) -> None:
    try:
        assert parse_xfcc(text)
    except InvalidValueError:
        return
