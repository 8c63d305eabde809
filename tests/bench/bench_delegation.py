"""What proving a chain costs: `python -m tests.bench.bench_delegation` prints one JSON object.

Microseconds, best of several rounds on one core: what the code costs, not what the machine's other
guests do. Nothing fails on a time.
"""

import json
import time
from collections.abc import Callable

from authz_server.core import strict_json
from authz_server.core.chain_cache import ChainCache
from authz_server.core.delegation import bind, presented_chain
from authz_server.core.request import Headers
from authz_server.core.svid import peer_identity
from authz_server.demo.authority import envoy_certificate
from tests.harness import chains

_ROUNDS = 7


def best_us(call: Callable[[], object], times: int) -> float:
    """Return the least mean time of one call over several rounds, in microseconds."""
    means = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(times):
            call()
        means.append((time.perf_counter() - start) / times)
    return round(min(means) * 1e6, 2)


def tool_call(rows: int, *, note: int) -> bytes:
    """Return the JSON-RPC body of a tool call with `rows` rows, each with a note."""
    row = {"id": 4711, "name": "customer", "tags": ["a", "b"], "price": 12.34, "note": "x" * note}
    arguments = {"rows": [{**row, "id": number} for number in range(rows)]}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    return json.dumps({**call, "params": {"name": "crm_export", "arguments": arguments}}).encode()


def figures() -> dict[str, object]:
    """Measure each step."""
    root, first, second = chains.three_hops()
    lines = {"txn-token": (root.encode(),), "delegation-chain": (f"{first}, {second}".encode(),)}
    headers = Headers(fields=lines)
    presented = presented_chain(headers, chains.POLICY)
    assert presented is not None
    verified = chains.verify(root, first, second)
    cache = ChainCache()
    certificate = envoy_certificate(chains.svid(chains.ASSISTANT)).encode()

    def warm() -> object:
        return cache.verify(
            presented,
            trust=chains.TRUST,
            policy=chains.POLICY,
            trust_domain=chains.DOMAIN,
            now=chains.NOW,
        )

    def bound() -> object:
        return bind(verified, caller=chains.TOOL, workload_id=None, audience=chains.CRM)

    small, large = tool_call(28, note=60), tool_call(1200, note=130)
    return {
        "chain_bytes": len(root) + len(first) + len(second),
        "presented_us": best_us(lambda: presented_chain(headers, chains.POLICY), 2000),
        "cold_root_us": best_us(lambda: chains.verify(root), 200),
        "cold_root_and_2_links_us": best_us(lambda: chains.verify(root, first, second), 50),
        "warm_us": best_us(warm, 5000),
        "bind_us": best_us(bound, 5000),
        "peer_identity_cold_us": best_us(
            lambda: peer_identity.__wrapped__(certificate.decode()), 500
        ),
        "peer_identity_warm_us": best_us(lambda: peer_identity(certificate.decode()), 5000),
        **_json_figures("small", small, 500),
        **_json_figures("large", large, 10),
    }


def _json_figures(name: str, body: bytes, times: int) -> dict[str, object]:
    strict = best_us(lambda: strict_json.loads(body, depth_max=64, members_max=10_000), times)
    return {
        f"strict_json_{name}_bytes": len(body),
        f"strict_json_{name}_us": strict,
        f"json_{name}_us": best_us(lambda: json.loads(body), times),
    }


if __name__ == "__main__":
    print(json.dumps(figures(), indent=2))
