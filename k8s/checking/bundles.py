"""Whether a PDP sees its files: configuration, inventory, keys, bundles, room for its outbox."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

import yaml

from authz_server.settings.ledger import OUTBOX_RECORDS_DEFAULT
from k8s.checking.documents import documents
from k8s.checking.manifest import (
    Container,
    Fault,
    Manifest,
    PodTemplate,
    at,
    mapping,
    pod_templates,
    text,
)
from k8s.checking.pdp_files import Mount, config_maps, configuration_path, is_bundle, mounts
from k8s.checking.references import External

_RECORD_BYTES: Final = 4_400  # a record with its indexes, docs/ledger.md
# SQLite's log, and what a batch that was shipped leaves until it is used again.
_VOLUME_FACTOR: Final = 2
_UNITS: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "M": 10**6, "G": 10**9}


def bundle_faults(manifests: Sequence[Manifest], external: External) -> Iterator[Fault]:
    """Return what a PDP of `manifests` would miss."""
    for pod in pod_templates(manifests):
        for container in pod.containers():
            if container.is_pdp:
                view = _View(pod, container, manifests, external)
                yield from view.faults()


class _View:
    """One PDP's container, and the objects it is made with."""

    def __init__(
        self,
        pod: PodTemplate,
        container: Container,
        manifests: Sequence[Manifest],
        external: External,
    ) -> None:
        self._pod = pod
        self._container = container
        self._known = config_maps(manifests, pod.manifest.namespace)
        self._external = external
        self._mounts = tuple(mounts(pod, container))
        self._bundles = {name for name, m in self._known.items() if is_bundle(m)}

    def faults(self) -> Iterator[Fault]:
        path = configuration_path(self._container)
        content = self._content(path) if path else None
        if path is None or content is None:
            yield self._fault("args", "names no configuration that is mounted")
            return
        try:
            configuration = mapping(next(documents(content), None))
        except yaml.YAMLError as error:
            yield self._fault("args", f"names a configuration that is not YAML: {error}")
            return
        yield from self._mounted_faults(path.parent, configuration)
        yield from self._file_faults(path.parent, configuration)
        yield from self._outbox_faults(path.parent, configuration)

    def _mounted_faults(
        self, base: PurePosixPath, configuration: Mapping[str, object]
    ) -> Iterator[Fault]:
        directory = _joined(base, text(at(configuration, "bundles", "dir")) or "casbin_models")
        seen = set()
        for mount in self._mounts:
            if directory not in mount.path.parents:
                continue
            field = f"volumeMounts[{mount.index}].mountPath"
            if mount.path.parent != directory:
                yield self._fault(field, f"must be a direct sub-directory of {directory}")
            elif mount.config_map not in self._bundles:
                yield self._fault(field, "is no ConfigMap labelled as a policy bundle")
            else:
                seen.add(mount.config_map)
                yield from self._name_faults(mount, field)
        for name in sorted(self._bundles - seen):
            yield self._fault("volumeMounts", f"the bundle `{name}` is not below {directory}")

    def _name_faults(self, mount: Mount, field: str) -> Iterator[Fault]:
        described = text(self._known[mount.config_map].at("data", "bundle.yaml"))
        try:
            name = at(next(documents(described), None), "name")
        except yaml.YAMLError:
            return  # the gate says so, with line and column
        if name != mount.path.name:
            yield self._fault(field, f"must end in the bundle's name, `{name}`")

    def _file_faults(
        self, base: PurePosixPath, configuration: Mapping[str, object]
    ) -> Iterator[Fault]:
        for keys in (
            ("identity", "inventory"),
            ("ledger", "signing_key"),
            ("ledger", "subject_key"),
            ("tls", "certificate"),
            ("tls", "private_key"),
        ):
            file = at(configuration, *keys)
            if isinstance(file, str) and not self._has(_joined(base, file)):
                wrong = f"`{'.'.join(keys)}`, {_joined(base, file)}, is not there"
                yield self._fault("volumeMounts", wrong)
        socket = text(at(configuration, "identity", "trust_bundles", "socket"))
        if socket:
            mount = self._mount_of(PurePosixPath(socket.removeprefix("unix://")))
            if mount is None or at(mount.volume, "csi", "driver") != "csi.spiffe.io":
                yield self._fault("volumeMounts", f"the agent's socket, {socket}, is not there")

    def _outbox_faults(
        self, base: PurePosixPath, configuration: Mapping[str, object]
    ) -> Iterator[Fault]:
        # A volume that overflows evicts the pod, together with the records in it.
        outbox = _joined(base, text(at(configuration, "ledger", "outbox")) or "authz-outbox.db")
        mount = self._mount_of(outbox)
        if mount is None or mount.path == base:
            yield self._fault("volumeMounts", f"no volume holds the outbox, {outbox}")
            return
        records = at(configuration, "ledger", "outbox_records_max")
        count = records if isinstance(records, int) else OUTBOX_RECORDS_DEFAULT
        needed = count * _RECORD_BYTES * _VOLUME_FACTOR
        size = _bytes(at(mount.volume, "emptyDir", "sizeLimit"))
        if "emptyDir" in mount.volume and size < needed:
            wrong = f"{count} records may take {needed} bytes, and its volume holds {size}"
            yield self._fault("volumeMounts", f"the outbox overflows: {wrong}")
        limit = at(self._container.value, "resources", "limits", "ephemeral-storage")
        if "emptyDir" in mount.volume and _bytes(limit) <= size:
            wrong = "must be above the size of the outbox's volume"
            yield self._fault("resources.limits.ephemeral-storage", wrong)

    def _mount_of(self, file: PurePosixPath) -> Mount | None:
        holding = [mount for mount in self._mounts if mount.path in file.parents]
        return max(holding, key=lambda mount: len(mount.path.parts), default=None)

    def _has(self, file: PurePosixPath) -> bool:
        mount = self._mount_of(file)
        if mount is None:
            return False
        secret = text(at(mount.volume, "secret", "secretName"))
        if secret:
            return file.name in self._external.keys.get(("Secret", secret), frozenset())
        return self._content(file) is not None

    def _content(self, file: PurePosixPath) -> str | None:
        mount = self._mount_of(file)
        if mount is None or mount.config_map not in self._known:
            return None
        content = self._known[mount.config_map].at("data", file.name)
        return content if isinstance(content, str) else None

    def _fault(self, field: str, message: str) -> Fault:
        path = (*self._container.path, field)
        return self._pod.manifest.fault(path, message)


def _joined(base: PurePosixPath, path: str) -> PurePosixPath:
    """Return `path` as the server reads it: relative to `base`, without `..`."""
    return PurePosixPath(posixpath.normpath(base / path))


def _bytes(quantity: object) -> int:
    """Return a quantity in bytes; 0 for what is none."""
    shown = str(quantity)
    number = shown.rstrip("KMGTi")
    if not number.isdigit():
        return 0
    return int(number) * _UNITS.get(shown.removeprefix(number), 1)
