"""Hold objects against the schemas of Kubernetes and of the extensions they use, offline.

Kubernetes' own are in the package kubernetes-validate, in the form that refuses unknown fields.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Final

from jsonschema import Draft202012Validator, ValidationError  # type: ignore[import-untyped]
from jsonschema.exceptions import best_match  # type: ignore[import-untyped]
from referencing import Registry, Resource

from k8s.checking.manifest import Fault, Manifest

# The oldest and the newest that these manifests are for. Sidecar containers are final since 1.33.
KUBERNETES: Final = ("1.33.0", "1.37.0")
_SCHEMAS: Final = "kubernetes-json-schema"
_MESSAGE_CHARS_MAX: Final = 300  # a message that quotes a whole pod helps nobody

# A JSON schema: what it is made of is the validator's business.
Schema = Mapping[str, Any]


class KubernetesSchemas:
    """The schemas of one version of Kubernetes."""

    def __init__(self, version: str) -> None:
        self._directory = files("kubernetes_validate") / _SCHEMAS / f"v{version}-local-strict"
        definitions = json.loads((self._directory / "_definitions.json").read_text("utf-8"))
        self._registry = Resource.from_contents(definitions) @ Registry()
        self._validators: dict[str, Draft202012Validator | None] = {}

    def validator(self, manifest: Manifest) -> Draft202012Validator | None:
        """Return what knows the kind of `manifest`, or None."""
        group, _, version = manifest.api_version.rpartition("/")
        parts = [manifest.kind.lower(), group.partition(".")[0], version]
        name = "-".join(part for part in parts if part) + ".json"
        if name not in self._validators:
            self._validators[name] = self._load(name)
        return self._validators[name]

    def _load(self, name: str) -> Draft202012Validator | None:
        file = self._directory / name
        if not file.is_file():
            return None
        schema = json.loads(file.read_text("utf-8"))
        registry = Resource.from_contents(schema) @ self._registry
        return Draft202012Validator(schema, registry=registry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schemas:
    """Everything that objects are held against. `extensions` are by `apiVersion` and kind."""

    kubernetes: Sequence[KubernetesSchemas]
    extensions: Mapping[tuple[str, str], Schema]
    _validators: dict[tuple[str, str], Draft202012Validator] = field(default_factory=dict)

    def knows(self, manifest: Manifest) -> bool:
        """Tell whether there is a schema for `manifest`."""
        return any(True for _ in self._of(manifest))

    def faults(self, manifest: Manifest) -> Iterator[Fault]:
        """Return what the schemas say against `manifest`; each thing once."""
        seen: set[tuple[str, str]] = set()
        for validator in self._of(manifest):
            for error in validator.iter_errors(manifest.value):
                fault = _fault(manifest, error)
                if (fault.field, fault.message) not in seen:
                    seen.add((fault.field, fault.message))
                    yield fault

    def _of(self, manifest: Manifest) -> Iterator[Draft202012Validator]:
        for kubernetes in self.kubernetes:
            if (validator := kubernetes.validator(manifest)) is not None:
                yield validator
        key = (manifest.api_version, manifest.kind)
        if key in self.extensions:
            if key not in self._validators:
                self._validators[key] = Draft202012Validator(self.extensions[key])
            yield self._validators[key]


def _fault(manifest: Manifest, error: ValidationError) -> Fault:
    # Of alternatives, the one that came nearest says what is wrong.
    closest = best_match(error.context) if error.context else None
    shown = closest or error
    message = shown.message
    if len(message) > _MESSAGE_CHARS_MAX:
        message = f"{message[:_MESSAGE_CHARS_MAX]}…"
    return manifest.fault(tuple(shown.absolute_path), message)
