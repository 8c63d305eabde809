"""The files an outbound Envoy reads the delegation of a TCP tunnel from."""

from pathlib import Path

import pytest

from authz_server.agent import Delegation
from authz_server.agent.tunnel_files import leave_delegation
from authz_server.core.errors import InvalidValueError
from authz_server.envoy_config.tcp_outbound import CURRENT, DELEGATION_HEADERS

ONE = Delegation(root="a.b.c", chain="d.e.f, g.h.i")


def left(directory: Path) -> list[str]:
    return [(directory / CURRENT / name).read_text() for name in DELEGATION_HEADERS]


def test_both_files_are_what_the_headers_would_be(tmp_path: Path) -> None:
    leave_delegation(tmp_path / "deep" / "run", ONE)
    assert left(tmp_path / "deep" / "run") == ["a.b.c", "d.e.f, g.h.i"]


def test_a_root_alone_leaves_no_links(tmp_path: Path) -> None:
    leave_delegation(tmp_path, ONE)
    leave_delegation(tmp_path, Delegation(root="x.y.z"))
    assert left(tmp_path) == ["x.y.z", ""]


def test_what_is_taken_away_is_gone(tmp_path: Path) -> None:
    leave_delegation(tmp_path, ONE)
    leave_delegation(tmp_path, None)
    assert left(tmp_path) == ["", ""]
    assert len([*tmp_path.iterdir()]) == 2  # the link, and what it leads to
    assert not any("a.b.c" in file.read_text() for file in tmp_path.rglob("*-*") if file.is_file())


def test_a_writer_that_was_killed_is_no_hindrance(tmp_path: Path) -> None:
    leave_delegation(tmp_path, ONE)
    (tmp_path / f"{CURRENT}.new").symlink_to("delegation-of-the-dead")
    leave_delegation(tmp_path, Delegation(root="x.y.z"))
    assert left(tmp_path)[0] == "x.y.z"


@pytest.mark.parametrize("root", ["a.b.c\n", "a.b.c\r\nx-other: 1", "a\x00", "ä.b.c"])
def test_what_is_no_header_value_changes_nothing(root: str, tmp_path: Path) -> None:
    leave_delegation(tmp_path, ONE)
    with pytest.raises(InvalidValueError, match="txn-token"):
        leave_delegation(tmp_path, Delegation(root=root))
    assert left(tmp_path)[0] == "a.b.c"


def test_nobody_else_may_read_them(tmp_path: Path) -> None:
    leave_delegation(tmp_path / "run", ONE)
    for path in (tmp_path / "run", (tmp_path / "run" / CURRENT).resolve()):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o720])
def test_nobody_else_may_replace_them(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(InvalidValueError, match="writable by other accounts"):
        leave_delegation(tmp_path, ONE)
    assert [*tmp_path.iterdir()] == []
