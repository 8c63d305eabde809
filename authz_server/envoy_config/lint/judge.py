"""Judge configuration by every rule."""

from collections.abc import Iterable
from itertools import chain
from typing import Final

from authz_server.envoy_config.lint import (
    rules_chain,
    rules_cluster,
    rules_header,
    rules_http,
    rules_mcp,
    rules_process,
    rules_question,
    rules_route,
    rules_tcp,
    rules_tls,
    rules_unread,
)
from authz_server.envoy_config.lint.roots import configuration_of
from authz_server.envoy_config.lint.rule import Finding, Rule
from authz_server.envoy_config.lint.source import Source

_ALL: Final[tuple[Rule, ...]] = (
    *rules_unread.RULES,
    *rules_chain.RULES,
    *rules_question.RULES,
    *rules_header.RULES,
    *rules_route.RULES,
    *rules_http.RULES,
    *rules_tls.RULES,
    *rules_tcp.RULES,
    *rules_cluster.RULES,
    *rules_process.RULES,
    *rules_mcp.RULES,
)
RULES: Final = tuple(sorted(_ALL, key=lambda rule: rule.id))


def judge(sources: Iterable[Source]) -> list[Finding]:
    """Return what is unsafe in `sources`, which together are one Envoy's; by place, errors first.

    Raises `ConfigurationError` with a fault for each source that is not Envoy configuration.
    """
    configuration = configuration_of(sources)
    found = chain.from_iterable(
        (Finding(rule=rule, at=at) for at in rule.judge(configuration)) for rule in RULES
    )
    # Chains share routes: what is wrong with them is said once.
    once = {(one.rule.id, one.at.source.name, one.at.path, one.at.note): one for one in found}
    return sorted(once.values(), key=_order)


def _order(finding: Finding) -> tuple[str, tuple[int, int], str, str]:
    return finding.at.source.name, finding.at.place, finding.rule.severity, finding.rule.id
