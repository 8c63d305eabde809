"""pycasbin as the oracle: the same model, rows and request in both engines."""

import contextlib
import csv
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import casbin
from casbin.core_enforcer import EnforceContext
from casbin.effect import get_effector
from casbin.util.builtin_operators import (
    glob_match_func,
    key_match2_func,
    key_match_func,
    time_match_func,
)

from authz_server.core.attributes import Attributes
from authz_server.core.decision import Verdict
from authz_server.policy.bundle import PolicyBundle, load_bundle_files

MANIFEST = "name: sample\ndomain: data\n"
_FUNCTIONS = {
    "keyMatch": key_match_func,
    "keyMatch2": key_match2_func,
    "globMatch": glob_match_func,
}
Matching = Mapping[str, str]


@dataclass(frozen=True)
class Policy:
    """A model and its rows, each with its type first; `members` and `domains` match patterns."""

    conf: str
    rows: Sequence[Sequence[str]]
    members: Matching = field(default_factory=dict)
    domains: Matching = field(default_factory=dict)

    def compiled(self, **extra: str) -> PolicyBundle:
        """Return our bundle of it; raises `ConfigurationError`."""
        manifest = MANIFEST
        for key, matching in (("role_matching", self.members), ("domain_matching", self.domains)):
            if matching:
                manifest += f"{key}: {{{', '.join(f'{k}: {v}' for k, v in matching.items())}}}\n"
        lines = [", ".join(map(_quoted, row)) for row in self.rows]
        texts = {"model.conf": self.conf, "policy.csv": "\n".join(lines), "bundle.yaml": manifest}
        return load_bundle_files({name: text.encode() for name, text in {**texts, **extra}.items()})

    def pycasbin(self) -> Any:
        """Return an enforcer of it, its rows as from a database, temporal links under TimeMatch."""
        enforcer = casbin.Enforcer(casbin.Enforcer.new_model(text=self.conf))
        for kind, *values in self.rows:
            enforcer.model[kind[0]][kind].policy.append(values)
        enforcer.model.sort_policies_by_subject_hierarchy()
        enforcer.model.sort_policies_by_priority()
        enforcer.init_rm_map()
        for name, function in self.members.items():
            enforcer.add_named_matching_func(name, _FUNCTIONS[function])
        for name, function in self.domains.items():
            enforcer.add_named_domain_matching_func(name, _FUNCTIONS[function])
        if enforcer.rm_map:
            enforcer.build_role_links()
        if enforcer.cond_rm_map:
            enforcer.model.build_conditional_role_links(enforcer.cond_rm_map)
        self._add_time_conditions(enforcer)
        return enforcer

    def _add_time_conditions(self, enforcer: Any) -> None:
        for kind, *values in self.rows:
            if kind[0] == "g" and enforcer.model["g"][kind].params_tokens:
                names = values[:-2]
                if len(names) == 2:
                    enforcer.add_named_link_condition_func(kind, *names, time_match_func)
                    enforcer.set_named_link_condition_func_params(kind, *names, *values[-2:])
                else:
                    enforcer.add_named_domain_link_condition_func(kind, *names, time_match_func)
                    enforcer.set_named_domain_link_condition_func_params(kind, *names, *values[-2:])


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def rows(text: str) -> list[list[str]]:
    """Return the rows of a CSV text."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return [[value.strip() for value in row] for row in csv.reader(lines, skipinitialspace=True)]


def records(request: Attributes, tokens: Sequence[str]) -> list[object]:
    """Return the records that compiled matchers read, in the order of a request definition."""
    return [request.caller if token == "sub" else getattr(request, token) for token in tokens]


def allows(policy: PolicyBundle, request: Attributes) -> bool:
    """Return whether our bundle allows `request`, which it must not fail to judge."""
    evaluation = policy.evaluate(request)
    assert evaluation.reason != "POLICY_ERROR", evaluation
    return evaluation.verdict is Verdict.ALLOW


def pycasbin_allows(
    enforcer: Any, request: Attributes, *, tokens: Sequence[str], section: str = ""
) -> bool:
    """Return what pycasbin says of `request`, in a numbered section if one is given.

    A section without a request definition or an effect of its own takes the first.
    """
    model = enforcer.model
    context = EnforceContext(
        *(
            letter + section if letter + section in model[letter] else letter
            for letter in ("r", "p", "e", "m")
        )
    )
    # pycasbin judges every section by `e`; Casbin in Go by the section's own effect, as we do.
    enforcer.eft = get_effector(model["e"][context.etype].value)
    with quiet():
        return bool(enforcer.enforce(context, *records(request, tokens)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let pass what pycasbin and simpleeval warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
