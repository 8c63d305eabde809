"""What a bundle costs: requests to ask it, the time an answer takes, the memory it holds."""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Final

from authz_server.core.attributes import Attributes
from authz_server.policy.cases import load_request
from authz_server.policy.definitions import RoleRows
from authz_server.policy.manifest import Manifest
from authz_server.policy.rule_notes import RuleNotes
from authz_server.policy.source import FaultLog
from authz_server.policy.terms import (
    Apply,
    Constant,
    Contains,
    Either,
    Equal,
    Every,
    HasRole,
    MapValue,
    Negation,
    OneOf,
    Order,
    Slot,
    Term,
    Truth,
)

SAMPLES: Final = 256  # rules that requests are made for, spread over the whole policy


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one call takes."""

    p50_us: float
    p99_us: float


def latency(calls: Sequence[Callable[[], object]], requests: int) -> Latency:
    """Call `calls` in turn, `requests` times altogether, after one round that does not count."""
    for call in calls:
        call()
    taken = []
    for number in range(requests):
        call = calls[number % len(calls)]
        start = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - start)
    taken.sort()
    return Latency(statistics.median(taken) / 1000, taken[int(len(taken) * 0.99)] / 1000)


def size_bytes(root: object) -> int:
    """Return the size of everything that `root` holds, each object once.

    Classes, modules and the globals of functions are the program's, not the bundle's.
    """
    seen: set[int] = set()
    waiting: list[object] = [root]
    total = 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | BuiltinFunctionType):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        if isinstance(one, FunctionType):
            waiting += (one.__code__, one.__defaults__, one.__closure__)
        else:
            waiting += gc.get_referents(one)
    return total


# --- requests -----------------------------------------------------------------------------------


def sample_requests(
    notes: RuleNotes, roles: RoleRows, manifest: Manifest
) -> tuple[Attributes, ...]:
    """Return requests that come as close to matching rules of the policy as can be told.

    One for each of `SAMPLES` rules: what its condition compares with a constant has that value.
    """
    every = max(1, len(notes) // SAMPLES)
    members = {(row[0], row[2]): row[1] for row in sorted(roles) if len(row) >= 3}
    found = []
    for number, note in enumerate(notes):
        if number % every == 0:
            wish = _Wish(members)
            for term in note.conjuncts:
                wish.grant(term)
            found.append(wish.request(manifest))
    return tuple(found)


@dataclass(slots=True)
class _Wish:
    """Attributes that would make conditions true."""

    members: Mapping[tuple[str, str], str]
    values: dict[str, dict[str, object]] = field(default_factory=dict)

    def request(self, manifest: Manifest) -> Attributes:
        """Return the attributes, filled up as those of a case; what does not fit is left out."""
        self.values.setdefault("sub", {}).setdefault("id", "spiffe://example.org/agent/bench")
        self.values.setdefault("chain", {})
        document = json.dumps(self.values, default=list).encode()
        return load_request(document, file="sample", manifest=manifest, log=FaultLog())

    def grant(self, term: Term) -> None:  # noqa: PLR0912 -- one case per kind of term
        match term:
            case Every(items=items):
                for item in items:
                    self.grant(item)
            case Either(items=items):
                self.grant(items[0])
            case Equal(left=left, right=Constant(value=value)):
                self._set(left, value)
            case Equal(left=Constant(value=value), right=right):
                self._set(right, value)
            case OneOf(item=item, options=(Constant(value=value), *_)):
                self._set(item, value)
            case Contains(item=Constant(value=value), collection=Slot() as slot):
                record = self.values.setdefault(slot.record, {})
                held = record.setdefault(slot.field, [])
                assert isinstance(held, list)
                held.append(value)
            case Order(operator=operator, left=left, right=Constant(value=int() as value)):
                self._set(left, value + (">" in operator) - ("<" in operator))
            case Truth(operand=operand):
                self._set(operand, True)
            case Negation(operand=Slot() as slot):
                self._set(slot, False)
            case Slot():
                self._set(term, True)
            case Apply(value=value, constants=(Constant(value=str() as pattern), *_)):
                self._set(value, _path_like(pattern))
            case HasRole(definition=name, arguments=(member, Constant(value=str() as role), *_)):
                self._set(member, self.members.get((name, role), role))
            case _:
                pass

    def _set(self, place: Term, value: object) -> None:
        match place:
            case Slot(record=record, field=name):
                self.values.setdefault(record, {}).setdefault(name, value)
            case MapValue(slot=slot, key=key):
                held = self.values.setdefault(slot.record, {}).setdefault(slot.field, {})
                assert isinstance(held, dict)
                held.setdefault(key, value)
            case _:
                pass


def _path_like(pattern: str) -> str:
    """Return a text that a path pattern matches: each variable and `*` is `x`."""
    return "/".join(_segment_like(part) for part in pattern.split("/"))


def _segment_like(part: str) -> str:
    return "x" if part[:1] in {":", "{", "*"} else part.replace("*", "x")
