"""A policy bundle: load all of it or say everything that is wrong with it; then only evaluate.

`load_bundle_files` is pure; `load_bundle` and `load_bundles` are the only functions of this room
that read files.
"""

import fnmatch
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from authz_server.core.arguments import Declaration
from authz_server.core.attributes import Attributes, PartyAttributes, Role
from authz_server.core.decision import Evaluation
from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.limits import POLICY_FILE_BYTES_MAX
from authz_server.core.suggestion import did_you_mean
from authz_server.policy.cases import Case, CaseFailure, load_cases, run_cases, untested_rules
from authz_server.policy.index import Node
from authz_server.policy.manifest import Manifest, RowSource, load_manifest
from authz_server.policy.model import Effect, load_model
from authz_server.policy.rules import (
    Rule,
    RuleObserver,
    check_matching,
    load_rules,
    unobserved,
)
from authz_server.policy.source import FaultLog, SourceFile
from authz_server.policy.table import PolicyTable
from authz_server.policy.verdict import judge, policy_error, strictest

MODEL: Final = "model.conf"
MANIFEST: Final = "bundle.yaml"
POLICY: Final = "policy.csv"
ROLES: Final = "roles.csv"
CASES: Final = "cases.yaml"
_NAMED: Final = (MODEL, MANIFEST, POLICY, ROLES, CASES)
_POLICY_PARTS: Final = "policy-*.csv"
# A file of these kinds that nothing reads is a misspelt one, and may hold the deny rules.
_NO_STRANGERS: Final = (".conf", ".csv", ".yaml", ".yml")
_REVISION_CHARS: Final = 16

# (where the rows are, the bundle.yaml that says so): raises `ConfigurationError` naming that file.
TableReader = Callable[[RowSource, str], PolicyTable]


class DirectoryLoader(Protocol):
    """Loads the bundle in one directory. `load_bundle` is the plain one."""

    def __call__(self, directory: Path, *, observe: RuleObserver) -> "PolicyBundle":
        """Return the bundle. Raises `ConfigurationError` with every fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBundle:
    """One compiled bundle. Immutable and free of hidden state: any number of threads may share it.

    `effects` are those of the policy types, by `Rule.section`. `rules` are in the order they are
    reported in; `warnings` do not stop a bundle from loading.
    `cases` are the policy tests of `cases.yaml`; `failed_cases` runs them.
    """

    manifest: Manifest
    revision: str
    effects: tuple[Effect, ...]
    rules: tuple[Rule, ...]
    index: Node[Rule]
    order: Mapping[str, int]
    warnings: tuple[Fault, ...] = ()
    cases: tuple[Case, ...] = ()

    @property
    def name(self) -> str:
        """Name of the bundle, the value of the `bundle` context extension."""
        return self.manifest.name

    @property
    def effect(self) -> Effect:
        """The effect of the first policy type, `p`."""
        return self.effects[0]

    @property
    def domain(self) -> str:
        """Enforcement domain: application, infrastructure, data or ai_workload."""
        return self.manifest.domain

    @property
    def arguments(self) -> Declaration:
        """Which arguments its rules read out of a request's body, and where they are in it."""
        return self.manifest.arguments

    @property
    def approver_groups(self) -> frozenset[str]:
        """Groups that its rules may ask for an approval."""
        return frozenset(rule.obligation for rule in self.rules if rule.obligation)

    def evaluate(self, attributes: Attributes) -> Evaluation:
        """Judge every party the bundle names; the strictest verdict wins. Never raises."""
        try:
            parties = self.parties(attributes)
            if len(parties) == 1:
                return self.judge_party(parties[0], attributes)
            judged = [self.judge_party(party, attributes) for party in parties]
            return strictest(judged, self.order)
        except Exception:  # noqa: BLE001 -- attributes of a wrong shape deny like any other error
            return policy_error()

    def failed_cases(self) -> tuple[CaseFailure, ...]:
        """Return the policy tests that this bundle does not pass."""
        return run_cases(self, self.cases)

    def untested_rules(self) -> tuple[str, ...]:
        """Return the ids of the rules that decide no policy test."""
        return untested_rules(self, self.cases, self.order)

    def parties(self, attributes: Attributes) -> tuple[PartyAttributes, ...]:
        """Return those whom the bundle judges, the caller first."""
        wanted = self.manifest.parties
        parties: tuple[PartyAttributes, ...] = (attributes.caller,)
        if Role.ACTOR in wanted:
            parties += attributes.actors
        if Role.SUBJECT in wanted and attributes.subject is not None:
            parties += (attributes.subject,)
        return parties

    def judge_party(self, party: PartyAttributes, attributes: Attributes) -> Evaluation:
        """Return what the rules say of one party."""
        records = (party, attributes.chain, attributes.act, attributes.obj, attributes.env)
        matched: list[Rule] = []
        failed: list[Rule] = []
        for rule in self.candidates(records):
            try:
                if rule.matches(*records):
                    matched.append(rule)
            except Exception:  # noqa: BLE001 -- SECURITY: whatever a matcher raises, it denies
                failed.append(rule)
        return self.judge_rules(matched, failed)

    def candidates(self, records: tuple[object, ...]) -> Sequence[Rule]:
        """Return the rules that can match the five records (`compile.RECORDS`), in any order."""
        return self.index.find(records)

    def judge_rules(self, matched: Sequence[Rule], failed: Sequence[Rule]) -> Evaluation:
        """Return the verdict where `matched` are all that match and `failed` raise an error."""
        if failed:
            return policy_error(failed)
        if len(self.effects) == 1:
            return judge(self.effects[0], matched)
        judged = [
            judge(effect, [rule for rule in matched if rule.section == section])
            for section, effect in enumerate(self.effects)
        ]
        return strictest(judged, self.order)


def load_bundle_files(
    files: Mapping[str, bytes],
    *,
    name_hint: str | None = None,
    directory: str = "",
    table: PolicyTable | None = None,
    observe: RuleObserver = unobserved,
) -> PolicyBundle:
    """Return the bundle that `files` (flat names to contents) make.

    `name_hint` names it where `bundle.yaml` does not; `directory` only says in faults where the
    files are; `table` is what was read from the `row_source` of the files, if they have one;
    `observe` is told of every rule. Raises `ConfigurationError` with every fault. Names that begin
    with a dot, and kinds of files no bundle has, are ignored.
    """
    log = FaultLog()
    shown = f"{directory}/" if directory else ""
    known = {name: data for name, data in files.items() if _is_read(name)}
    _check_names(known, shown, table, log)
    texts = {name: _decode(shown + name, data, log) for name, data in known.items()}
    manifest = None
    if MANIFEST in known:
        file = shown + MANIFEST
        manifest = load_manifest(known[MANIFEST], file=file, name_hint=name_hint, log=log)
        if manifest is not None and (manifest.rows is None) is not (table is None):
            log.add(Fault(file=file, message="`rows` names a table that was not read"))
    model = load_model(texts[MODEL], log) if MODEL in texts else None
    rules: tuple[Rule, ...] = ()
    index: Node[Rule] = Node()
    policies: list[SourceFile | PolicyTable] = [
        texts[name] for name in sorted(texts, key=_policy_order) if _is_policy(name)
    ]
    roles = [texts[ROLES]] if ROLES in texts else []
    if table is not None:
        policies, roles = [table], []
    if model is not None and policies:
        if manifest is not None:
            declared = frozenset(manifest.arguments)
            model = replace(model, matching=manifest.matching, arguments=declared)
            check_matching(model, shown + MANIFEST, log)
        rules, index = load_rules(policies, roles, model, log, observe)
    cases: tuple[Case, ...] = ()
    if CASES in known and manifest is not None:
        cases = load_cases(known[CASES], file=shown + CASES, manifest=manifest, log=log)
    faults = log.errors()
    if faults or manifest is None or model is None:
        raise ConfigurationError(faults, log.warnings)
    return PolicyBundle(
        manifest=manifest,
        revision=_revision(known, table),
        effects=tuple(section.effect for section in model.sections),
        rules=rules,
        index=index,
        order=MappingProxyType({rule.id: rule.order for rule in rules}),
        warnings=tuple(log.warnings),
        cases=cases,
    )


def row_source(files: Mapping[str, bytes]) -> RowSource | None:
    """Return where the rows of the bundle are if not in `files`; None also for a faulty bundle."""
    manifest = None
    if MANIFEST in files:
        manifest = load_manifest(files[MANIFEST], file=MANIFEST, name_hint="any", log=FaultLog())
    return None if manifest is None else manifest.rows


def load_bundle(
    directory: Path,
    *,
    read_table: TableReader | None = None,
    observe: RuleObserver = unobserved,
) -> PolicyBundle:
    """Return the bundle in `directory`. Raises `ConfigurationError` with every fault.

    `read_table` is asked for the rows of a bundle that has them in a database.
    """
    files = read_bundle_files(directory)
    source, table = row_source(files), None
    if source is not None and read_table is not None:
        table = read_table(source, str(directory / MANIFEST))
    return load_bundle_files(
        files, name_hint=directory.name, directory=str(directory), table=table, observe=observe
    )


def load_bundles(
    directory: Path,
    *,
    load: DirectoryLoader = load_bundle,
    observers: Callable[[Path], RuleObserver] = lambda _: unobserved,
) -> Mapping[str, PolicyBundle]:
    """Return every bundle under `directory` by name: each direct sub-directory is one.

    All or nothing: raises `ConfigurationError` with the faults of all of them. Names that begin
    with a dot are Kubernetes' or an editor's own and are ignored. `load` loads one sub-directory;
    `observers` gives whoever is told of the rules in it.
    """
    bundles: dict[str, PolicyBundle] = {}
    faults: list[Fault] = []
    warnings: list[Fault] = []
    for part in bundle_directories(directory):
        try:
            bundle = load(part, observe=observers(part))
        except ConfigurationError as error:
            faults += error.faults
            warnings += error.warnings
            continue
        warnings += bundle.warnings
        if bundle.name in bundles:
            message = f"bundle name `{bundle.name}` is given twice"
            faults.append(Fault(file=str(part / MANIFEST), message=message))
        bundles[bundle.name] = bundle
    if not bundles and not faults:
        faults.append(Fault(file=str(directory), message="there is no policy bundle in it"))
    if faults:
        raise ConfigurationError(faults, warnings)
    return MappingProxyType(bundles)


def bundle_directories(directory: Path) -> list[Path]:
    """Return the directories of the bundles under `directory`, by name."""
    try:
        found = [path for path in directory.iterdir() if not path.name.startswith(".")]
        return sorted(path for path in found if path.is_dir())
    except OSError as error:
        raise _unreadable(directory, error) from error


def read_bundle_files(directory: Path) -> dict[str, bytes]:
    """Return the files of one bundle by name.

    A mounted ConfigMap is a directory of links through `..data`, which Kubernetes swaps at once:
    it is resolved once, so that all files are of one generation.
    """
    try:
        data = directory / "..data"
        source = data.resolve(strict=True) if data.is_symlink() else directory
        return {
            path.name: _read(path, directory / path.name)
            for path in sorted(source.iterdir())
            if _is_read(path.name) and path.is_file()
        }
    except OSError as error:
        raise _unreadable(directory, error) from error


def _read(path: Path, shown: Path) -> bytes:
    with path.open("rb") as stream:
        data = stream.read(POLICY_FILE_BYTES_MAX + 1)
    if len(data) > POLICY_FILE_BYTES_MAX:
        message = f"larger than {POLICY_FILE_BYTES_MAX // 2**20} MiB"
        raise ConfigurationError([Fault(file=str(shown), message=message)])
    return data


def _unreadable(path: Path, error: OSError) -> ConfigurationError:
    message = f"cannot be read: {error.strerror or error}"
    return ConfigurationError([Fault(file=str(path), message=message)])


def _is_read(name: str) -> bool:
    return not name.startswith(".") and name.endswith(_NO_STRANGERS)


def _is_policy(name: str) -> bool:
    return name == POLICY or fnmatch.fnmatchcase(name, _POLICY_PARTS)


def _holds_rows(name: str) -> bool:
    return _is_policy(name) or name == ROLES


def _policy_order(name: str) -> tuple[bool, str]:
    return name != POLICY, name


def _check_names(
    known: Mapping[str, bytes], shown: str, table: PolicyTable | None, log: FaultLog
) -> None:
    for name, data in known.items():
        if name not in _NAMED and not _is_policy(name):
            message = f"no part of a bundle has this name{did_you_mean(name, _NAMED)}"
            log.add(Fault(file=shown + name, message=message))
        if len(data) > POLICY_FILE_BYTES_MAX:
            message = f"larger than {POLICY_FILE_BYTES_MAX // 2**20} MiB"
            log.add(Fault(file=shown + name, message=message))
    for name in (MODEL, MANIFEST):
        if name not in known:
            log.add(Fault(file=shown + name, message="the file is missing"))
    if table is not None:
        for name in filter(_holds_rows, known):
            message = "the rows of this bundle come from a table; remove the file"
            log.add(Fault(file=shown + name, message=message))
    elif not any(map(_is_policy, known)):
        log.add(Fault(file=shown + POLICY, message="the file is missing"))


def _decode(name: str, data: bytes, log: FaultLog) -> SourceFile:
    """Return the text of a file; one that is not plain UTF-8 is a fault and reads as empty."""
    if data.startswith(b"\xef\xbb\xbf"):
        log.add(Fault(file=name, line=1, message="byte order mark; save the file without one"))
        data = data[3:]
    try:
        return SourceFile(name, data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        log.add(Fault(file=name, line=line, message="not UTF-8"))
        return SourceFile(name, "")


def _revision(known: Mapping[str, bytes], table: PolicyTable | None) -> str:
    """Return the digest of names and contents, each preceded by its length."""
    digest = hashlib.sha256()
    parts = sorted(known.items())
    if table is not None:
        parts.append((f"table {table.name}", table.digest.encode()))
    for name, content in parts:
        for part in (name.encode(), content):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()[:_REVISION_CHARS]
