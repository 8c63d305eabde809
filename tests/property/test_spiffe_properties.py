"""SPIFFE IDs and patterns over generated text."""

from hypothesis import given
from hypothesis import strategies as st

from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import SpiffeId, SpiffeIdPattern, TrustDomain

DOMAINS = st.from_regex(r"[a-z0-9._-]{1,30}", fullmatch=True)
SEGMENTS = st.from_regex(r"[a-zA-Z0-9._-]{1,12}", fullmatch=True).filter(
    lambda s: s not in {".", ".."}
)
PATHS = st.lists(SEGMENTS, min_size=1, max_size=5)


@given(DOMAINS, PATHS)
def test_an_id_is_its_text(domain: str, path: list[str]) -> None:
    text = f"spiffe://{domain}/{'/'.join(path)}"
    spiffe_id = SpiffeId.parse(text)
    assert str(spiffe_id) == text
    assert spiffe_id == SpiffeId(TrustDomain(domain), "/" + "/".join(path))
    assert SpiffeIdPattern.parse(text).matches(spiffe_id)


@given(st.text() | st.text("spiffe:/.%AaZ09_-*\n", max_size=40).map(lambda s: "spiffe://" + s))
def test_any_text_is_an_id_or_refused(text: str) -> None:
    try:
        spiffe_id = SpiffeId.parse(text)
    except InvalidValueError:
        return
    assert str(spiffe_id) == text
    assert text.isascii()
    assert not {"%", "?", "#", "@", "*", "\n"} & set(text)
    assert all(segment not in {"", ".", ".."} for segment in spiffe_id.path[1:].split("/"))


@given(DOMAINS, PATHS, st.data())
def test_a_star_stays_in_its_segment(domain: str, path: list[str], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(path) - 1))
    cut = data.draw(st.integers(0, len(path[index])))
    starred = [*path]
    starred[index] = path[index][:cut] + "*"
    pattern = SpiffeIdPattern.parse(f"spiffe://{domain}/{'/'.join(starred)}")
    assert pattern.matches(SpiffeId.parse(f"spiffe://{domain}/{'/'.join(path)}"))
    longer = [*path[: index + 1], "x", *path[index + 1 :]]
    assert not pattern.matches(SpiffeId.parse(f"spiffe://{domain}/{'/'.join(longer)}"))
    assert not pattern.matches(SpiffeId.parse(f"spiffe://other-{domain}/{'/'.join(path)}"))
