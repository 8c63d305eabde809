"""What an approval is bound to: the digest of one exact action, independent of token renewal."""

import hashlib
from collections.abc import Mapping

import rfc8785


def fingerprint(  # noqa: PLR0913
    *,
    subject: str,
    actors: tuple[str, ...],
    mode: str,
    action: tuple[str, str],
    resource: Mapping[str, str | None],
    args_sha256: str | None,
    bundle: str,
    txn: str | None,
) -> str:
    """Return hex SHA-256 over canonical JSON (RFC 8785) of everything that must not change.

    Canonical JSON keeps field boundaries, so `ab|c` and `a|bc` differ. `txn` is None unless
    `approvals.bind_txn` is set: people take longer than a root token lives. Policy revision and
    times are left out on purpose: on the retry both are judged afresh.
    """
    document = {
        "subject": subject,
        "actors": list(actors),
        "mode": mode,
        "action": list(action),
        "resource": {key: value for key, value in resource.items() if value is not None},
        "args_sha256": args_sha256,
        "bundle": bundle,
        "txn": txn,
    }
    return hashlib.sha256(rfc8785.dumps(document)).hexdigest()
