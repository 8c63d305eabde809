"""Render every file of `points/` into `rendered/`. `--check` only compares.

python envoy/generate.py [--check]
"""

import sys
from pathlib import Path

from authz_server.envoy_config.bootstrap import bootstrap_tree
from authz_server.envoy_config.spec_file import parse_spec
from authz_server.envoy_config.text import Form, written

HERE = Path(__file__).parent


def rendered(point: Path) -> str:
    """Return what `authz-server envoy render` prints for the file `point`, and where it is from."""
    spec = parse_spec(point.read_bytes(), file=str(point))
    tree = bootstrap_tree(
        spec.points, node=spec.node, admin_socket=spec.admin_socket, outbound=spec.outbound
    )
    head = f"# authz-server envoy render envoy/points/{point.name}\n"
    return head + written(tree, Form.YAML)


def main() -> int:
    """Write the files, or tell which are not what would be written."""
    stale = []
    for point in sorted((HERE / "points").glob("*.yaml")):
        target, text = HERE / "rendered" / point.name, rendered(point)
        if "--check" not in sys.argv[1:]:
            target.write_text(text)
        elif not target.exists() or target.read_text() != text:
            stale.append(str(target))
    for path in stale:
        print(f"{path} is not current: run `make docs`")  # noqa: T201
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
