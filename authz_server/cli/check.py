"""`authz-server check`: the decision a server would make, without a server."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

import click

from authz_server.cli.options import config_option
from authz_server.core import limits

_EPILOG = """\b
Examples:
  authz-server check --config authz.yaml < request.json
  authz-server check --config authz.yaml --now 2026-11-24T10:00:00Z < request.json
  authz-server check --config authz.yaml --binary < request.bin

\b
Exit codes: 0 allow; 1 deny or escalate; 2 the request or the configuration cannot be read.
"""

# JSON spells a byte as up to four characters (base64) and adds names; a request that is larger
# than this cannot be one that a server would read.
_INPUT_BYTES_MAX: Final = 4 * limits.CHECK_REQUEST_BYTES_MAX


class _UnreadableError(click.ClickException):
    """The request cannot be read at all, so there is nothing to decide."""

    exit_code = 2


class _Moment(click.ParamType[datetime]):
    """An RFC 3339 time with its offset."""

    name = "RFC3339"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"`{value}` is not an RFC 3339 time such as 2026-11-24T10:00:00Z", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"`{value}` has no offset; append `Z` for UTC", param, ctx)
        return moment.astimezone(UTC)


@click.command(epilog=_EPILOG)
@config_option
@click.option("--now", type=_Moment(), help="Decide as of this time. Default: the present.")
@click.option("--binary", is_flag=True, help="Read the protobuf bytes that Envoy sends, not JSON.")
@click.argument("request_file", type=click.File("rb"), default="-", metavar="[FILE]")
@click.pass_context
def command(
    ctx: click.Context,
    config: Path,
    now: datetime | None,
    binary: bool,
    request_file: IO[bytes],
) -> None:
    """Decide one CheckRequest (protobuf JSON, from FILE or standard input) and print the decision.

    No server, no network, nothing recorded: an escalation stays one, whoever may have approved it.
    """
    from authz_server.core.chain_cache import ChainCache
    from authz_server.core.decision import Verdict
    from authz_server.core.record import decision_json
    from authz_server.reload.loader import load_snapshot
    from authz_server.servers.check_service import decide, new_decision_id
    from authz_server.settings import load_settings

    data = _read(request_file, binary=binary)
    snapshot = load_snapshot(load_settings(config), chains=ChainCache())
    moment = now or datetime.now(UTC)
    started = time.perf_counter()
    decision = decide(data, snapshot, moment)
    duration_us = int((time.perf_counter() - started) * 1e6)
    document = decision_json(decision, decision_id=new_decision_id(moment), duration_us=duration_us)
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    ctx.exit(0 if decision.verdict is Verdict.ALLOW else 1)


def _read(file: IO[bytes], *, binary: bool) -> bytes:
    """Return the bytes of the CheckRequest in `file`. Raises `_UnreadableError`."""
    from authz_server.core.errors import InvalidValueError
    from authz_server.servers.wire import check_request_from_json

    data = file.read(_INPUT_BYTES_MAX + 1)
    if len(data) > _INPUT_BYTES_MAX:
        raise _UnreadableError(f"request is larger than {_INPUT_BYTES_MAX} bytes")
    if binary:
        return data
    try:
        return check_request_from_json(data)
    except InvalidValueError as error:
        raise _UnreadableError(str(error)) from error
