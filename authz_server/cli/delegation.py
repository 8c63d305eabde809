"""`authz-server delegation`: mint, look at and verify delegation chains.

Tokens are given as arguments, root first. `@FILE` reads them from a file and `-` from standard
input, in both cases separated by blanks, commas or newlines.
"""

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

import click

from authz_server.agent.delegator import LIFETIME_S, Delegator
from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.agent.svid import PemSvid
from authz_server.cli import chain_view
from authz_server.cli.listing_group import ListingGroup
from authz_server.cli.options import config_option
from authz_server.cli.terminal import examples, show, show_json
from authz_server.core import delegation, limits
from authz_server.core.chain import BoundChain, VerifiedChain
from authz_server.core.chain_cache import ChainCache
from authz_server.core.errors import InvalidValueError, RequestFault
from authz_server.core.request import Headers
from authz_server.core.spiffe import SpiffeId, TrustDomain

EXIT_NO: Final = 1
_INPUT_BYTES_MAX: Final = 4 * limits.CHAIN_TOTAL_BYTES_MAX


class _SpiffeIdType(click.ParamType[SpiffeId]):
    name = "spiffe-id"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> SpiffeId:
        try:
            return SpiffeId.parse(str(value))
        except InvalidValueError as error:
            self.fail(str(error), param, ctx)


class _TrustDomainType(click.ParamType[TrustDomain]):
    name = "trust-domain"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> TrustDomain:
        try:
            return TrustDomain.parse(str(value))
        except InvalidValueError as error:
            self.fail(str(error), param, ctx)


class _InstantType(click.ParamType[datetime]):
    name = "rfc3339"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        try:
            instant = datetime.fromisoformat(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if instant.tzinfo is None:
            self.fail("a time needs an offset, such as `Z`", param, ctx)
        return instant.astimezone(UTC)


class _TokensType(click.ParamType[tuple[str, ...]]):
    name = "token"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        text = str(value)
        try:
            if text == "-":
                text = sys.stdin.read(_INPUT_BYTES_MAX)
            elif text.startswith("@"):
                text = Path(text[1:]).read_bytes()[:_INPUT_BYTES_MAX].decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self.fail(f"cannot read tokens: {error}", param, ctx)
        return tuple(text.replace(",", " ").split())


_SPIFFE_ID = _SpiffeIdType()
_FILE = click.Path(path_type=Path, dir_okay=False)
_tokens_argument = click.argument(
    "given", metavar="[TOKEN|@FILE|-]...", nargs=-1, type=_TokensType(), default=("-",)
)
_output_option = click.option(
    "--output", type=click.Choice(["table", "json"]), default="table", help="How to print it."
)


@click.group(
    cls=ListingGroup,
    context_settings={"max_content_width": 100, "show_default": True},
    epilog=examples(
        "delegation inspect @root.jwt @link1.jwt",
        "delegation verify --config authz.yaml @root.jwt --caller spiffe://prod.example.org/agent/a",
    ),
)
def group() -> None:
    """Make, inspect and verify delegation chains: a root grant and its links."""


@group.command(
    "issue-root",
    epilog="""\b
Example:
  authz-server delegation issue-root --key dev-issuer.pem --new-key --jwks sts.jwks.json \\
    --issuer https://sts.prod.example.org --trust-domain prod.example.org \\
    --subject alice@example.org --actor spiffe://prod.example.org/agent/assistant \\
    --scope crm.read --hops 1 > root.jwt
""",
)
@click.option("--key", required=True, type=_FILE, help="Private key of the development issuer.")
@click.option("--new-key", is_flag=True, help="Create the key file if there is none.")
@click.option("--jwks", type=_FILE, help="Write the issuer's public key set here.")
@click.option("--issuer", required=True, help="`iss`, as configured under delegation.issuers.")
@click.option("--trust-domain", required=True, type=_TrustDomainType(), help="Audience.")
@click.option("--subject", required=True, help="On whose behalf.")
@click.option("--actor", required=True, type=_SPIFFE_ID, help="The agent that may act.")
@click.option("--scope", required=True, multiple=True, help="What it may do; repeatable.")
@click.option("--hops", type=click.IntRange(0, limits.LINKS_MAX), default=0, help="Links allowed.")
@click.option("--lifetime", type=click.IntRange(1), default=300, help="Seconds.")
@click.option("--purpose", help="Purpose of the transaction.")
@click.option("--kid", default="dev-1", show_default=True, help="Key id.")
def issue_root(  # noqa: PLR0913 - one parameter for each option
    *,
    key: Path,
    new_key: bool,
    jwks: Path | None,
    issuer: str,
    trust_domain: TrustDomain,
    subject: str,
    actor: SpiffeId,
    scope: tuple[str, ...],
    hops: int,
    lifetime: int,
    purpose: str | None,
    kid: str,
) -> None:
    """Print a root grant from a development issuer. Not for production: it asks nobody."""
    if new_key and not key.exists():
        created = DevelopmentIssuer.create(issuer=issuer, trust_domain=trust_domain, kid=kid)
        _write_private(key, created.key_pem)
        click.echo(f"created {key}", err=True)
    source = DevelopmentIssuer.parse(_read(key), issuer=issuer, trust_domain=trust_domain, kid=kid)
    if jwks is not None:
        _write(jwks, source.jwks() + "\n")
    click.echo(
        source.issue_root(
            subject=subject,
            actor=actor,
            scope=scope,
            hops=hops,
            lifetime_s=lifetime,
            purpose=purpose,
        )
    )


@group.command(
    epilog="""\b
Example:
  authz-server delegation link @root.jwt --svid svid.pem --key svid.key.pem \\
    --to spiffe://prod.example.org/agent/research --scope crm.read \\
    --audience https://crm.tools.example > link1.jwt
""",
)
@_tokens_argument
@click.option("--svid", required=True, type=_FILE, help="Own X509-SVID, leaf first, PEM.")
@click.option("--key", required=True, type=_FILE, help="Its private key, PEM.")
@click.option("--to", required=True, type=_SPIFFE_ID, help="Whom to hand on to.")
@click.option("--audience", required=True, multiple=True, help="Where it counts; repeatable.")
@click.option("--scope", required=True, multiple=True, help="What to hand on; repeatable.")
@click.option("--hops", type=click.IntRange(0), default=0, help="Further links allowed.")
@click.option("--lifetime", type=click.IntRange(1), default=LIFETIME_S, help="Seconds.")
def link(  # noqa: PLR0913 - one parameter for each option
    *,
    given: tuple[tuple[str, ...], ...],
    svid: Path,
    key: Path,
    to: SpiffeId,
    audience: tuple[str, ...],
    scope: tuple[str, ...],
    hops: int,
    lifetime: int,
) -> None:
    """Print the link that hands a part of a chain on, signed with one's own X509-SVID."""
    root, *chain = _flat(given)
    delegator = Delegator(PemSvid(svid, key))
    click.echo(
        delegator.link(
            root, chain, to=to, audience=audience, scope=scope, lifetime_s=lifetime, hops=hops
        )
    )


@group.command(
    epilog="""\b
Example:
  authz-server delegation inspect @root.jwt @link1.jwt
""",
)
@_tokens_argument
@_output_option
def inspect(given: tuple[tuple[str, ...], ...], output: str) -> None:
    """Show what tokens say of themselves. NOTHING IS VERIFIED: anyone can write anything."""
    tokens = _flat(given)
    click.echo("warning: decoded only, nothing here is verified", err=True)
    try:
        if output == "json":
            show_json({"verified": False, "tokens": chain_view.decoded(tokens)})
        else:
            show(chain_view.decoded_tree(tokens))
    except RequestFault as fault:
        raise InvalidValueError(fault.detail) from fault


@group.command(
    epilog="""\b
Example:
  authz-server delegation verify --config authz.yaml @root.jwt @link1.jwt \\
    --caller spiffe://prod.example.org/agent/research --audience https://crm.tools.example
""",
)
@_tokens_argument
@config_option
@click.option("--caller", required=True, type=_SPIFFE_ID, help="Who presents the chain.")
@click.option("--workload-id", type=_SPIFFE_ID, help="What stands behind the route.")
@click.option("--audience", help="The route's audience.")
@click.option("--now", type=_InstantType(), help="Judge as of this time.")
@_output_option
def verify(  # noqa: PLR0913 - one parameter for each option
    *,
    given: tuple[tuple[str, ...], ...],
    config: Path,
    caller: SpiffeId,
    workload_id: SpiffeId | None,
    audience: str | None,
    now: datetime | None,
    output: str,
) -> None:
    """Verify a chain as the server would, for one caller and one route. Exit 1 when refused.

    Revocations are not looked at.
    """
    try:
        chain = _verified(_flat(given), config, now or datetime.now(UTC))
        bound = delegation.bind(chain, caller=caller, workload_id=workload_id, audience=audience)
    except RequestFault as fault:
        _refuse(fault, output)
    _show(bound, output)


def _verified(tokens: Sequence[str], config: Path, now: datetime) -> VerifiedChain:
    from authz_server.reload.loader import load_snapshot
    from authz_server.settings import load_settings

    snapshot = load_snapshot(load_settings(config), chains=ChainCache())
    # Through the same door as a request, so that what its headers may hold is judged too.
    root, *links = (token.encode("utf-8", "surrogatepass") for token in tokens)
    fields = {delegation.ROOT_HEADER: (root,)}
    if links:
        fields[delegation.CHAIN_HEADER] = (b", ".join(links),)
    presented = delegation.presented_chain(Headers(fields=fields), snapshot.delegation)
    assert presented is not None, "there is a root header"
    return delegation.verify(
        presented,
        trust=snapshot.trust,
        policy=snapshot.delegation,
        trust_domain=snapshot.trust_domain,
        now=now,
    )


def _show(bound: BoundChain, output: str) -> None:
    if output == "json":
        show_json({"verified": True, **chain_view.verified(bound)})
    else:
        show(chain_view.verified_tree(bound))


def _refuse(fault: RequestFault, output: str) -> NoReturn:
    if output == "json":
        show_json({"verified": False, "reason": fault.reason, "detail": fault.detail})
    else:
        click.echo(f"refused: {fault.reason}: {fault.detail}")
    raise click.exceptions.Exit(EXIT_NO)


def _flat(given: Sequence[Sequence[str]]) -> list[str]:
    tokens = [token for group_of in given for token in group_of]
    if not tokens:
        raise click.UsageError("no token was given")
    return tokens


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidValueError(f"cannot read `{path}`: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidValueError(f"cannot write `{path}`: {error.strerror}") from error


def _write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner may read, never over an existing one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        raise InvalidValueError(f"cannot create `{path}`: {error.strerror}") from error
