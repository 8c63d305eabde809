"""Render every file of `points/` into `rendered/`, and those of `k8s/`. `--check` only compares.

python envoy/generate.py [--check]
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from authz_server.envoy_config.bootstrap import bootstrap_tree
from authz_server.envoy_config.spec_file import parse_spec
from authz_server.envoy_config.text import Form, written

HERE = Path(__file__).parent


def rendered(point: Path, form: Form) -> str:
    """Return what `authz-server envoy render` prints for the file `point`."""
    spec = parse_spec(point.read_bytes(), file=str(point))
    tree = bootstrap_tree(
        spec.points, node=spec.node, admin_socket=spec.admin_socket, outbound=spec.outbound
    )
    return written(tree, form)


def files() -> Iterator[tuple[Path, str]]:
    """Return every file, and what is to be in it."""
    for point in sorted((HERE / "points").glob("*.yaml")):
        head = f"# authz-server envoy render envoy/points/{point.name}\n"
        yield HERE / "rendered" / point.name, head + rendered(point, Form.YAML)
    for point in sorted((HERE.parent / "k8s").glob("*/*/envoy.yaml")):
        yield point.with_suffix(".json"), rendered(point, Form.JSON)


def main() -> int:
    """Write the files, or tell which are not what would be written."""
    stale = []
    for target, text in files():
        if "--check" not in sys.argv[1:]:
            target.write_text(text)
        elif not target.exists() or target.read_text() != text:
            stale.append(str(target))
    for path in stale:
        print(f"{path} is not current: run `make docs`")  # noqa: T201
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
