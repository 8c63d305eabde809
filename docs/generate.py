"""Write the reference pages that repeat what the code already says. `--check` only compares.

python docs/generate.py [--check]
"""

import sys
from pathlib import Path

from authz_server.core.attributes import SCHEMA, AttributeSpec

PAGES = Path(__file__).parent

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


def main(arguments: list[str]) -> int:
    """Write or compare every page; return 1 when `--check` finds an old one."""
    stale = 0
    for name, text in {"attributes.md": attributes_page()}.items():
        page = PAGES / name
        if "--check" not in arguments:
            page.write_text(text, encoding="utf-8")
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"docs/{name} is not current: run `make docs`\n")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
