"""Bundles and attributes for the policy suites: short to write, complete to evaluate."""

from collections.abc import Mapping
from typing import Any

from authz_server.core.attributes import (
    ActionAttributes,
    Attributes,
    ChainAttributes,
    EnvironmentAttributes,
    ObjectAttributes,
    PartyAttributes,
)
from authz_server.core.errors import ConfigurationError
from authz_server.policy.bundle import PolicyBundle, load_bundle_files

ALLOW_AND_DENY = "some(where (p.eft == allow)) && !some(where (p.eft == deny))"
ALLOW_OVERRIDE = "some(where (p.eft == allow))"
PRIORITY = "priority(p.eft) || deny"
MANIFEST = "name: sample\ndomain: data\n"


def model(
    matcher: str,
    *,
    columns: str = "id, rule, eft, obligation",
    request: str = "sub, chain, act, obj, env",
    effect: str = ALLOW_AND_DENY,
    roles: str = "",
) -> str:
    """Return a `model.conf`; the matcher begins in line 9, column 5 (11 with roles)."""
    return (
        f"[request_definition]\nr = {request}\n"
        f"[policy_definition]\np = {columns}\n"
        + (f"[role_definition]\n{roles}\n" if roles else "")
        + f"[policy_effect]\ne = {effect}\n\n[matchers]\nm = {matcher}\n"
    )


def bundle(model_conf: str, policy: str, **files: str) -> PolicyBundle:
    """Return the bundle of these texts; further ones by name, `_` for `.` (`roles_csv`)."""
    return load_bundle_files(texts(model_conf, policy, **files))


def texts(model_conf: str, policy: str, **files: str) -> dict[str, bytes]:
    """Return the files of a bundle as bytes."""
    named = {"model.conf": model_conf, "policy.csv": policy, "bundle.yaml": MANIFEST}
    named |= {name.replace("_", "."): text for name, text in files.items()}
    return {name: text.encode() for name, text in named.items()}


def field(text: str) -> str:
    """Return one CSV field, quoted."""
    return '"' + text.replace('"', '""') + '"'


def rule_bundle(*rules: str, **options: str) -> PolicyBundle:
    """Return a bundle whose rules are these conditions: `text`, or `effect: text`."""
    rows = []
    for number, rule in enumerate(rules, 1):
        effect, colon, condition = rule.partition(": ")
        if not colon or effect not in {"allow", "deny", "escalate"}:
            effect, condition = "allow", rule
        group = "approvers" if effect == "escalate" else ""
        rows.append(f"p, r{number}, {field(condition)}, {effect}, {group}")
    return bundle(model("eval(p.rule)", **options), "\n".join(rows))


def holds(condition: str, request: Attributes | None = None) -> bool:
    """Return whether a rule with this condition allows `request`."""
    return rule_bundle(condition).evaluate(request or attributes()).verdict == "allow"


def faults(files: Mapping[str, bytes]) -> list[str]:
    """Return the faults that keep `files` from loading, `file:line:column: message` each."""
    try:
        load_bundle_files(files)
    except ConfigurationError as error:
        found = error.faults
    else:
        return []
    return [f"{fault.file}:{fault.line}:{fault.column}: {fault.message}" for fault in found]


def condition_faults(condition: str) -> list[str]:
    """Return the faults of one matcher, `column: message`, columns counted within it."""
    found = faults(texts(model(condition), "p, r1, true, allow,"))
    assert all(fault.startswith("model.conf:9:") for fault in found), found
    parts = [fault.split(":", 3) for fault in found]
    return [f"{int(column) - 4}:{message}" for _, _, column, message in parts]


def attributes(
    *,
    sub: Mapping[str, Any] | None = None,
    chain: Mapping[str, Any] | None = None,
    act: Mapping[str, Any] | None = None,
    obj: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
    actors: tuple[PartyAttributes, ...] = (),
    subject: PartyAttributes | None = None,
) -> Attributes:
    """Return a request of an agent with a chain; each record can be given in part."""
    return Attributes(
        caller=party(**(sub or {})),
        actors=actors,
        subject=subject,
        chain=ChainAttributes(
            **{
                "present": True,
                "assurance": "hop_signed",
                "mode": "exercise",
                "depth": 2,
                "subject": "alice@example.org",
                "actors": ("spiffe://example.org/agent/a", "spiffe://example.org/agent/b"),
                "leaf": "spiffe://example.org/agent/b",
                "scope": frozenset({"crm.read", "data.read"}),
                **(chain or {}),
            }
        ),
        act=ActionAttributes(
            **{"protocol": "http", "name": "GET", "read_only": True, **(act or {})}
        ),
        obj=ObjectAttributes(
            **{
                "type": "http",
                "host": "data.example",
                "path": "/v1/customers/7",
                "segments": ("v1", "customers", "7"),
                **(obj or {}),
            }
        ),
        env=EnvironmentAttributes(
            **{
                "now": 1_767_225_600,
                "hour_utc": 0,
                "weekday": 4,
                "source_ip": "10.1.2.3",
                "listener": None,
                "domain": "data",
                "bundle": "sample",
                "sni": None,
                **(env or {}),
            }
        ),
    )


def party(**given: Any) -> PartyAttributes:
    """Return the caller, an agent; each attribute can be given."""
    return PartyAttributes(
        **{
            "id": "spiffe://example.org/agent/b",
            "kind": "agent",
            "role": "caller",
            "trust_domain": "example.org",
            "path": "/agent/b",
            **given,
        }
    )
