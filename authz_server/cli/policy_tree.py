"""One evaluation as a tree: each party, the rules that matched or nearly did, each operand."""

import json

from rich.text import Text
from rich.tree import Tree

from authz_server.cli.explain import VERDICT_STYLES
from authz_server.cli.reasons import in_words
from authz_server.cli.terminal import safe
from authz_server.core.decision import Evaluation
from authz_server.core.errors import Reason
from authz_server.policy.explain import (
    Explanation,
    HeldRoles,
    Operand,
    Outcome,
    PartyExplanation,
    RuleExplanation,
    plain,
)
from authz_server.policy.model import Effect
from authz_server.policy.replay import effect_of

_MARKS = {
    Outcome.TRUE: ("✓", "green"),
    Outcome.FALSE: ("✗", "red"),
    Outcome.ERROR: ("!", "magenta"),
}
_EFFECTS = {
    Effect.ALLOW_AND_DENY: "any deny outranks any escalate, which outranks any allow",
    Effect.ALLOW_OVERRIDE: "any escalate outranks any allow",
    Effect.PRIORITY: "the first rule that matches decides",
    Effect.SUBJECT_PRIORITY: "the first rule that matches decides, the nearest role first",
}


def explanation_tree(explanation: Explanation) -> Tree:
    """Return the explanation for people."""
    bundle, evaluation = explanation.bundle, explanation.evaluation
    tree = Tree(
        _line(
            (evaluation.verdict.upper(), VERDICT_STYLES[evaluation.verdict]),
            (f"({evaluation.reason})", "dim"),
            ("by bundle", ""),
            (bundle.name, "bold"),
            (f"revision {bundle.revision}", "dim"),
        )
    )
    tree.add(safe(why(explanation)))
    for party in explanation.parties:
        _add_party(tree, party)
    return tree


def why(explanation: Explanation) -> str:
    """Return in one sentence how the matching rules make the verdict."""
    bundle, evaluation = explanation.bundle, explanation.evaluation
    named = ", ".join(f"`{rule}`" for rule in evaluation.rules)
    sentence = f"{evaluation.verdict} because {in_words(evaluation.reason)}"
    if named:
        sentence += f": {named}"
    if evaluation.obligation:
        sentence += f"; approver group `{evaluation.obligation}`"
    if evaluation.reason is Reason.POLICY_ERROR:
        sentence += "; one error denies, whatever else matches"
    elif evaluation.reason is not Reason.NO_MATCHING_RULE:
        sentence += "".join(f"; {_EFFECTS[effect]}" for effect in dict.fromkeys(bundle.effects))
    if len(bundle.effects) > 1:
        sentence += f"; the strictest of {len(bundle.effects)} policy types"
    if len(explanation.parties) > 1:
        sentence += f"; the strictest of {len(explanation.parties)} parties"
    return sentence


def _add_party(tree: Tree, told: PartyExplanation) -> None:
    party, evaluation = told.party, told.evaluation
    node = tree.add(
        _line(
            (party.role, "cyan"),
            (party.id or "without id", "bold"),
            (f"kind {party.kind}" if party.kind else "", ""),
            ("→", ""),
            (evaluation.verdict, VERDICT_STYLES[evaluation.verdict]),
            (f"({evaluation.reason})", "dim"),
        )
    )
    for roles in told.roles:
        _add_roles(node, roles)
    for rule in told.rules:
        _add_rule(node, rule)
    if told.others:
        node.add(_line((f"{told.others} more rules do not match", "dim")))


def _add_roles(node: Tree, roles: HeldRoles) -> None:
    domain = "".join(f" in {_value(part)}" for part in roles.domain)
    held = ", ".join(roles.held) or "none"
    node.add(
        _line(
            (f"roles {roles.definition} of {_value(roles.member)}{domain}:", ""),
            (held, "bold"),
            (f"of {roles.asked} that rules ask for", "dim"),
        )
    )


def _add_rule(node: Tree, told: RuleExplanation) -> None:
    rule = told.rule
    states = {Outcome.TRUE: "matches", Outcome.ERROR: "cannot be evaluated"}
    near = f"{told.missed} of {len(told.operands)} do not hold"
    added = node.add(
        _line(
            _MARKS[told.outcome],
            (rule.id, "bold"),
            (rule.effect, VERDICT_STYLES[rule.effect]),
            (states.get(told.outcome, near), ""),
            ("and decides" if told.decided else "", "bold"),
            (f"{rule.file}:{rule.line}" if rule.id != f"{rule.file}:{rule.line}" else "", "dim"),
            ("" if told.candidate else "left out by the index", "dim"),
        )
    )
    for operand in told.operands:
        _add_operand(added, operand)


def _add_operand(node: Tree, operand: Operand) -> None:
    shown = "" if operand.parts else _seen(operand)
    mark, style = _MARKS[operand.outcome]
    reached = operand.reached
    added = node.add(
        _line(
            (mark, style if reached else "dim"),
            (operand.text, "" if reached else "dim"),
            (f"({shown})" if shown else "", "dim"),
            (operand.error, "magenta" if reached else "dim"),
            ("" if reached else "- not reached", "dim"),
        )
    )
    for part in operand.parts:
        _add_operand(added, part)


def _seen(operand: Operand) -> str:
    return ", ".join(f"{name} is {_value(value)}" for name, value in operand.values.items())


def _value(value: object) -> str:
    return "missing" if value is None else json.dumps(plain(value), ensure_ascii=False)


def _line(*parts: tuple[str, str]) -> Text:
    return Text(" ").join(safe(words, style) for words, style in parts if words)


# --- JSON ---------------------------------------------------------------------------------------


def explanation_json(explanation: Explanation) -> dict[str, object]:
    """Return the explanation for programs."""
    bundle = explanation.bundle
    return {
        "bundle": bundle.name,
        "revision": bundle.revision,
        "effect": effect_of(bundle),
        **_evaluation(explanation.evaluation),
        "why": why(explanation),
        "parties": [_party(told) for told in explanation.parties],
    }


def _evaluation(evaluation: Evaluation) -> dict[str, object]:
    return {
        "verdict": evaluation.verdict,
        "reason": evaluation.reason,
        "rules": list(evaluation.rules),
        "obligation": evaluation.obligation,
    }


def _party(told: PartyExplanation) -> dict[str, object]:
    return {
        "role": told.party.role,
        "id": told.party.id,
        "kind": told.party.kind,
        **_evaluation(told.evaluation),
        "roles": [
            {
                "definition": roles.definition,
                "member": plain(roles.member),
                "domain": plain(roles.domain),
                "held": list(roles.held),
                "asked": roles.asked,
            }
            for roles in told.roles
        ],
        "explained": [_rule(rule) for rule in told.rules],
        "others": told.others,
    }


def _rule(told: RuleExplanation) -> dict[str, object]:
    return {
        "id": told.rule.id,
        "file": told.rule.file,
        "line": told.rule.line,
        "effect": told.rule.effect,
        "outcome": told.outcome,
        "decided": told.decided,
        "candidate": told.candidate,
        "missed": told.missed,
        "operands": [_operand(operand) for operand in told.operands],
    }


def _operand(operand: Operand) -> dict[str, object]:
    return {
        "text": operand.text,
        "outcome": operand.outcome,
        "reached": operand.reached,
        "error": operand.error or None,
        "values": {name: plain(value) for name, value in operand.values.items()},
        "parts": [_operand(part) for part in operand.parts],
    }
