"""Schemas of the extensions that the manifests use, such as Istio's and the Gateway API's.

They are taken from the Go modules that those projects publish, as Go programs take them, and kept
in the user's cache. Two projects publish no module that can be had so; for these `schemas/` has the
fields that our manifests use, written down by hand.

Rules in CEL (`x-kubernetes-validations`) are not evaluated.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from authz_server.demo.spire_programs import build_cache
from k8s.checking.documents import documents
from k8s.checking.manifest import at, mapping
from k8s.checking.schemas import Schema

_DOWNLOAD_TIMEOUT_S: Final = 300.0
_FORM: Final = 1  # of what is cached: another one whenever `closed` changes
_BY_HAND: Final = Path(__file__).parents[1] / "schemas"


@dataclass(frozen=True, slots=True, kw_only=True)
class CrdModule:
    """A Go module with definitions in it, pinned by the hash of its files (`go.sum`)."""

    path: str
    version: str
    sum: str
    files: str  # a glob below the module
    group: str  # of the definitions; others in the files are left alone

    @property
    def cached(self) -> Path:
        """Where its schemas are kept."""
        name = self.path.replace("/", "_")
        return build_cache().parent / "crds" / f"{name}@{self.version}-{self.group}-{_FORM}.json"


MODULES: Final = (
    CrdModule(
        path="istio.io/api",
        version="v1.31.4",
        sum="h1:AcnncYrlDj1PJkym7h88Gggkef4MAra8QpGaXRMsr+E=",
        files="kubernetes/customresourcedefinitions.gen.yaml",
        group="istio.io",
    ),
    CrdModule(
        path="sigs.k8s.io/gateway-api",
        version="v1.6.3",
        sum="h1:lKpJa5bGlraC/QeACvCpsHLdmO6y0iKfzVl6gzaFEYc=",
        files="config/crd/standard/*.yaml",
        group="gateway.networking.k8s.io",
    ),
    CrdModule(
        path="github.com/envoyproxy/gateway",
        version="v1.9.1",
        sum="h1:vAVp6/AlBXJ1aOhp1mxL7fNEzVEfjADUguUhm2wzxQY=",
        files="charts/gateway-crds-helm/templates/generated/*.yaml",
        group="gateway.envoyproxy.io",
    ),
    CrdModule(
        path="github.com/prometheus-operator/prometheus-operator",
        version="v0.85.0",
        sum="h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        files="example/prometheus-operator-crd/*.yaml",
        group="monitoring.coreos.com",
    ),
)


# What says something about a value, and means the same to Kubernetes and to JSON schema.
_KEPT: Final = (
    *("type", "enum", "pattern", "required", "minimum", "maximum", "minLength", "maxLength"),
    *("minItems", "maxItems", "minProperties", "maxProperties"),
)


class CrdMissingError(Exception):
    """A module cannot be had here."""


def extension_schemas() -> tuple[Mapping[tuple[str, str], Schema], Sequence[str]]:
    """Return the schemas by `apiVersion` and kind, and a line for each that cannot be had."""
    found: dict[tuple[str, str], Schema] = dict(_written_by_hand())
    missing = []
    for module in MODULES:
        try:
            found |= _of_module(module)
        except CrdMissingError as error:
            missing.append(f"{module.group}: {error}")
    return found, missing


def _written_by_hand() -> Iterator[tuple[tuple[str, str], Schema]]:
    for file in sorted(_BY_HAND.glob("*.json")):
        schema = json.loads(file.read_text("utf-8"))
        api_version = schema["properties"]["apiVersion"]["const"]
        yield (api_version, schema["properties"]["kind"]["const"]), schema


def _of_module(module: CrdModule) -> Mapping[tuple[str, str], Schema]:
    if not module.cached.exists():
        schemas = dict(_definitions(module, _download(module)))
        text = json.dumps([[*key, schema] for key, schema in schemas.items()])
        directory = module.cached.parent
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=directory, delete=False) as unfinished:
            unfinished.write(text)
        Path(unfinished.name).replace(module.cached)
    return {
        (api_version, kind): schema
        for api_version, kind, schema in json.loads(module.cached.read_text("utf-8"))
    }


def _download(module: CrdModule) -> Path:
    """Return the directory of the module's files. Raises `CrdMissingError`."""
    go = shutil.which("go")
    if go is None:
        raise CrdMissingError("no Go here to get its module with")
    argv = [go, "mod", "download", "-json", f"{module.path}@{module.version}"]
    try:
        ran = subprocess.run(  # noqa: S603 - Go, and a module of the list above
            argv,
            capture_output=True,
            text=True,
            check=False,
            timeout=_DOWNLOAD_TIMEOUT_S,
        )
        answer = json.loads(ran.stdout)
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        raise CrdMissingError(f"its Go module cannot be had: {error}") from error
    if answer.get("Sum") != module.sum:
        why = answer.get("Error") or f"its hash is {answer.get('Sum')} and not {module.sum}"
        raise CrdMissingError(f"its Go module cannot be had: {why}")
    return Path(answer["Dir"])


def _definitions(module: CrdModule, directory: Path) -> Iterator[tuple[tuple[str, str], Schema]]:
    for file in sorted(directory.glob(module.files)):
        # Some are templates of Helm charts: conditions around the whole, on lines of their own.
        lines = file.read_text("utf-8").splitlines()
        plain = "\n".join(line for line in lines if not line.lstrip().startswith("{{"))
        for document in documents(plain):
            if at(document, "kind") == "CustomResourceDefinition":
                yield from _versions(module, mapping(at(document, "spec")))


def _versions(
    module: CrdModule, spec: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, str], Schema]]:
    if not (spec["group"] == module.group or spec["group"].endswith(f".{module.group}")):
        return
    for version in spec["versions"]:
        schema = closed(version["schema"]["openAPIV3Schema"])
        # What every object has, and no definition repeats.
        schema["properties"] |= {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
        }
        yield (f"{spec['group']}/{version['name']}", spec["names"]["kind"]), schema


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a structural schema as a JSON schema that refuses fields it does not name.

    The API server drops such fields without a word; here they are faults.
    """
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: schema[key] for key in _KEPT if key in schema}
    properties = schema.get("properties")
    if properties is not None:
        result["properties"] = {name: closed(inner) for name, inner in properties.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), Mapping):
        result["additionalProperties"] = closed(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = closed(schema["items"])
    # Which fields may stand together: the schemas inside only say what is required.
    result |= {key: schema[key] for key in ("oneOf", "anyOf", "allOf", "not") if key in schema}
    return result
