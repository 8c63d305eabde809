"""The YAML reader agrees with PyYAML's own writer, and fails in no way but by a fault."""

import yaml
from hypothesis import given
from hypothesis import strategies as st

from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.yaml_document import YamlDocument

_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
_SCALARS = st.none() | st.booleans() | st.integers(-(10**17), 10**17) | _TEXT
_VALUES = st.recursive(
    _SCALARS,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(_TEXT, below, max_size=4),
    max_leaves=20,
)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


@given(_VALUES, st.booleans())
def test_what_pyyaml_writes_is_read_back(value: object, flow: bool) -> None:
    text = yaml.dump(value, Dumper=_NoAliases, allow_unicode=True, default_flow_style=flow)
    assert YamlDocument.parse(text.encode(), file="f").value == value


@given(st.binary(max_size=200) | st.text("{}[]:,-?&*!|>'\"%@# \n\ta1", max_size=60).map(str.encode))
def test_any_bytes_are_a_value_or_faults(data: bytes) -> None:
    faults = _faults(data)
    assert faults is None or (faults and all(f.file == "f" and f.message for f in faults))


def _faults(data: bytes) -> tuple[Fault, ...] | None:
    try:
        YamlDocument.parse(data, file="f")
    except ConfigurationError as error:
        return error.faults
    return None
