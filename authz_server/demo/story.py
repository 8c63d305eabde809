"""The story of a support case, as data: who does what with which delegation, and what must come.

Alice, who works in support, asks the support assistant about a customer. The assistant acts, and
hands a narrower job to the research agent. Then everybody who could misuse what lies around tries
to, a customer export needs a second person, the policy changes while it is in use, and the PDP
dies. `play` performs it; nothing here is code.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from authz_server.core.errors import Reason
from authz_server.demo.calls import Call
from authz_server.demo.cast import ALICE, ASSISTANT, BILLING, BOB, CRM, DATA, RESEARCH, SHADOW
from authz_server.demo.grants import Grant, Link, Root
from authz_server.demo.steps import (
    Answer,
    Ask,
    EditPolicy,
    Expected,
    HandOver,
    KillPdp,
    Revoke,
    StartPdp,
    Step,
)

# --- delegations -------------------------------------------------------------------------------

_READ = ("crm.read", "data.read")
_BOTH = (CRM.audience, DATA.audience)

# Alice's grant for the case, and the wider one she gives when she wants a file.
_CASE = Grant(subject=ALICE, agent=ASSISTANT, scope=_READ, purpose="support-case")
_EXPORT_CASE = replace(_CASE, scope=(*_READ, "crm.export"))


def _handed_on(*links: Link) -> Grant:
    return replace(_CASE, links=links)


def _to_research(
    audience: tuple[str, ...] = _BOTH,
    scope: tuple[str, ...] = _READ,
    *,
    forged: bool = False,
) -> Grant:
    return _handed_on(Link(to=RESEARCH, audience=audience, scope=scope, forged=forged))


_RESEARCH_GRANT = _to_research()

# --- calls -------------------------------------------------------------------------------------

_SEARCH = Call(host=CRM.host, tool="crm_search", body={"query": "northwind"})
_EXPORT = Call(host=CRM.host, tool="crm_export", body={"tier": "gold"})
_INVOICES = Call(host=DATA.host, method="GET", path="/v1/customers/C-17/invoices")

_ALLOWED = Expected(verdict="allow", reason=Reason.OK, reached=True)
_ESCALATED = Expected(verdict="escalate", reason=Reason.ESCALATED_BY_RULE, reached=False)


def _denied(reason: Reason) -> Expected:
    return Expected(verdict="deny", reason=reason, reached=False)


def _refused(status: int) -> Expected:
    return Expected(verdict="refused", reason=str(status), reached=False)


# --- the story ---------------------------------------------------------------------------------

STORY: Final[Mapping[str, tuple[Step, ...]]] = MappingProxyType(
    {
        "Alice asks about a customer": (
            Ask(
                title="the assistant looks the customer up, on Alice's behalf",
                actor=ASSISTANT,
                call=_SEARCH,
                grant=_CASE,
                expect=_ALLOWED,
            ),
            HandOver(
                title="it hands a narrower job to the research agent, which does it",
                actor=ASSISTANT,
                calls=(_SEARCH, _INVOICES),
                grant=_RESEARCH_GRANT,
                expect=_ALLOWED,
                then=(_ALLOWED, _ALLOWED),
                explain=True,
            ),
            HandOver(
                title="led astray by what it read, it tries an export it was not given",
                actor=ASSISTANT,
                calls=(_EXPORT,),
                grant=_RESEARCH_GRANT,
                expect=_ALLOWED,
                then=(_denied(Reason.NO_MATCHING_RULE),),
            ),
        ),
        "Others try what lies around": (
            Ask(
                title="the same request with the chain stripped",
                actor=RESEARCH,
                call=_INVOICES,
                grant=None,
                expect=_denied(Reason.DELEGATION_REQUIRED),
            ),
            Ask(
                title="with its own link cut off: the assistant's grant as it was",
                actor=RESEARCH,
                call=_INVOICES,
                grant=_CASE,
                expect=_denied(Reason.LEAF_MISMATCH),
            ),
            Ask(
                title="with a link cut out of the middle",
                actor=BILLING,
                call=_INVOICES,
                grant=_handed_on(
                    Link(to=RESEARCH, audience=_BOTH, scope=_READ, cut=True),
                    Link(to=BILLING, audience=_BOTH, scope=_READ),
                ),
                expect=_denied(Reason.CHAIN_BROKEN),
            ),
            Ask(
                title="the research agent's chain, stolen by another workload",
                actor=BILLING,
                call=_INVOICES,
                grant=_RESEARCH_GRANT,
                expect=_denied(Reason.LEAF_MISMATCH),
            ),
            Ask(
                title="a link for the CRM alone, tried on the data API",
                actor=RESEARCH,
                call=_INVOICES,
                grant=_to_research(audience=(CRM.audience,)),
                expect=_denied(Reason.WRONG_AUDIENCE),
            ),
            Ask(
                title="a link that hands on more than the assistant holds",
                actor=RESEARCH,
                call=_INVOICES,
                grant=_to_research(scope=(*_READ, "data.write"), forged=True),
                expect=_denied(Reason.SCOPE_WIDENED),
            ),
            Ask(
                title="a true link, to an agent nobody registered",
                actor=SHADOW,
                call=_INVOICES,
                grant=_handed_on(Link(to=SHADOW, audience=(DATA.audience,), scope=_READ)),
                expect=_denied(Reason.UNREGISTERED_IDENTITY),
            ),
            Ask(
                title="a grant for Alice that names no agent, borrowed",
                actor=BILLING,
                call=_INVOICES,
                grant=Grant(subject=ALICE, agent=BILLING, scope=_READ, root=Root.PERSON),
                expect=_denied(Reason.MALFORMED_TOKEN),
            ),
            Ask(
                title="Alice's own access token, borrowed",
                actor=BILLING,
                call=_INVOICES,
                grant=Grant(subject=ALICE, agent=BILLING, scope=_READ, root=Root.ACCESS_TOKEN),
                expect=_denied(Reason.DELEGATION_REQUIRED),
            ),
            Ask(
                title="a way around by path: an escaped slash, which Envoy itself refuses",
                actor=RESEARCH,
                call=Call(host=DATA.host, method="GET", path="/v1/customers/..%2fpayroll"),
                grant=_RESEARCH_GRANT,
                expect=_refused(400),
            ),
            Ask(
                title="and one escaped twice, which Envoy lets through to the PDP",
                actor=RESEARCH,
                call=Call(host=DATA.host, method="GET", path="/v1/customers/%252e%252e/payroll"),
                grant=_RESEARCH_GRANT,
                expect=_denied(Reason.NON_CANONICAL_PATH),
            ),
        ),
        "An export needs a second person": (
            Ask(
                name="export",
                title="Alice wants the gold customers as a file; the assistant asks",
                actor=ASSISTANT,
                call=_EXPORT,
                grant=_EXPORT_CASE,
                expect=_ESCALATED,
            ),
            Answer(
                title="Alice approves it: it is hers, so it is not hers to approve",
                person=ALICE,
                to="export",
                accepted=False,
            ),
            Answer(title="Bob approves it", person=BOB, to="export", accepted=True),
            Ask(
                title="the approval does not cover another export",
                actor=ASSISTANT,
                call=Call(host=CRM.host, tool="crm_export", body={"tier": "silver"}),
                grant=_EXPORT_CASE,
                expect=_ESCALATED,
            ),
            Ask(
                title="the same request passes",
                actor=ASSISTANT,
                call=_EXPORT,
                grant=_EXPORT_CASE,
                expect=_ALLOWED,
                explain=True,
            ),
            Ask(
                title="once: the next one needs a person again",
                actor=ASSISTANT,
                call=_EXPORT,
                grant=_EXPORT_CASE,
                expect=_ESCALATED,
            ),
        ),
        "The policy changes while it is in use": (
            EditPolicy(
                title="an operator freezes one customer's invoices",
                bundle=DATA.bundle,
                append=("p, freeze-c17, *, *, /v1/customers/C-17/*, true, deny",),
            ),
            Ask(
                title="what was allowed before is denied",
                actor=RESEARCH,
                call=_INVOICES,
                grant=_RESEARCH_GRANT,
                expect=_denied(Reason.DENIED_BY_RULE),
            ),
            EditPolicy(title="the row is taken out again", bundle=DATA.bundle, append=()),
            Ask(
                title="and allowed again",
                actor=RESEARCH,
                call=_INVOICES,
                grant=_RESEARCH_GRANT,
                expect=_ALLOWED,
            ),
        ),
        "An agent is taken out of service": (
            Revoke(title="an operator pulls the kill switch", workload=RESEARCH, action="add"),
            Ask(
                title="its next request is denied, whatever it presents",
                actor=RESEARCH,
                call=_INVOICES,
                grant=_RESEARCH_GRANT,
                expect=_denied(Reason.REVOKED),
            ),
            Revoke(title="it is given back", workload=RESEARCH, action="remove"),
        ),
        "The PDP dies": (
            KillPdp(title="kill -9"),
            Ask(
                title="no answer is no access",
                actor=RESEARCH,
                call=_INVOICES,
                grant=_RESEARCH_GRANT,
                expect=_refused(503),
            ),
            StartPdp(title="it is started again"),
            Ask(
                title="and work goes on",
                actor=RESEARCH,
                call=_INVOICES,
                grant=_RESEARCH_GRANT,
                expect=_ALLOWED,
            ),
        ),
    }
)
