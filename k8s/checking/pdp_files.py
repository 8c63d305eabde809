"""The files that a PDP's container sees: where each comes from, and the same laid out on a disk.

A ConfigMap volume is laid out as the kubelet does it: the files in a directory named after the
time, `..data` a link to that, each file a link through `..data`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from k8s.checking.manifest import Container, Manifest, PodTemplate, at, items, mapping, text

BUNDLE_LABELS = {"app.kubernetes.io/component": "policy-bundle"}
_WRITTEN = "..2026_01_01_00_00_00.000000001"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One directory of a container, and the volume that is seen there."""

    path: PurePosixPath
    volume: Mapping[str, object]
    index: int  # among the container's `volumeMounts`

    @property
    def config_map(self) -> str:
        """Name of the ConfigMap that is seen there, or an empty text."""
        return text(at(self.volume, "configMap", "name"))


def mounts(pod: PodTemplate, container: Container) -> Iterator[Mount]:
    """Return every mount of `container` whose volume is there."""
    volumes = {text(at(v, "name")): mapping(v) for v in items(pod.spec.get("volumes"))}
    for index, mount in enumerate(items(container.value.get("volumeMounts"))):
        name = text(at(mount, "name"))
        if name in volumes:
            path = PurePosixPath(text(at(mount, "mountPath")))
            yield Mount(path=path, volume=volumes[name], index=index)


def configuration_path(container: Container) -> PurePosixPath | None:
    """Return where the container is told that its configuration is."""
    for argument in items(container.value.get("args")):
        if text(argument).startswith("--config="):
            return PurePosixPath(text(argument).removeprefix("--config="))
    return None


def config_maps(manifests: Sequence[Manifest], namespace: str) -> Mapping[str, Manifest]:
    """Return the ConfigMaps of `namespace` by name."""
    return {m.name: m for m in manifests if m.kind == "ConfigMap" and m.namespace == namespace}


def is_bundle(manifest: Manifest) -> bool:
    """Tell whether `manifest` is the ConfigMap of a policy bundle."""
    return manifest.kind == "ConfigMap" and BUNDLE_LABELS.items() <= manifest.labels.items()


def lay_out(config_map: Manifest, directory: Path, *, written: str = _WRITTEN) -> None:
    """Write the files of `config_map` below `directory` as the kubelet does.

    Again, with another name in `written`, it is an update: `..data` is pointed at the new files in
    one step. The old ones stay.
    """
    (directory / written).mkdir(parents=True)
    for name, content in mapping(config_map.at("data")).items():
        (directory / written / name).write_text(text(content), "utf-8")
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(Path("..data") / name)
    (directory / "..data_tmp").symlink_to(written)
    (directory / "..data_tmp").replace(directory / "..data")


def lay_out_pod(
    pod: PodTemplate, container: Container, manifests: Sequence[Manifest], root: Path
) -> None:
    """Write every ConfigMap that `container` sees below `root`, at its path."""
    known = config_maps(manifests, pod.manifest.namespace)
    # Outer directories first: an inner volume is mounted into them.
    for mount in sorted(mounts(pod, container), key=lambda mount: len(mount.path.parts)):
        if mount.config_map in known:
            lay_out(known[mount.config_map], root / mount.path.relative_to("/"))
