"""Let a manifest through only if every policy bundle in it passes lint and its own cases.

Reads the manifest from standard input and writes the same bytes to standard output, or nothing:

    kubectl kustomize k8s/overlays/central | python -m k8s.gate | kubectl apply --server-side -f -

Exit 1: a bundle has a fault or fails a case. Exit 2: what came is no manifest, or has no bundle.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from authz_server.cli.main import group
from k8s.checking.documents import documents
from k8s.checking.kustomize import KustomizeError, parse
from k8s.checking.manifest import Manifest, at, text
from k8s.checking.pdp_files import is_bundle, lay_out

_REFUSED = 1
_UNREADABLE = 2


class GateError(Exception):
    """What came cannot be tested."""


def lay_out_bundles(manifests: Sequence[Manifest], root: Path) -> Iterator[Path]:
    """Write every bundle below `root` and return the directories that hold some, one a namespace.

    Raises `GateError` for a bundle without a name or label, and for two of one name.
    """
    found = set()
    for manifest in manifests:
        if not is_bundle(manifest):
            _check_is_none(manifest)
            continue
        name = _name(manifest)
        # A name is a directory here; the loader says what else is wrong with one.
        if not name or "/" in name or name.startswith("."):
            raise GateError(f"{manifest}: data.bundle.yaml: has no `name` to serve it under")
        if manifest.at("binaryData"):
            raise GateError(f"{manifest}: binaryData: a policy is text")
        directory = root / (manifest.namespace or "default")
        if (directory / name).exists():
            raise GateError(f"{manifest}: data.bundle.yaml: the bundle `{name}` is there twice")
        lay_out(manifest, directory / name)
        found.add(directory)
    if not found:
        raise GateError("no ConfigMap is labelled `app.kubernetes.io/component: policy-bundle`")
    yield from sorted(found)


def _check_is_none(manifest: Manifest) -> None:
    # SECURITY: a bundle without the label would be applied untested.
    if manifest.kind == "ConfigMap" and manifest.at("data", "model.conf") is not None:
        label = "app.kubernetes.io/component: policy-bundle"
        raise GateError(f"{manifest}: metadata.labels: is a bundle, and not labelled `{label}`")


def _name(manifest: Manifest) -> str:
    try:
        described = next(documents(text(manifest.at("data", "bundle.yaml"))), None)
    except yaml.YAMLError as error:
        raise GateError(f"{manifest}: data.bundle.yaml: not YAML: {error}") from error
    return text(at(described, "name"))


def passes(directory: Path, *, coverage: int) -> bool:
    """Run lint and cases of every bundle in `directory`, reports to standard error."""
    commands = (["lint", "--strict"], ["test", "--require-coverage", str(coverage)])
    codes = [_policy(*command, str(directory)) for command in commands]  # both, for both reports
    return not any(codes)


def _policy(*arguments: str) -> int:
    """Run `authz-server policy` as a person would; return its exit code."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            group.main(args=["policy", *arguments], prog_name="authz-server")
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else _REFUSED
    return 0


def judge(stream: bytes, *, coverage: int) -> int:
    """Test the bundles in `stream`; return 0 if it may pass, else the exit code, with reasons."""
    try:
        manifests = parse(stream.decode("utf-8"))
        with tempfile.TemporaryDirectory() as root:
            results = [
                passes(directory, coverage=coverage)
                for directory in lay_out_bundles(manifests, Path(root))
            ]
    except (GateError, KustomizeError, UnicodeDecodeError) as error:
        sys.stderr.write(f"gate: {error}\n")
        return _UNREADABLE
    if not all(results):
        sys.stderr.write("gate: refused; nothing was passed on\n")
        return _REFUSED
    return 0


def main() -> int:
    """Read, test, and pass on."""
    parser = argparse.ArgumentParser(
        prog="python -m k8s.gate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--require-coverage", type=int, default=100, metavar="PERCENT")
    options = parser.parse_args()
    stream = sys.stdin.buffer.read()
    code = judge(stream, coverage=options.require_coverage)
    if code == 0:
        sys.stdout.buffer.write(stream)
        sys.stdout.buffer.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
