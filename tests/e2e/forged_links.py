"""Links that are almost right, by name: the reason they are denied for, and how to make them."""

from collections.abc import Callable
from datetime import timedelta

from cryptography import x509

from tests.e2e.forge import AUDIENCE, Authority, Svid, jws, new_key
from tests.e2e.workshop import ABSENT, NARROW, OTHER, WIDE, Chain, Make, Workshop, now

PAST = timedelta(minutes=-1)


def two_links(work: Workshop) -> Chain:
    """Return other -> wide -> narrow, all valid; `wide` signs with a fresh SVID."""
    root = work.parent(hops=2)
    wide = work.forge.authority.issue(WIDE)
    first = work.forge.link(root, work.other, OTHER, WIDE)
    return root, [first, work.forge.link(first, wide, WIDE, NARROW)]


def with_link(
    changes: dict[str, object] | None = None, header: dict[str, object] | None = None
) -> Make:
    def make(work: Workshop) -> Chain:
        root = work.parent()
        return root, [work.link(root, changes, header)]

    return make


def signed_by(make_signer: Callable[[Workshop], Svid]) -> Make:
    def make(work: Workshop) -> Chain:
        root = work.parent()
        return root, [work.link(root, signer=make_signer(work))]

    return make


def arranged(pick: Callable[[list[str]], list[str]]) -> Make:
    def make(work: Workshop) -> Chain:
        root, links = two_links(work)
        return root, pick(links)

    return make


def spliced(work: Workshop) -> Chain:
    """Return a link of one root under another."""
    return work.parent(), [work.link(work.parent())]


def renewed(work: Workshop) -> Chain:
    """Return the same grant signed again, one second longer, with the link to the first."""
    claims = work.forge.root_claims(OTHER, hops=1)
    first, second = (
        jws(work.forge.root_header(), claims | {"jti": jti}, work.forge.issuer_key)
        for jti in ("a", "b")
    )
    return second, [work.link(first)]


def five_links(work: Workshop) -> Chain:
    root = work.parent(hops=9)
    return root, [work.link(root)] * 5


def other_key_for(svid: Svid) -> Svid:
    return Svid(svid.certificate, new_key())


def outlives(work: Workshop) -> Chain:
    claims = work.forge.root_claims(OTHER, hops=1) | {"exp": now() + 60}
    root = jws(work.forge.root_header(), claims, work.forge.issuer_key)
    return root, [work.link(root, {"exp": now() + 90})]


def no_hop_left(work: Workshop) -> Chain:
    root = work.parent(hops=0)
    return root, [work.link(root, {"dlg": 0})]


def wider_audience(work: Workshop) -> Chain:
    root, (first, _) = two_links(work)
    wide = work.forge.authority.issue(WIDE)
    claims = work.forge.link_claims(first, WIDE, NARROW)
    claims["aud"] = [AUDIENCE, "https://other.example"]
    return root, [first, jws(work.forge.link_header(wide), claims, wide.key)]


def quoted(work: Workshop, form: str) -> Chain:
    root = work.parent()
    return root, [form.format(work.link(root))]


LINKS: dict[str, tuple[str, Make]] = {
    "jwt-26 splice": ("CHAIN_BROKEN", spliced),
    "jwt-26b link under a renewed root": ("CHAIN_BROKEN", renewed),
    "jwt-26c another transaction": ("CHAIN_BROKEN", with_link({"txn": "other"})),
    "jwt-26d another subject": ("CHAIN_BROKEN", with_link({"sub": "bob@example.org"})),
    "jwt-26e hash in hex": ("CHAIN_BROKEN", with_link({"prh": "0" * 64})),
    "jwt-26f no hash": ("MALFORMED_TOKEN", with_link({"prh": ABSENT})),
    "jwt-27 first link cut out": ("CHAIN_BROKEN", arranged(lambda links: links[1:])),
    "jwt-27b last link cut off": ("LEAF_MISMATCH", arranged(lambda links: links[:1])),
    "jwt-27c order turned": ("CHAIN_BROKEN", arranged(lambda links: links[::-1])),
    "jwt-27d link twice": ("CHAIN_BROKEN", arranged(lambda links: [links[0], *links])),
    "jwt-27e all links stripped": ("LEAF_MISMATCH", lambda w: w.parent()),
    "jwt-28 signed with another key": (
        "BAD_SIGNATURE",
        signed_by(lambda w: other_key_for(w.other)),
    ),
    "jwt-28b signed by the delegate": ("CHAIN_BROKEN", signed_by(lambda w: w.narrow)),
    "jwt-28c foreign authority, our name": (
        "UNKNOWN_KEY",
        signed_by(lambda w: Authority().issue(OTHER)),
    ),
    "jwt-28d foreign trust domain": (
        "UNKNOWN_TRUST_DOMAIN",
        signed_by(lambda w: w.forge.authority.issue("spiffe://other.example/agent/other")),
    ),
    "jwt-28e signing certificate": (
        "BAD_HEADER",
        signed_by(lambda w: w.forge.authority.issue(OTHER, is_authority=True)),
    ),
    "jwt-28f two URI names": (
        "BAD_HEADER",
        signed_by(lambda w: w.forge.authority.issue(OTHER, WIDE)),
    ),
    "jwt-28g DNS name that looks like an ID": (
        "BAD_HEADER",
        signed_by(lambda w: w.forge.authority.issue(x509.DNSName(OTHER))),
    ),
    "jwt-28h key not for signatures": (
        "BAD_HEADER",
        signed_by(lambda w: w.forge.authority.issue(OTHER, signs=False)),
    ),
    "jwt-28i expired certificate": (
        "EXPIRED",
        signed_by(lambda w: w.forge.authority.issue(OTHER, not_after=PAST)),
    ),
    "jwt-28j the authority itself": (
        "BAD_HEADER",
        signed_by(lambda w: Svid(w.forge.authority.certificate, w.forge.authority.key)),
    ),
    "jwt-28k no certificate": ("BAD_HEADER", with_link(header={"x5c": []})),
    "jwt-28l x5c is text": ("BAD_HEADER", with_link(header={"x5c": "MII"})),
    "jwt-28m x5c is no certificate": ("BAD_HEADER", with_link(header={"x5c": ["AAAA"]})),
    "jwt-28n kid instead of x5c": (
        "BAD_HEADER",
        with_link(header={"x5c": ABSENT, "kid": "sts-1"}),
    ),
    "jwt-28o kid beside x5c": ("BAD_HEADER", with_link(header={"kid": "sts-1"})),
    "jwt-29 root as link": ("BAD_HEADER", lambda w: (w.parent(), [w.root()])),
    "jwt-29b none": ("BAD_HEADER", with_link(header={"alg": "none"})),
    "jwt-29c HS256": ("BAD_HEADER", with_link(header={"alg": "HS256"})),
    "jwt-31 wider scope": ("SCOPE_WIDENED", with_link({"scope": "crm.read crm.delete"})),
    "jwt-31b longer life": ("LIFETIME_TOO_LONG", outlives),
    "jwt-31c hops not fewer": ("CHAIN_TOO_DEEP", with_link({"dlg": 1})),
    "jwt-31d no hop left": ("CHAIN_TOO_DEEP", no_hop_left),
    "jwt-31e empty audience": ("MALFORMED_TOKEN", with_link({"aud": []})),
    "jwt-31f audience as text": ("MALFORMED_TOKEN", with_link({"aud": AUDIENCE})),
    "jwt-31g another tool": ("WRONG_AUDIENCE", with_link({"aud": ["https://other.example"]})),
    "jwt-31h back to the delegator": ("CHAIN_CYCLE", with_link({"may_act": {"sub": OTHER}})),
    "jwt-31i more than four links": ("CHAIN_TOO_DEEP", five_links),
    "jwt-31j unknown claim": ("MALFORMED_TOKEN", with_link({"only_on": "monday"})),
    "jwt-31k details from nowhere": (
        "SCOPE_WIDENED",
        with_link({"authorization_details": [{"type": "http", "actions": ["GET"]}]}),
    ),
    "jwt-31l wider audience at the second link": ("SCOPE_WIDENED", wider_audience),
    "jwt-31m longer than 15 minutes": (
        "LIFETIME_TOO_LONG",
        with_link({"exp": now() + 3600}),
    ),
    "jwt-32 delegate of another": ("LEAF_MISMATCH", with_link({"may_act": {"sub": WIDE}})),
    "jwt-33 sf-string": ("MALFORMED_TOKEN", lambda w: quoted(w, '"{}"')),
    "jwt-33b parameters": ("MALFORMED_TOKEN", lambda w: quoted(w, "{};a=1")),
    "jwt-33c inner list": ("MALFORMED_TOKEN", lambda w: quoted(w, "({})")),
    "jwt-33d trailing comma": ("MALFORMED_TOKEN", lambda w: quoted(w, "{},")),
    "jwt-33e empty member": ("MALFORMED_TOKEN", lambda w: quoted(w, ",{}")),
    "jwt-33f blank instead of comma": ("MALFORMED_TOKEN", lambda w: quoted(w, "{0} {0}")),
}
