"""Whatever stands in the file: it is a configuration, or `ConfigurationError` says why not."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authz_server.core.errors import ConfigurationError
from authz_server.core.yaml_document import Path as YamlPath
from authz_server.settings import Settings, load_settings
from authz_server.settings.faults import leaves

_VALID = {
    "trust_domain": "p.org",
    "identity": {"trust_bundles": {"files": {"p.org": "b.pem"}}, "inventory": "i.yaml"},
    "delegation": {"issuers": [{"issuer": "https://sts", "jwks_file": "k.json"}]},
}
_ODD = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["unix:///", "sqlite:///", "127.0.0.1:0", "deny", "off", "plaintext", "{"])
    | st.lists(st.integers() | st.text(max_size=3), max_size=2)
    | st.dictionaries(st.text(max_size=4), st.text(max_size=3), max_size=2)
)
_PATHS = st.sampled_from(sorted(leaves(Settings)))


def _with(value: object, path: YamlPath, new: object) -> object:
    if not path:
        return new
    below = value if isinstance(value, dict) else {}
    return below | {path[0]: _with(below.get(path[0]), path[1:], new)}


@given(st.lists(st.tuples(_PATHS, st.integers(0, 3), _ODD), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_anywhere(tmp_path: Path, changes: list[tuple[YamlPath, int, object]]) -> None:
    value: object = _VALID
    for path, cut, odd in changes:
        value = _with(value, path[: max(1, len(path) - cut)], odd)
    file = tmp_path / "authz.yaml"
    file.write_text(yaml.safe_dump(value))
    try:
        loaded = load_settings(file)
    except ConfigurationError as error:
        faults = error.faults
    else:
        assert isinstance(loaded, Settings)
        return
    assert faults
    for fault in faults:
        assert fault.file == str(file)
        assert fault.message
        assert not fault.message.startswith("`` ")
        assert "pydantic" not in fault.message


def test_the_base_of_these_cases_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "authz.yaml"
    file.write_text(yaml.safe_dump(_VALID))
    load_settings(file)


@pytest.mark.parametrize("path", sorted(leaves(Settings)))
def test_a_mapping_is_no_value_of_any_key(tmp_path: Path, path: YamlPath) -> None:
    file = tmp_path / "authz.yaml"
    file.write_text(yaml.safe_dump(_with(_VALID, path, {"no": {"such": "thing"}})))
    with pytest.raises(ConfigurationError):
        load_settings(file)
