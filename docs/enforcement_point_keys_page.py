"""The page with every key of the file that `envoy render` reads, from the model of that file."""

# ruff: noqa: E501 -- the page's tables have one line a row

from collections.abc import Iterator

from annotated_types import Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from authz_server.envoy_config.spec import (
    EnvoyKeys,
    OutboundHostKeys,
    OutboundKeys,
    PdpSection,
    PointKeys,
    SvidSection,
)

_HEAD = """\
# Keys of an enforcement point

Generated from `authz_server.envoy_config.spec` by `make docs`; do not edit. What to write when is in
[enforcement points](enforcement-points.md).
"""

_SECTIONS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    (
        "A point",
        "At the top of the file, or in each of `enforcement_points`.",
        PointKeys,
    ),
    ("`pdp`", "", PdpSection),
    ("`svid`", "Either `agent`, or the three files.", SvidSection),
    (
        "The Envoy",
        "At the top of the file, beside `enforcement_points` or the keys of its one point.",
        EnvoyKeys,
    ),
    ("A way out", "Each of `outbound`.", OutboundKeys),
    ("A host of a way out", "Each of `hosts`, by its name.", OutboundHostKeys),
)


def enforcement_point_keys_page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for title, place, model in _SECTIONS:
        rows = "".join(_rows(model))
        introduction = f"{place}\n\n" if place else ""
        parts.append(f"\n## {title}\n{introduction}| key | default | |\n|---|---|---|\n{rows}")
    return "".join(parts)


def _rows(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"| `{name}` | {_default(field)} | {_meaning(field)} |\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None or field.default in ((), {}):
        return ""
    value = field.default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _meaning(field: FieldInfo) -> str:
    most = [f"; at most {bound.le}" for bound in field.metadata if isinstance(bound, Le)]
    return (field.description or "") + "".join(most)
