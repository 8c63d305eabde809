"""The page about `envoy lint`: an introduction, a table of all rules, and a sample for each.

The samples are those that the tests judge and the real Envoy runs (`tests/cases/envoy_lint.yaml`);
what is right stands in the rendered configuration that a sample changes.
"""

# ruff: noqa: E501 -- the page's tables have one line a row

from collections.abc import Iterator
from itertools import groupby

import yaml

from authz_server.envoy_config.lint.judge import RULES
from authz_server.envoy_config.lint.rule import Rule, Severity
from tests.lint_bases import base
from tests.lint_samples import Sample, Tree, find, samples

_HEAD = """\
# Envoy lint

Generated from `authz_server.envoy_config.lint` and its samples by `make docs`; do not edit.

`authz-server envoy lint` reads Envoy configuration and reports what lets requests past the check, with
the place, the reason and what to write instead. It needs no server and no Envoy.

```console
$ authz-server envoy lint envoy.yaml
envoy.yaml:120:35: error: EA201 a request that nobody could judge is allowed
                  failure_mode_allow: true
                                      ^
    in:   listener `data`
    path: $.static_resources.listeners[0].filter_chains[0].filters[0].typed_config.http_filters[0].typed_config.failure_mode_allow
    why:  While the PDP is down, slow or broken every request passes, and whoever can make it so decides.
    fix:  `failure_mode_allow: false`
1 error, 0 warnings
```

| | |
|---|---|
| `envoy lint FILE…` | a bootstrap, listener, cluster, route configuration or HTTP connection manager; an LDS, CDS or RDS file; a `/config_dump`; YAML or JSON; `-` is standard input |
| `--admin ADDRESS` | what a running Envoy has, from its admin interface: `http://127.0.0.1:9901` or `unix:///run/authz/envoy-admin.sock` |
| `--strict` | exit with 1 for warnings too |
| `--ignore ID` | leave out what one rule finds |
| `--output json` | one finding a line: `rule`, `severity`, `file`, `line`, `column`, `path` (RFC 9535), `resources`, `message`, `why`, `fix` |

Exit code 0: no error; 1: an error; 2: usage, or input that is not Envoy configuration.

**Several files are one Envoy.** Routes and clusters of one file are those that a listener of another
names. Of a dump, what is in force counts: not a listener that drains, not an update that was refused.

**Error** means that a request gets past the check, that it is judged by what the upstream does not see, or
that a caller can pass for another. **Warning** means that a guard is missing which others make up for, or
that something could not be judged.

**Silence means judged.** Fields, enumerations and types are those of Envoy 1.40, taken from the binary. A
field or value that is not among them is an error (EA001, EA002); extensions of other builds, and what comes
from a control plane while Envoy runs, are named in warnings (EA003 to EA006; a running Envoy redacts the values of
context extensions, so `--admin … --strict` goes with `--ignore EA006`). Spellings are read as Envoy
reads them: `failureModeAllow: "yes"` is true. What stands in no chain that leads to an upstream needs no
question; nor does a listener with `traffic_direction: OUTBOUND` that only this machine can reach, whose
calls are judged where they arrive.

**It judges configuration, not policy**, and it judges what Envoy is told, not what surrounds it: whether
another route leads to the workload's own port is a question for the network. An `EnvoyFilter` or a
`SecurityPolicy` in Kubernetes is not Envoy configuration; what Istio or Envoy Gateway make of it is, in the
dump of a proxy (`kubectl exec POD -c istio-proxy -- pilot-agent request GET config_dump`, or `--admin`).
Istio's own filters are named in EA003 there, each once.

In a pipeline: `authz-server envoy lint envoy.yaml --strict`. What `authz-server envoy render` writes is clean.
"""

_GROUPS = {
    "EA0": "Not judged",
    "EA1": "The filter chain",
    "EA2": "The question",
    "EA3": "Routes",
    "EA4": "HTTP",
    "EA5": "Callers and TLS",
    "EA6": "TCP",
    "EA7": "Clusters",
    "EA8": "The process",
    "EA9": "MCP",
}
_PLACES = {
    "bootstrap": "the bootstrap",
    "static": "`static_resources`",
    "listener": "the listener",
    "chain": "the filter chain",
    "tls": "`DownstreamTlsContext`",
    "common_tls": "`common_tls_context` of the listener",
    "validation": "`validation_context` of the listener",
    "hcm": "`HttpConnectionManager`",
    "ext_authz_entry": "the entry of ext_authz in `http_filters`",
    "ext_authz": "`ExtAuthz`",
    "router": "`Router`",
    "service": "`grpc_service` of ext_authz",
    "mcp": "`Mcp`",
    "virtual_host": "the virtual host",
    "route": "the route",
    "action": "`route` of the route",
    "checks": "`check_settings` of the virtual host",
    "tcp_proxy": "`TcpProxy`",
    "pdp": "the PDP's cluster",
    "pdp_common_tls": "`common_tls_context` of the PDP's cluster",
    "pdp_validation": "`validation_context` of the PDP's cluster",
    "upstream": "the upstream's cluster",
}
_RIGHT_LINES_MAX = 12  # more than that is not one setting; `fix` says what to do
_ADDED = {
    "before": "in front of ext_authz",
    "after": "between ext_authz and the router",
    "behind": "behind the router",
    "network_filter": "behind the question, in `filters`",
    "second": "a further listener",
}


def envoy_lint_page() -> str:
    """Return `envoy-lint.md`."""
    found: dict[str, list[Sample]] = {}
    for sample in samples():
        found.setdefault(sample.rule, []).append(sample)
    shown = sum(any(one.shown for one in of_rule) for of_rule in found.values())
    parts = [_HEAD, _counts(shown)]
    for key, rules in groupby(RULES, lambda rule: rule.id[:3]):
        parts.append(f"\n## {_GROUPS[key]}\n\n")
        parts.append("| rule | | unsafe setting | why it matters | shown on Envoy 1.40 |\n")
        parts.append("|---|---|---|---|---|\n")
        of_group = list(rules)
        parts += [_row(rule, found[rule.id]) for rule in of_group]
        for rule in of_group:
            parts += _sample(rule, found[rule.id])
    return "".join(parts)


def _counts(shown: int) -> str:
    return (
        f"\n{len(RULES)} rules. For {shown} of them a test runs the unsafe setting on the real Envoy, word "
        "for word as below,\nand shows what it does; beside it the setting put right, which does not. The "
        "others are of the kind that\ncannot be shown by one request: bounds, omissions, and what Envoy "
        "itself refuses.\n"
    )


def _row(rule: Rule, of_rule: list[Sample]) -> str:
    shown = next((one.shown for one in of_rule if one.shown), None) or ""
    link = f"[{rule.id}](#{rule.id.lower()})"
    mark = "error" if rule.severity is Severity.ERROR else "warning"
    return f"| {link} | {mark} | {rule.title} | {rule.why} | {shown} |\n"


def _sample(rule: Rule, of_rule: list[Sample]) -> Iterator[str]:
    sample = of_rule[0]
    yield f"\n### {rule.id}\nUnsafe: {_where(sample)}\n\n```yaml\n{_unsafe(sample)}```\n\n"
    right = _right(sample)
    if right:
        yield f"Right:\n\n```yaml\n{right}```\n\n"
    yield f"Write {rule.fix}.\n" if rule.fix.startswith("`") else f"{_capital(rule.fix)}.\n"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _where(sample: Sample) -> str:
    added = next((text for key, text in _ADDED.items() if key in sample.values), None)
    return added or f"in {_PLACES[sample.values['at']]}"


def _unsafe(sample: Sample) -> str:
    for key in _ADDED:
        if key in sample.values:
            return _dump([sample.values[key]])
    return _dump(sample.values["unsafe"])


def _right(sample: Sample) -> str:
    """Return the same settings as they should be: `safe` of the sample, or what is rendered."""
    if any(key in sample.values for key in _ADDED):
        return ""
    wanted = sample.values.get("safe")
    if wanted is None:
        wanted = _same_keys(sample.values["unsafe"], find(base(sample.base), sample.values["at"]))
    wanted = {key: value for key, value in wanted.items() if value is not None}
    if wanted == sample.values["unsafe"]:
        return ""  # what makes the difference stands elsewhere
    text = _dump(wanted) if wanted else ""
    return text if text.count("\n") <= _RIGHT_LINES_MAX else ""


def _same_keys(unsafe: Tree, rendered: Tree) -> Tree:
    found = {}
    for key, value in unsafe.items():
        own = rendered.get(key)
        if isinstance(value, dict) and isinstance(own, dict) and key != "typed_per_filter_config":
            inner = _same_keys(value, own)
            if inner:
                found[key] = inner
        elif own is not None and (value is None or not isinstance(own, list | dict)):
            found[key] = own
    return found


def _dump(value: object) -> str:
    if isinstance(value, dict):
        return "".join(_entry(key, inner) for key, inner in value.items())
    return yaml.safe_dump(value, sort_keys=False, width=140, default_flow_style=None)


def _entry(key: str, value: object) -> str:
    flow = None if isinstance(value, list | dict) else False
    return yaml.safe_dump({key: value}, sort_keys=False, width=140, default_flow_style=flow)
