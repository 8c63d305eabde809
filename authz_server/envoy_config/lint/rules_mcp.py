"""Rules on Envoy's MCP filter: the second reading of a request, beside the PDP's own."""

from collections.abc import Iterator
from typing import Final

from authz_server.envoy_config.lint.configuration import EXT_AUTHZ, MCP, Configuration, HttpChain
from authz_server.envoy_config.lint.message import At, Message
from authz_server.envoy_config.lint.rule import (
    ERROR,
    WARNING,
    Rule,
    each,
    is_not_true,
    is_true,
)

BODY_BYTES_DEFAULT: Final = 8192  # of the filter, where nothing is set


def _filters(configuration: Configuration) -> list[Message]:
    return [settings for chain in configuration.guarded for settings in _of(chain)]


def _of(chain: HttpChain) -> list[Message]:
    return [one.settings for one in chain.filters if one.settings is not None and one.is_a(MCP)]


def _passes(settings: Message) -> Iterator[At]:
    if settings.text("traffic_mode") != "REJECT_NO_MCP":
        yield settings.at("traffic_mode")


def _believes_headers(settings: Message) -> Iterator[At]:
    if settings.text("attribute_source") == "HEADERS":
        yield settings.at("attribute_source")


def _reads_less(chain: HttpChain) -> Iterator[At]:
    bodies = (one.settings.message("with_request_body") for one in chain.questions if one.settings)
    most = max((body.number("max_request_bytes") or 0 for body in bodies if body), default=0)
    for settings in _of(chain):
        own = settings.number("max_request_body_size")
        if (BODY_BYTES_DEFAULT if own is None else own) < most:
            yield settings.at("max_request_body_size")


def _missing(configuration: Configuration) -> Iterator[At]:
    protocols: dict[int, set[str]] = {}
    for routed in configuration.routed:
        extensions = routed.extensions(routed.chain.questions[-1].name) or {}
        protocols.setdefault(id(routed.chain), set()).add(extensions.get("protocol", ""))
    for chain in configuration.guarded:
        if "mcp" in protocols.get(id(chain), set()) and not _of(chain):
            yield chain.manager.at("http_filters")


def _too_late(chain: HttpChain) -> Iterator[At]:
    asked = False
    for one in chain.filters:
        if asked and one.is_a(MCP):
            yield one.entry.at()
        asked |= one.is_a(EXT_AUTHZ)


def _guarded(configuration: Configuration) -> list[HttpChain]:
    return configuration.guarded


RULES: Final = (
    Rule(
        id="EA901",
        severity=WARNING,
        title="what is not MCP passes the MCP filter",
        why="Batches, compressed bodies and bodies of another type come without metadata, so that "
        "nothing is held against what the PDP reads.",
        fix="`traffic_mode: REJECT_NO_MCP`",
        judge=each(_filters, _passes),
    ),
    Rule(
        id="EA902",
        severity=ERROR,
        title="the MCP filter believes headers and not the body",
        why="A client names a harmless tool in `Mcp-Name` and another in the body, which the "
        "upstream runs.",
        fix="`attribute_source: VERIFY`",
        judge=each(_filters, _believes_headers),
    ),
    Rule(
        id="EA903",
        severity=WARNING,
        title="the MCP filter takes a key that stands twice",
        why="Two readers of such a body find two methods; the PDP denies it, the filter should "
        "before.",
        fix="`reject_duplicate_keys: true`",
        judge=each(_filters, is_not_true("reject_duplicate_keys")),
    ),
    Rule(
        id="EA904",
        severity=WARNING,
        title="the MCP filter reads less of a body than the PDP",
        why="Calls that policy allows are refused for their size, or pass without metadata.",
        fix="`max_request_body_size` as large as `max_request_bytes` of ext_authz",
        judge=each(_guarded, _reads_less),
    ),
    Rule(
        id="EA905",
        severity=WARNING,
        title="the MCP filter stops reading once it could route",
        why="What stands behind in the body, a second `params` among it, it does not see.",
        fix="leave `early_terminate_when_routable` out",
        judge=each(_filters, is_true("early_terminate_when_routable")),
    ),
    Rule(
        id="EA906",
        severity=WARNING,
        title="an MCP route without Envoy's MCP filter",
        why="The PDP reads the body alone; nothing else refuses what is not MCP.",
        fix="put `envoy.filters.http.mcp` in front of ext_authz",
        judge=_missing,
    ),
    Rule(
        id="EA907",
        severity=WARNING,
        title="the MCP filter stands behind ext_authz",
        why="Its metadata come too late for the check.",
        fix="move `envoy.filters.http.mcp` in front of ext_authz",
        judge=each(_guarded, _too_late),
    ),
)
