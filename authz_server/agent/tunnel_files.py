"""Leave a delegation where the outbound Envoy finds it for the TCP tunnels of this workload.

A database driver sends no headers. Envoy takes them from two files instead, when a connection is
opened (docs/protocols.md, TCP).

SECURITY: Envoy notices a change a moment later, and the connection made in between is the earlier
grant's. A port with its directory is one person's; who works for several has one for each.
"""

import shutil
import stat
import tempfile
from pathlib import Path
from typing import Final

from authz_server.agent.received import DELEGATION_HEADERS, Delegation
from authz_server.core.errors import InvalidValueError

_CURRENT: Final = "current"
_PREFIX: Final = "delegation-"


def leave_delegation(directory: Path, delegation: Delegation | None) -> None:
    """Make `delegation` that of connections to come; None takes it away.

    `directory` is the `delegation` of the outbound Envoy, of the same account, and written by one
    process only. Root and links change together: Envoy watches for `current` being replaced. It
    refuses to start before this was called once. Raises `OSError`, and `InvalidValueError` for what
    is no header value, and for a directory that another account may write to.
    """
    headers = delegation.headers if delegation is not None else {}
    for name, value in headers.items():
        # A line end above all: Envoy would take the text as it is, and open no tunnel with it.
        if not (value.isascii() and value.isprintable()):
            raise InvalidValueError(f"`{name}` is not one line of printable ASCII")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SECURITY: who may replace `current` acts on behalf of whomever they like.
    if directory.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidValueError(f"directory `{directory}` is writable by other accounts")
    new = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=directory))  # for this account alone
    for name in DELEGATION_HEADERS:
        # An empty file is a header that is not sent.
        (new / name).write_text(headers.get(name, ""), encoding="ascii")
    link = directory / f"{_CURRENT}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(new.name)
    link.replace(directory / _CURRENT)
    for old in directory.glob(f"{_PREFIX}*"):
        if old != new:
            # SECURITY: a grant that was taken away is not left lying about.
            shutil.rmtree(old)
