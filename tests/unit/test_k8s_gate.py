"""A manifest passes the gate unchanged if its bundles pass their cases, and else not at all."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from k8s.checking.manifest import Manifest, mapping
from k8s.checking.pdp_files import is_bundle, lay_out
from k8s.gate import judge
from tests.harness.kustomizations import K8S, Object, built, damaged

CENTRAL = "overlays/central"
Edit = Callable[[Object], object]


def stream(*manifests: Manifest) -> bytes:
    return yaml.safe_dump_all([dict(manifest.value) for manifest in manifests]).encode()


def edited(name: str, edit: Edit) -> bytes:
    """Return one bundle after `edit`, by itself."""
    manifests = damaged(CENTRAL, "ConfigMap", name, edit)
    return stream(*(manifest for manifest in manifests if manifest.name == name))


def bundle(name: str) -> Manifest:
    (found,) = [m for m in built(CENTRAL) if is_bundle(m) and m.name == name]
    return found


def test_what_we_ship_passes_byte_for_byte() -> None:
    given = b"# a comment\n" + stream(*built(CENTRAL))
    argv = [sys.executable, "-m", "k8s.gate"]
    ran = subprocess.run(argv, input=given, capture_output=True, check=False, cwd=K8S.parent)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == given
    assert b"tools: " in ran.stderr


def test_nothing_is_passed_on_when_a_bundle_is_wrong() -> None:
    given = edited("policy-tools", lambda config_map: config_map["data"].pop("model.conf"))
    argv = [sys.executable, "-m", "k8s.gate"]
    ran = subprocess.run(argv, input=given, capture_output=True, check=False, cwd=K8S.parent)
    assert (ran.returncode, ran.stdout) == (1, b"")


def _replace(file: str, old: str, new: str) -> Edit:
    def edit(config_map: Object) -> None:
        assert old in config_map["data"][file]
        config_map["data"][file] = config_map["data"][file].replace(old, new)

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        # Reads well, and lets through what a case denies.
        (_replace("policy.csv", "tools/call, crm_export, , ", "x, y, , "), "came out otherwise"),
        (_replace("policy.csv", ", deny,", ", Deny,"), "policy.csv:"),
        (_replace("model.conf", "[matchers]", "[matcher]"), "model.conf:"),
        (lambda config_map: config_map["data"].pop("policy.csv"), "policy"),
        (
            lambda config_map: config_map["data"].update({"cases.yaml": ""}),
            "expected a list of cases",
        ),
    ],
    ids=["a case fails", "an effect nobody knows", "no matcher", "no rows", "no cases"],
)
def test_a_bundle_that_is_wrong_is_refused(
    edit: Edit, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(edited("policy-tools", edit), coverage=100) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert "refused" in captured.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"", "no ConfigMap is labelled"),
        (b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: policy-x}\n", "is labelled"),
        (b"a: [b", "not YAML"),
        (b"\xff\xfe", "decode"),
    ],
    ids=["nothing", "no label", "no YAML", "no text"],
)
def test_what_cannot_be_tested_is_refused(
    given: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(given, coverage=0) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c["metadata"].pop("labels"), "is a bundle, and not labelled"),
        (lambda c: c["data"].pop("bundle.yaml"), "has no `name`"),
        (lambda c: c["data"].update({"bundle.yaml": "name: ../up"}), "has no `name`"),
        (lambda c: c["data"].update({"bundle.yaml": "name: .hidden"}), "has no `name`"),
        (lambda c: c["data"].update({"bundle.yaml": "name: [a"}), "not YAML"),
        (lambda c: c["data"].update({"bundle.yaml": "name: data"}), "is there twice"),
        (lambda c: c.update(binaryData={"policy.csv": "eA=="}), "a policy is text"),
    ],
    ids=["no label", "no description", "a path", "hidden", "no YAML", "another's name", "binary"],
)
def test_a_bundle_that_cannot_be_laid_out_is_refused(
    edit: Edit, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = stream(*damaged(CENTRAL, "ConfigMap", "policy-tools", edit))
    assert judge(given, coverage=0) == 2
    assert said in capsys.readouterr().err


def test_coverage_is_asked_for() -> None:
    """The first case alone passes and leaves rules unexercised."""

    def fewer(config_map: Object) -> None:
        cases = yaml.safe_load(config_map["data"]["cases.yaml"])
        config_map["data"]["cases.yaml"] = yaml.safe_dump(cases[:1])

    assert judge(edited("policy-data", fewer), coverage=100) == 1
    assert judge(edited("policy-data", fewer), coverage=0) == 0


def test_bundles_of_two_namespaces_are_tested_apart() -> None:
    here = bundle("policy-tools")
    there = {**here.value, "metadata": {**mapping(here.at("metadata")), "namespace": "other"}}
    assert judge(stream(here, Manifest(value=there)), coverage=100) == 0


def test_files_lie_as_the_kubelet_lays_them(tmp_path: Path) -> None:
    lay_out(bundle("policy-tools"), tmp_path / "tools")
    assert (tmp_path / "tools" / "..data").is_symlink()
    assert (tmp_path / "tools" / "model.conf").readlink() == Path("..data/model.conf")
    shipped = K8S.parent / "casbin_models" / "tools"
    for name in ("model.conf", "policy.csv", "bundle.yaml", "cases.yaml"):
        assert (tmp_path / "tools" / name).read_text() == (shipped / name).read_text()


def test_every_bundle_is_generated_with_every_file_that_the_loader_reads() -> None:
    read = {"model.conf", "bundle.yaml", "cases.yaml", "roles.csv"}
    for directory in (K8S.parent / "casbin_models").iterdir():
        if directory.is_dir():
            files = {
                file.name
                for file in directory.iterdir()
                if file.name in read or file.match("policy*.csv")
            }
            assert set(mapping(bundle(f"policy-{directory.name}").at("data"))) == files
