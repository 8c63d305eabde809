"""Write the reference pages that repeat what the code already says. `--check` only compares.

python docs/generate.py [--check]
"""

import sys
from pathlib import Path

import yaml

from authz_server.core.attributes import SCHEMA, AttributeSpec
from authz_server.servers.approvals_openapi import openapi_document

PAGES = Path(__file__).parent
sys.path.append(str(PAGES.parent))  # `tests`: the page about lint shows the samples that they run

_ATTRIBUTES_HEAD = """\
# Attributes

Generated from `authz_server.core.attributes` by `make docs`; do not edit.

What a matcher may read. `request_definition` names any of the five records, in any order:
`sub` (one party of the request), `chain` (the delegation), `act` (the action), `obj` (the resource)
and `env` (the circumstances). Anything else is a load error.

An attribute that the request does not have is `None`: equal to nothing but `None`, and an order
comparison with it is false. A map is read as `r.obj.query.page`; a key that the request gave more
than once makes the decision `POLICY_ERROR` when a matcher reads it. No string function sees more
than 4 KiB.
"""


def attributes_page() -> str:
    """Return `attributes.md`: one table for each record of the schema."""
    parts = [_ATTRIBUTES_HEAD]
    for record, members in SCHEMA.items():
        rows = [_row(f"r.{record}.{name}", spec) for name, spec in members.items()]
        parts.append(f"\n## `r.{record}`\n\n| attribute | type | meaning |\n|---|---|---|\n")
        parts.append("".join(rows))
    return "".join(parts)


def _row(name: str, spec: AttributeSpec) -> str:
    # A map's keys are the request's or the operator's own.
    shown = f"{name}.<name>" if spec.type == "map" else name
    meaning = spec.doc
    if spec.choices:
        meaning += ": " + ", ".join(f"`{choice}`" for choice in sorted(spec.choices))
    return f"| `{shown}` | {spec.type} | {meaning} |\n"


def approvals_page() -> str:
    """Return `openapi/approvals.yaml`, the description that the server also serves."""
    head = (
        "# Generated from `authz_server.servers.approvals_openapi` by `make docs`; do not edit.\n"
    )
    return head + yaml.safe_dump(openapi_document(), sort_keys=False, width=100)


def pages() -> dict[str, str]:
    """Return every generated page by its name below `docs/`."""
    from enforcement_point_keys_page import enforcement_point_keys_page
    from envoy_lint_page import envoy_lint_page

    return {
        "attributes.md": attributes_page(),
        "enforcement-point-keys.md": enforcement_point_keys_page(),
        "envoy-lint.md": envoy_lint_page(),
        "openapi/approvals.yaml": approvals_page(),
    }


def main(arguments: list[str]) -> int:
    """Write or compare every page; return 1 when `--check` finds an old one."""
    stale = 0
    for name, text in pages().items():
        page = PAGES / name
        if "--check" not in arguments:
            page.parent.mkdir(exist_ok=True)
            page.write_text(text, encoding="utf-8")
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"docs/{name} is not current: run `make docs`\n")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
