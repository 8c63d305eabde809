"""Print what one evaluation costs: the compiled engine beside pycasbin, in one run.

    python tests/bench/bench_policy.py [--requests N]

Figures only; nothing here passes or fails.
"""

import argparse
import gc
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import casbin
from casbin.persist.adapter import load_policy_line

from authz_server.core.attributes import (
    ActionAttributes,
    Attributes,
    ChainAttributes,
    EnvironmentAttributes,
    ObjectAttributes,
    PartyAttributes,
)
from authz_server.policy.bundle import load_bundle_files

ABAC = """[request_definition]
r = sub, chain, act, obj
[policy_definition]
p = tool, act, rule, eft
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = r.obj.tool == p.tool && r.act.name == p.act && eval(p.rule)
"""
PATHS = """[request_definition]
r = sub, act, obj
[policy_definition]
p = act, path, rule, eft
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = r.act.name == p.act && keyMatch2(r.obj.path, p.path) && eval(p.rule)
"""
RBAC = """[request_definition]
r = sub, act, obj
[policy_definition]
p = role, path, act
[role_definition]
g = _, _
[policy_effect]
e = some(where (p.eft == allow))
[matchers]
m = r.obj.path == p.path && r.act.name == p.act && g(r.sub.id, p.role)
"""
MANIFEST = b"name: bench\ndomain: data\n"


def abac_rows(rules: int, candidates: int) -> Iterator[str]:
    """Rules for tools, so many of them for each; each with a condition of its own."""
    for number in range(rules):
        tool = number // candidates
        eft = "deny" if number % candidates == 1 else "allow"
        limit = number % candidates if eft == "allow" else 1000
        rule = f"r.sub.kind == 'agent' && r.chain.depth > {limit - 1}"
        yield f"p, tool-{tool}, tools/call, {rule}, {eft}"


def path_rows(rules: int) -> Iterator[str]:
    """Rules for paths under as many services."""
    for number in range(rules):
        yield f"p, GET, /svc-{number // 10}/v1/:id/part-{number % 10}, r.sub.kind == 'agent', allow"


def rbac_rows(rules: int, roles: int, levels: int) -> Iterator[str]:
    """Rules for roles, and a hierarchy of so many levels below each tenth role."""
    for number in range(rules):
        yield f"p, role-{number % roles}, /res/{number}, GET"
    for role in range(roles - 1):
        if (role + 1) % levels:
            yield f"g, role-{role}, role-{role + 1}"
    yield "g, spiffe://bench/agent, role-0"


def shared_rows(rules: int, roles: int, levels: int) -> Iterator[str]:
    """Rules of as many roles for one and the same resource: only the caller's roles tell."""
    for number in range(rules):
        yield f"p, role-{number % roles}, /res/4, {'GET' if number < roles else f'M{number}'}"
    for role in range(roles - 1):
        if (role + 1) % levels:
            yield f"g, role-{role}, role-{role + 1}"
    yield "g, spiffe://bench/agent, role-0"


def attributes(tool: str = "tool-3", path: str = "/svc-3/v1/42/part-5") -> Attributes:
    """Return one request."""
    return Attributes(
        caller=PartyAttributes(id="spiffe://bench/agent", kind="agent", role="caller"),
        chain=ChainAttributes(present=True, depth=2, scope=frozenset({"crm.read"})),
        act=ActionAttributes(
            protocol="mcp",
            name="tools/call" if tool and not path else "GET",
            read_only=False,
        ),
        obj=ObjectAttributes(type="mcp_tool", tool=tool or None, path=path or None),
        env=EnvironmentAttributes(
            now=0,
            hour_utc=0,
            weekday=1,
            source_ip=None,
            listener=None,
            domain="data",
            bundle="bench",
            sni=None,
        ),
    )


def percentiles(call: Callable[[], object], requests: int) -> tuple[float, float]:
    """Return p50 and p99 of one call, in µs."""
    taken = []
    for _ in range(requests):
        start = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - start)
    return statistics.median(taken) / 1000, sorted(taken)[int(requests * 0.99)] / 1000


def pycasbin_us(model: str, rows: str, request: Attributes, tokens: str) -> float:
    """Return the median of a few decisions by pycasbin over the same model and rows."""
    enforcer = casbin.Enforcer(casbin.Enforcer.new_model(text=model))
    for row in rows.splitlines():
        load_policy_line(row, enforcer.model)
    enforcer.build_role_links()
    namespace = SimpleNamespace(
        sub=request.caller, chain=request.chain, act=request.act, obj=request.obj
    )
    values = [getattr(namespace, token) for token in tokens.split()]
    once = percentiles(lambda: enforcer.enforce(*values), 1)[0]
    return percentiles(lambda: enforcer.enforce(*values), max(1, min(200, int(2e6 / once))))[0]


def built_bytes(files: dict[str, bytes]) -> int:
    """Return what one more bundle of these files occupies."""
    gc.collect()
    tracemalloc.start()
    bundle = load_bundle_files(files)
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert bundle.rules
    return size


def measure(name: str, model: str, rows: str, request: Attributes, *, n: int, oracle: str) -> None:
    """Print the figures of one workload as JSON."""
    files = {
        "model.conf": model.encode(),
        "policy.csv": rows.encode(),
        "bundle.yaml": MANIFEST,
    }
    start = time.perf_counter()
    bundle = load_bundle_files(files)
    build_s = time.perf_counter() - start
    bytes_per_rule = round(built_bytes(files) / len(bundle.rules))
    call = lambda: bundle.evaluate(request)  # noqa: E731
    evaluation = bundle.evaluate(request)
    p50, p99 = percentiles(call, n)
    figures: dict[str, object] = {
        "workload": name,
        "rules": len(bundle.rules),
        "build_s": round(build_s, 3),
        "bytes_per_rule": bytes_per_rule,
        "p50_us": round(p50, 2),
        "p99_us": round(p99, 2),
        "verdict": str(evaluation.verdict),
    }
    if oracle:
        figures["casbin_p50_us"] = round(pycasbin_us(model, rows, request, oracle), 1)
    print(json.dumps(figures), flush=True)


def main() -> None:
    """Run every workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--large", action="store_true", help="100,000 rules too")
    arguments = parser.parse_args()
    n = arguments.requests
    call, get = attributes(path=""), attributes(tool="")
    rows = "\n".join(abac_rows(100, 5))
    measure("abac eval, 5 candidates", ABAC, rows, call, n=n, oracle="sub chain act obj")
    rows = "\n".join(abac_rows(10_000, 20))
    measure("abac eval, 20 candidates", ABAC, rows, call, n=n, oracle="sub chain act obj")
    rows = "\n".join(path_rows(1_000))
    measure("path patterns", PATHS, rows, get, n=n, oracle="sub act obj")
    if arguments.large:
        rows = "\n".join(path_rows(100_000))
        measure("path patterns", PATHS, rows, get, n=n, oracle="sub act obj")
    rows = "\n".join(rbac_rows(10_000, 1_000, 5))
    request = attributes(tool="", path="/res/4")
    measure("rbac, 5 levels", RBAC, rows, request, n=n, oracle="sub act obj")
    rows = "\n".join(shared_rows(10_000, 1_000, 5))
    measure("rbac, one resource", RBAC, rows, request, n=n, oracle="sub act obj")


if __name__ == "__main__":
    main()
