"""`policy bench`: the compiled engine and pycasbin over the same model, rows and requests."""

import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import click

from authz_server.cli.policy_sources import NotedBundle
from authz_server.core.attributes import SCHEMA, Attributes
from authz_server.policy.bundle import MODEL, read_bundle_files
from authz_server.policy.definitions import RoleRows
from authz_server.policy.measure import latency, sample_requests, size_bytes

_CASBIN_BUDGET_S: Final = 3.0  # pycasbin needs half a second for one decision by 10,000 rules
_CASBIN_REQUESTS_MAX: Final = 200
_EVALUATED: Final = re.compile(r"\beval\(\s*(p[0-9]*)\.(\w+)\s*\)")
_WORDS: Final = re.compile(r"""'[^']*'|"[^"]*"|\w+""")
_CONSTANTS: Final = {"true": "True", "false": "False", "nil": "None"}


def bench(source: NotedBundle, requests: int) -> dict[str, object]:
    """Return the figures of one bundle; prints nothing but notes on standard error."""
    started = time.perf_counter()
    bundle = source.load_again()
    build_s = time.perf_counter() - started
    roles = source.roles
    asked = tuple(case.attributes for case in bundle.cases)
    if not asked:
        click.echo(f"{bundle.name}: no cases; requests are made up from the rules", err=True)
        asked = sample_requests(source.notes, roles, bundle.manifest)
    found = latency([partial(bundle.evaluate, attributes) for attributes in asked], requests)
    served = replace(bundle, cases=(), warnings=())  # what no decision reads is not counted
    return {
        "rules": len(bundle.rules),
        "build_s": round(build_s, 4),
        "p50_us": round(found.p50_us, 2),
        "p99_us": round(found.p99_us, 2),
        "bytes_per_rule": round(size_bytes(served) / len(bundle.rules)),
        "casbin_p50_us": _casbin_p50_us(source, roles, asked),
    }


def _casbin_p50_us(
    source: NotedBundle, roles: RoleRows, asked: tuple[Attributes, ...]
) -> float | None:
    """Return pycasbin's median for the same requests; None if it cannot be asked, with a note."""
    try:
        import casbin
    except ImportError:
        click.echo("pycasbin is not installed: pip install casbin to compare with it", err=True)
        return None
    if len(source.bundle.effects) > 1 or source.bundle.manifest.matching:
        click.echo(f"{source.bundle.name}: not compared: pycasbin judges one policy type", err=True)
        return None
    logging.getLogger("casbin").setLevel(logging.ERROR)
    try:
        enforcer = _enforcer(casbin, source, roles)
        tokens = enforcer.model["r"]["r"].tokens
        calls = [
            partial(enforcer.enforce, *_values(attributes, tokens)) for attributes in _spread(asked)
        ]
        started = time.perf_counter()
        calls[0]()
        once_s = time.perf_counter() - started
        affordable = int(_CASBIN_BUDGET_S / once_s)
        if affordable < 4:  # one round to warm up and three to take the middle of
            return round(once_s * 1e6, 1)
        calls = calls[: affordable // 4]
        requests = min(_CASBIN_REQUESTS_MAX, affordable - len(calls))
        return round(latency(calls, requests).p50_us, 1)
    except Exception as error:  # noqa: BLE001 -- whatever another engine raises is its answer
        click.echo(f"{source.bundle.name}: pycasbin cannot decide this: {error}", err=True)
        return None


def _spread(asked: tuple[Attributes, ...]) -> tuple[Attributes, ...]:
    return asked[:: max(1, len(asked) // 16)]


def _enforcer(casbin: Any, source: NotedBundle, roles: RoleRows) -> Any:
    text = read_bundle_files(source.directory)[MODEL].decode()
    evaluated = {f"{root}_{name}" for root, name in _EVALUATED.findall(text)}
    enforcer = casbin.Enforcer(casbin.Enforcer.new_model(text=_pythonic(text)))
    for note in source.notes:
        kind = note.row.kind
        columns = zip(enforcer.model["p"][kind].tokens, note.row.values, strict=True)
        values = [_pythonic(text) if name in evaluated else text for name, text in columns]
        # As its file adapters do: `add_policy` compares each row with all before it.
        enforcer.model["p"][kind].policy.append(values)
    for kind, *values in sorted(roles):
        enforcer.model["g"][kind].policy.append(values)
    enforcer.build_role_links()
    return enforcer


def _pythonic(text: str) -> str:
    """Spell constants as pycasbin's evaluator knows them; it has no `true`, `false` or `nil`."""
    return _WORDS.sub(lambda match: _CONSTANTS.get(match[0], match[0]), text)


def _values(attributes: Attributes, tokens: list[str]) -> Iterator[object]:
    """Yield the records in the order of the model's request tokens, `r_sub` and so on."""
    records = {
        "sub": attributes.caller,
        "chain": attributes.chain,
        "act": attributes.act,
        "obj": attributes.obj,
        "env": attributes.env,
    }
    for token in tokens:
        record = records[token.partition("_")[2]]
        values = {name: getattr(record, name) for name in SCHEMA[token.partition("_")[2]]}
        yield SimpleNamespace(
            **{
                name: _Map(value) if isinstance(value, Mapping) else value
                for name, value in values.items()
            }
        )


class _Map:
    """A map whose values are read as attributes, as pycasbin's matchers do."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> None:
        return None
