"""How a delegation chain looks on a terminal and as JSON: decoded without trust, or verified."""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from rich.tree import Tree

from authz_server.cli.terminal import safe
from authz_server.core.chain import BoundChain, Grant
from authz_server.core.errors import InvalidValueError
from authz_server.core.jose import CompactJws
from authz_server.core.strict_json import JsonValue
from authz_server.core.svid import leaf_spiffe_id

_TIMES = frozenset({"iat", "nbf", "exp"})


def decoded(tokens: Sequence[str]) -> list[dict[str, object]]:
    """Return header and claims of each token, root first, with nothing verified.

    Raises `RequestFault` for a token that is not a strict compact JWS.
    """
    return [_decoded(CompactJws.parse(token)) for token in tokens]


def _decoded(jws: CompactJws) -> dict[str, object]:
    header: dict[str, object] = dict(jws.header)
    x5c = jws.header.get("x5c")
    if isinstance(x5c, list):
        header["x5c"] = [_certificate(entry) for entry in x5c]
    return {"sha256": jws.digest.hex(), "header": header, "claims": dict(jws.payload)}


def _certificate(entry: JsonValue) -> dict[str, object]:
    try:
        certificate = x509.load_der_x509_certificate(base64.b64decode(str(entry), validate=True))
    except ValueError:
        return {"error": "not a certificate"}
    try:
        name = str(leaf_spiffe_id(certificate))
    except (InvalidValueError, ValueError):
        name = certificate.subject.rfc4514_string()
    return {
        "name": name,
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }


def decoded_tree(tokens: Sequence[str]) -> Tree:
    """Return the tree of what `decoded` finds, titled as not verified."""
    tree = Tree(safe("NOT VERIFIED: what the tokens say of themselves", "bold red"))
    for position, token in enumerate(decoded(tokens)):
        branch = tree.add(safe(f"link {position}" if position else "root", "bold"))
        branch.add(safe(f"sha256: {token['sha256']}"))
        for part in ("header", "claims"):
            _add_members(branch.add(safe(part)), token[part])
    return tree


def _add_members(branch: Tree, value: object) -> None:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
    for name, member in pairs:
        if isinstance(member, dict | list):
            _add_members(branch.add(safe(f"{name}:")), member)
        else:
            branch.add(safe(f"{name}: {_shown(name, member)}"))


def _shown(name: object, member: object) -> str:
    if name in _TIMES and type(member) is int:
        return f"{member} ({_instant(member)})"
    return str(member)


def verified(bound: BoundChain) -> dict[str, object]:
    """Return what was proved, root first, in the words of the decision document."""
    chain = bound.chain
    return {
        "mode": bound.mode,
        "assurance": bound.assurance,
        "subject": chain.root.subject,
        "subject_issuer": chain.subject_issuer,
        "actors": [str(actor) for actor in bound.actors],
        "prior_actors": list(chain.prior_actors),
        "txn": chain.root.txn,
        "purpose": chain.purpose,
        "scope": sorted(bound.authority.scope),
        "audience": sorted(bound.authority.audience),
        "hops": [_hop(grant) for grant in chain.grants],
    }


def _hop(grant: Grant) -> dict[str, object]:
    return {
        "delegator": grant.delegator,
        "delegate": str(grant.delegate),
        "proof": grant.proof,
        "scope": sorted(grant.scope),
        "audience": sorted(grant.audience),
        "not_before": _instant(grant.not_before),
        "expires_at": _instant(grant.expires_at),
        "hops_left": grant.hops_left,
        "token_sha256": grant.token_sha256,
    }


def verified_tree(bound: BoundChain) -> Tree:
    """Return the tree of a verified chain, one branch per hop."""
    chain = bound.chain
    title = f"verified: {bound.mode}, {bound.assurance}, for {chain.root.subject}"
    tree = Tree(safe(title, "bold green"))
    for grant in chain.grants:
        head = f"{grant.delegator} -> {grant.delegate}"
        held = safe("  <- authority", "green") if grant is bound.authority else safe("")
        branch = tree.add(safe(head, "bold") + held)
        branch.add(safe(f"proof: {grant.proof}"))
        branch.add(safe(f"scope: {' '.join(sorted(grant.scope))}"))
        branch.add(safe(f"audience: {', '.join(sorted(grant.audience))}"))
        branch.add(safe(f"until: {_instant(grant.expires_at)}, {grant.hops_left} hops left"))
    return tree


def _instant(second: int) -> str:
    try:
        return datetime.fromtimestamp(second, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return "not a time"
