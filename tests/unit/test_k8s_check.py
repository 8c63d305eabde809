"""`make k8s-check` passes on what we ship, says what it skipped, and names what is wrong."""

import os
import sys
from pathlib import Path

import pytest

from k8s import check
from k8s.checking.crds import MODULES, extension_schemas
from k8s.checking.kustomize import KustomizeError, build, parse
from k8s.checking.references import External
from tests.harness.kustomizations import (
    CENTRAL,
    DAEMONSET,
    K8S,
    SIDECAR,
    built,
    command,
    every_fault,
    external,
)

EXAMPLES = [f"examples/{name}" for name in ("central-client", "istio", "envoy-gateway")]


@pytest.mark.parametrize(
    "directory",
    ["base", CENTRAL, DAEMONSET, SIDECAR, "jobs/migrate", *EXAMPLES, "examples/agentgateway"],
)
def test_what_we_ship_has_no_fault(directory: str) -> None:
    assert every_fault(built(directory)) == []
    moved = check.prefixed(command(), K8S / directory)
    assert list(check.own_faults(moved, external())) == []


def test_every_directory_that_is_applied_is_checked() -> None:
    names = {str(path.relative_to(K8S)) for path in check.targets()}
    applied = {"base", CENTRAL, DAEMONSET, SIDECAR, "jobs/migrate"}
    assert names == {*applied, *EXAMPLES, "examples/agentgateway"}


def test_a_namespace_that_is_changed_in_one_place_only_is_found(tmp_path: Path) -> None:
    """Kustomize moves the objects; which namespace SPIRE is told of is a label in a selector."""
    overlay = os.path.relpath(K8S / CENTRAL, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(f"namespace: blue\nresources: [{overlay!r}]\n")
    moved = build(command(), tmp_path)
    faults = [str(fault) for fault in check.own_faults(moved, external())]
    (line,) = [found for found in faults if "no ClusterSPIFFEID selects it" in found]
    assert line.startswith("Deployment/blue/authz-server: ")


def test_a_prefix_that_breaks_a_reference_is_found(tmp_path: Path) -> None:
    """A name that only looks like a reference stays behind when the object is renamed."""
    (tmp_path / "kustomization.yaml").write_text("resources: [objects.yaml]\n")
    (tmp_path / "objects.yaml").write_text(
        "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {name: keys}\n---\n"
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: work}\n"
        "spec: {template: {spec: {volumes: [{name: c, csi: {driver: keys, readOnly: true}}]}}}\n"
    )
    line = "no CSIDriver `keys` is here"
    plain = parse((tmp_path / "objects.yaml").read_text())
    assert not [f for f in check.own_faults(plain, External()) if line in str(f)]
    moved = check.prefixed(command(), tmp_path)
    assert [f for f in check.own_faults(moved, External()) if line in str(f)]


@pytest.mark.parametrize("stream", ["a: [b", "- 1\n- 2\n", "text"])
def test_what_is_no_manifest_is_refused(stream: str) -> None:
    with pytest.raises(KustomizeError):
        parse(stream)


def test_the_command_names_object_and_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command()
    report = check.Report()
    (tmp_path / "kustomization.yaml").write_text("resources: [objects.yaml, gone.yaml]\n")
    (tmp_path / "objects.yaml").write_text("")
    check.check([tmp_path], report)
    assert report.faulty
    assert "kustomization.yaml: " in capsys.readouterr().out

    (tmp_path / "kustomization.yaml").write_text("resources: [objects.yaml]\n")
    (tmp_path / "objects.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {port: 1, selector: {a: b}}\n"
        "---\napiVersion: example.org/v1\nkind: Odd\nmetadata: {name: o}\n"
    )
    check.check([tmp_path], report)
    said = capsys.readouterr().out
    assert "2 objects, 2 faults" in said
    assert "  Service/s: spec: Additional properties are not allowed" in said
    assert "  Service/s: spec.selector: selects no pods here" in said
    assert "skipped: no schema here for Odd of example.org/v1" in said
    assert "not run here: a cluster" in said


def test_a_sound_directory_is_no_fault_and_the_exit_code_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command()
    (tmp_path / "kustomization.yaml").write_text("resources: [account.yaml]\n")
    (tmp_path / "account.yaml").write_text(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\n"
    )
    monkeypatch.setattr(sys, "argv", ["check", str(tmp_path)])
    assert check.main() == 0
    (tmp_path / "account.yaml").write_text("apiVersion: v1\nkind: ServiceAccount\nname: a\n")
    assert check.main() == 1
    capsys.readouterr()


def test_without_anything_to_build_with_it_says_that_nothing_was_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert check.main() == 3
    assert "nothing was checked" in capsys.readouterr().out


def test_without_go_the_schemas_of_extensions_are_skipped_aloud(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found, missing = extension_schemas()
    assert sorted(kind for _, kind in found) == ["AgentgatewayPolicy", "ClusterSPIFFEID"]
    assert [line.partition(":")[0] for line in missing] == [module.group for module in MODULES]


def test_a_module_with_other_files_than_pinned_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Go says what it downloaded; the hash is compared before a file of it is read."""
    (tmp_path / "go").write_text(
        """#!/bin/sh\necho '{"Dir": "/nowhere", "Sum": "h1:somethingelse="}'\n"""
    )
    (tmp_path / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _, missing = extension_schemas()
    assert len(missing) == len(MODULES)
    assert all("its hash is h1:somethingelse=" in line for line in missing)
