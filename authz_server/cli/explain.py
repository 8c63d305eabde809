"""One decision as a tree: for whom, through whom, what, and why it came out as it did."""

from datetime import UTC, datetime

from rich.text import Text
from rich.tree import Tree

from authz_server.cli.document import (
    Document,
    action_name,
    number,
    resource_name,
    section,
    sections,
    text,
    texts,
)
from authz_server.cli.reasons import in_words
from authz_server.cli.rule_places import RulePlaces
from authz_server.cli.terminal import safe
from authz_server.core.enforcement import Mode

VERDICT_STYLES = {"allow": "bold green", "escalate": "bold yellow", "deny": "bold red"}


def explain_tree(document: Document, places: RulePlaces | None = None) -> Tree:
    """Return the provenance of a decision document (`core.record.decision_json`).

    `places` says where its rules stand; None where no policy is at hand.

    Subject, then each actor below the one it acts for, each with how it was proved, then the
    action; beside it the verdict with its rules, and the approval. Works for any document, also one
    of a denial before anybody was identified. Every string is made printable and free of markup.
    """
    verdict = text(document, "verdict") or "unknown"
    tree = Tree(
        _line(
            (verdict.upper(), VERDICT_STYLES.get(verdict, "bold")),
            ("not enforced" if is_shadowed(document) else "", "bold magenta"),
            ("decision", ""),
            (text(document, "decision_id") or "without id", "bold"),
            (text(document, "time") or "", "dim"),
        )
    )
    _add_request(tree, document)
    _add_reason(tree, document, places)
    _add_approval(tree, document)
    return tree


def is_shadowed(document: Document) -> bool:
    """Tell whether the verdict of a decision was recorded and not enforced."""
    return text(document, "mode") == Mode.SHADOW


def _add_request(tree: Tree, document: Document) -> None:
    """Add who asked, down the chain, with the action at its end."""
    chain, principal = section(document, "chain"), section(document, "principal")
    caller = text(principal, "spiffe_id")
    node = tree
    if subject := text(chain, "subject"):
        node = node.add(_line(("on behalf of", ""), (subject, "bold")))
        _add_facts(
            node,
            ("vouched for by", text(chain, "subject_issuer")),
            ("purpose", text(chain, "purpose")),
            ("transaction", text(chain, "txn")),
            ("chain", " ".join(filter(None, (text(chain, "assurance"), text(chain, "mode"))))),
        )
        for name, hop in _hops(chain):
            node = _add_hop(node, name, hop, document)
    if caller is None:
        node = node.add(_line(("asked by", ""), ("nobody who was identified", "bold")))
    elif caller not in dict(_hops(chain)):
        node = node.add(_line(("asked by", ""), (caller, "bold"), ("the caller", "cyan")))
        _add_caller(node, document)
    _add_action(node, document)


def _hops(chain: Document) -> tuple[tuple[str, Document], ...]:
    """Return each delegate with its hop, root first; an actor without a proved hop has none."""
    hops = {text(hop, "delegate") or "unnamed": hop for hop in sections(chain, "hops")}
    return tuple(hops.items()) or tuple((actor, {}) for actor in texts(chain, "actors"))


def _add_hop(node: Tree, name: str, hop: Document, document: Document) -> Tree:
    """Add one actor, how it came to act, and within which bounds."""
    is_caller = name == text(section(document, "principal"), "spiffe_id")
    added = node.add(
        _line(("acts", ""), (name, "bold"), ("the caller" if is_caller else "", "cyan"))
    )
    _add_facts(
        added,
        ("owner", text(hop, "owner")),
        ("handed over by", text(hop, "delegator")),
        ("proved by", text(hop, "proof")),
        ("valid", _lifetime(hop)),
        ("scope", " ".join(texts(hop, "scope"))),
        ("audience", " ".join(texts(hop, "audience"))),
    )
    if is_caller:
        _add_caller(added, document)
    return added


def _add_caller(node: Tree, document: Document) -> None:
    principal = section(document, "principal")
    _add_facts(
        node,
        ("identified by", text(principal, "assurance")),
        ("certificate sha256", text(principal, "certificate_sha256")),
        ("kind", text(principal, "kind")),
        ("accountable owner", text(document, "owner")),
    )


def _add_action(node: Tree, document: Document) -> None:
    resource, environment = section(document, "resource"), section(document, "environment")
    pep = section(document, "pep")
    action, target = action_name(document), resource_name(document)
    added = node.add(
        _line(("asks", ""), (action or "nothing readable", "bold"), ("on", ""), (target, "bold"))
    )
    _add_facts(
        added,
        ("type", text(resource, "type")),
        ("host", text(resource, "host")),
        ("path", text(resource, "path")),
        ("for audience", text(resource, "audience")),
        ("arguments sha256", text(resource, "args_sha256")),
        ("from", text(environment, "source_ip")),
        ("through listener", text(pep, "listener")),
        ("of enforcement point", text(pep, "node")),
    )


def _add_reason(tree: Tree, document: Document, places: RulePlaces | None) -> None:
    verdict, reason = text(document, "verdict") or "unknown", text(document, "reason")
    approved = section(document, "approval") and verdict == "allow"
    words = "a person approved it" if approved else in_words(reason)
    style = VERDICT_STYLES.get(verdict, "bold")
    code = f"({reason})" if reason else ""
    added = tree.add(_line((verdict, style), ("because", ""), (words, ""), (code, "dim")))
    if is_shadowed(document):
        passed = "the policy bundle was in shadow mode: the request passed, whatever the verdict"
        added.add(_line((passed, "bold magenta")))
    _add_facts(added, ("detail", text(document, "detail")))
    _add_rules(added, texts(document, "rules"), places)
    _add_facts(
        added,
        ("policy bundle", text(document, "bundle")),
        ("revision", text(document, "revision")),
        ("trace", text(section(document, "trace"), "trace_id")),
    )


def _add_rules(node: Tree, rules: tuple[str, ...], places: RulePlaces | None) -> None:
    """Add the rules that decided, each with its place if that is known."""
    if places is None or not rules:
        _add_facts(node, ("rules", ", ".join(rules)))
        return
    added = node.add(_line(("rules:", "dim"), (places.caveat, "yellow")))
    for rule in rules:
        place = places.places.get(rule)
        added.add(_line((rule, ""), (f"at {place}" if place else "not on disk", "dim")))


def _add_approval(tree: Tree, document: Document) -> None:
    if approval := section(document, "approval"):
        added = tree.add(
            _line(("approved by", ""), (text(approval, "approver") or "unknown", "bold"))
        )
        _add_facts(added, ("approval", text(approval, "id")), ("at", text(approval, "approved_at")))
    elif asked := section(document, "access_request"):
        added = tree.add(_line(("approval", ""), (text(asked, "status") or "unknown", "bold")))
        _add_facts(
            added,
            ("request", text(asked, "id")),
            ("asked of", text(asked, "approver_group")),
            ("until", text(asked, "expires_at")),
        )


def _add_facts(node: Tree, *facts: tuple[str, str | None]) -> None:
    for label, value in facts:
        if value:
            node.add(_line((f"{label}:", "dim"), (value, "")))


def _line(*parts: tuple[str, str]) -> Text:
    return Text(" ").join(safe(words, style) for words, style in parts if words)


def _lifetime(hop: Document) -> str | None:
    start, end = number(hop, "issued_at"), number(hop, "expires_at")
    if start is None or end is None:
        return None
    return f"{_instant(start)} until {_instant(end)}, {end - start} s"


def _instant(unix_s: int) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return str(unix_s)
