"""`docs/configuration.md` names every key with its default, bounds, variable and meaning."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from annotated_types import Ge, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from authz_server.core.yaml_document import Path as KeyPath
from authz_server.settings import Settings, load_settings
from authz_server.settings.approvals import ApproverIssuerSettings, WebhookSettings
from authz_server.settings.environment import variable_name
from authz_server.settings.faults import dotted, leaves
from authz_server.settings.model import BundleEndpoint, IssuerSettings

_PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def _field(model: type[BaseModel], path: KeyPath) -> FieldInfo:
    for part in path[:-1]:
        section = model.model_fields[str(part)].annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        model = section
    return model.model_fields[str(path[-1])]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.default
    if default is None or default in ((), {}):
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{', '.join(map(str, default)) if isinstance(default, tuple) else default}`"


def _meaning(field: FieldInfo) -> str:
    bounds = [str(m.ge) for m in field.metadata if isinstance(m, Ge)]
    bounds += [str(m.le) for m in field.metadata if isinstance(m, Le)]
    assert field.description, field
    return field.description + (f"; {' to '.join(bounds)}" if bounds else "")


def _rows() -> Iterator[str]:
    for path in leaves(Settings):
        field = _field(Settings, path)
        variable = variable_name(path)
        yield f"| `{dotted(path)}` | {_default(field)} | `{variable}` | {_meaning(field)} |"
    for path in leaves(IssuerSettings):
        field = _field(IssuerSettings, path)
        yield f"| `{dotted(path)}` | {_default(field)} | {_meaning(field)} |"
    for entry in (BundleEndpoint, ApproverIssuerSettings, WebhookSettings):
        for path in leaves(entry):
            field = _field(entry, path)
            yield f"| `{dotted(path)}` | {_default(field)} | {_meaning(field)} |"


def test_every_key_has_its_row_and_no_row_is_without_a_key() -> None:
    rows = [line for line in _PAGE.read_text().splitlines() if line.startswith("| `")]
    documented = [row for row in rows if not row.startswith("| `identities")]
    expected = list(_rows())
    assert documented == expected, "the rows must be:\n" + "\n".join(expected)


@pytest.mark.parametrize(
    "example",
    [
        example
        for page in (_PAGE, _PAGE.with_name("identity.md"))
        for example in re.findall(r"```yaml\n(trust_domain.*?)```", page.read_text(), re.S)
    ],
)
def test_the_examples_load(example: str, tmp_path: Path) -> None:
    path = tmp_path / "authz.yaml"
    path.write_text(example)
    load_settings(path)
