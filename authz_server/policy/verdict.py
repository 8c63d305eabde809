"""From the rules that match to one evaluation: the whole of the effect semantics.

an error in any candidate      deny      POLICY_ERROR
allow-and-deny:  a deny        deny      DENIED_BY_RULE
                 an escalate   escalate  ESCALATED_BY_RULE
                 an allow      allow     OK
allow-override:  the same, without deny rules
priority:        the first match decides, whatever its effect
nothing matches                deny      NO_MATCHING_RULE

Several policy types, and several parties, are judged one by one; the strictest verdict stands.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from authz_server.core.decision import Evaluation, Verdict
from authz_server.core.errors import Reason
from authz_server.policy.model import Effect
from authz_server.policy.rules import Rule, rule_ids

_REASONS: Final = {
    Verdict.ALLOW: (Reason.OK, "allowed by rule"),
    Verdict.ESCALATE: (Reason.ESCALATED_BY_RULE, "a rule asks for approval"),
    Verdict.DENY: (Reason.DENIED_BY_RULE, "denied by rule"),
}
# The strictest first; POLICY_ERROR over DENIED_BY_RULE so that a broken rule is seen and repaired.
_STRICTNESS: Final = (
    Reason.POLICY_ERROR,
    Reason.DENIED_BY_RULE,
    Reason.NO_MATCHING_RULE,
    Reason.ESCALATED_BY_RULE,
    Reason.OK,
)
NO_MATCH: Final = Evaluation(
    verdict=Verdict.DENY, reason=Reason.NO_MATCHING_RULE, detail="no rule allows this"
)


def policy_error(failed: Iterable[Rule] = ()) -> Evaluation:
    """Return the denial for rules that could not be evaluated."""
    return Evaluation(
        verdict=Verdict.DENY,
        reason=Reason.POLICY_ERROR,
        rules=rule_ids(failed),
        detail="a rule could not be evaluated for this request",
    )


def judge(effect: Effect, matched: Sequence[Rule]) -> Evaluation:
    """Return what the matching rules say together."""
    if not matched:
        return NO_MATCH
    if effect.first_match:
        return _by_rules([min(matched, key=lambda rule: rule.order)])
    for verdict in (Verdict.DENY, Verdict.ESCALATE):
        deciding = [rule for rule in matched if rule.effect is verdict]
        if deciding:
            return _by_rules(deciding)
    return _by_rules(matched)


def _by_rules(rules: Sequence[Rule]) -> Evaluation:
    verdict = rules[0].effect
    reason, detail = _REASONS[verdict]
    return Evaluation(
        verdict=verdict,
        reason=reason,
        rules=rule_ids(rules) if len(rules) > 1 else (rules[0].id,),
        # The order of rows must not matter, so neither may the first of several groups.
        obligation=min((rule.obligation for rule in rules if rule.obligation), default=None),
        detail=detail,
    )


def strictest(evaluations: Sequence[Evaluation], order: Mapping[str, int]) -> Evaluation:
    """Return the strictest of the evaluations, with the rules of all that agree with it.

    There is one for each party or policy type. `order` gives the place of each rule id, for the
    order they are reported in.
    """
    first = min(evaluations, key=lambda one: _STRICTNESS.index(one.reason))
    agreeing = [one for one in evaluations if one.reason is first.reason]
    if len(agreeing) == 1:
        return first
    ids = {rule_id for one in agreeing for rule_id in one.rules}
    groups = [one.obligation for one in agreeing if one.obligation]
    return Evaluation(
        verdict=first.verdict,
        reason=first.reason,
        rules=tuple(sorted(ids, key=order.__getitem__)),
        obligation=min(groups, default=None),
        detail=first.detail,
    )
