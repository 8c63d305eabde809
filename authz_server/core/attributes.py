"""What a matcher may read: frozen records, and the schema that policy compilation checks against.

A missing optional attribute is `None`; an order comparison with it is false, never an error. The
maps (`labels`, `query`, `args`) hold whatever the request brought; a key that was sent more than
once holds `AMBIGUOUS`, and a matcher that reads it fails the decision instead of guessing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Kind(StrEnum):
    """What sort of identity a party is (`identities.yaml`)."""

    AGENT = "agent"
    TOOL = "tool"
    SERVICE = "service"
    PROXY = "proxy"
    HUMAN = "human"


class Role(StrEnum):
    """The part a party plays in one request."""

    CALLER = "caller"
    ACTOR = "actor"
    SUBJECT = "subject"


class Protocol(StrEnum):
    """What is really being spoken on the route."""

    HTTP = "http"
    GRPC = "grpc"
    MCP = "mcp"
    A2A = "a2a"
    TCP = "tcp"


class _Ambiguous:
    """The value of a map key that the request gave more than once."""

    def __repr__(self) -> str:
        return "AMBIGUOUS"


AMBIGUOUS: Final = _Ambiguous()

AttributeValue = str | bool | int | float | None | tuple[object, ...] | _Ambiguous
AttributeMap = Mapping[str, AttributeValue]
_NO_ATTRIBUTES: Final[AttributeMap] = MappingProxyType({})


def no_attributes() -> AttributeMap:
    """Return the one empty map."""
    return _NO_ATTRIBUTES


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyAttributes:
    """`r.sub`: the caller, one actor of the chain, or the subject."""

    id: str
    kind: str | None
    role: str
    trust_domain: str | None = None  # None for a human subject
    path: str | None = None
    owner: str | None = None
    purpose: str | None = None
    labels: AttributeMap = field(default_factory=no_attributes)
    assurance: str | None = None  # mtls | proxied | bearer; of the caller only


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainAttributes:
    """`r.chain`: the verified delegation chain, or its absence."""

    present: bool
    assurance: str = "none"  # none | asserted | sts | hop_signed
    mode: str | None = None  # exercise | handoff
    depth: int = 0  # number of actors
    subject: str | None = None
    subject_issuer: str | None = None
    actors: tuple[str, ...] = ()  # root first
    leaf: str | None = None
    scope: frozenset[str] = frozenset()
    purpose: str | None = None
    txn: str | None = None
    age_s: int | None = None
    expires_in_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionAttributes:
    """`r.act`: what is being done."""

    protocol: str
    name: str  # GET | package.Service/Method | tools/call | connect
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectAttributes:
    """`r.obj`: what it is done to."""

    type: str  # http | grpc | mcp_tool | mcp_resource | mcp_prompt | a2a_agent | tcp
    host: str | None = None
    path: str | None = None  # canonical, without query
    segments: tuple[str, ...] = ()
    query: AttributeMap = field(default_factory=no_attributes)
    tool: str | None = None
    uri: str | None = None
    args: AttributeMap = field(default_factory=no_attributes)  # top-level arguments
    args_sha256: str | None = None
    resource: str | None = None
    labels: AttributeMap = field(default_factory=no_attributes)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentAttributes:
    """`r.env`: when and where."""

    now: int  # Unix seconds
    hour_utc: int  # 0..23
    weekday: int  # ISO 8601: Monday 1 .. Sunday 7
    source_ip: str | None
    listener: str | None  # address:port the request came in by
    domain: str  # enforcement domain of the bundle
    bundle: str
    sni: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """Everything one evaluation may depend on.

    `caller` is always there. `actors` are the chain's actors, root first (the caller among them in
    exercise mode); `subject` is the party on whose behalf, None without a chain.
    """

    caller: PartyAttributes
    actors: tuple[PartyAttributes, ...] = ()
    subject: PartyAttributes | None = None
    chain: ChainAttributes
    act: ActionAttributes
    obj: ObjectAttributes
    env: EnvironmentAttributes


class AttributeType(StrEnum):
    """The type of an attribute, as policy compilation needs to know it."""

    STRING = "string"
    BOOL = "bool"
    INT = "int"
    SET = "set of strings"
    LIST = "list of strings"
    MAP = "map"


@dataclass(frozen=True, slots=True)
class AttributeSpec:
    """Type and meaning of one attribute. `choices` is empty where any value is possible."""

    type: AttributeType
    doc: str
    choices: frozenset[str] = field(default=frozenset())


_S, _B, _I = AttributeType.STRING, AttributeType.BOOL, AttributeType.INT


def _one_of(doc: str, *choices: str) -> AttributeSpec:
    return AttributeSpec(_S, doc, frozenset(choices))


# The single source of the attribute reference in the docs and of "unknown attribute" load errors.
# A test holds it equal to the fields of the records above.
SCHEMA: Final[Mapping[str, Mapping[str, AttributeSpec]]] = {
    "sub": {
        "id": AttributeSpec(_S, "SPIFFE ID, or the subject as its issuer names it"),
        "kind": _one_of("kind of identity", *Kind),
        "role": _one_of("part played in this request", *Role),
        "trust_domain": AttributeSpec(_S, "trust domain of a SPIFFE ID"),
        "path": AttributeSpec(_S, "path of a SPIFFE ID"),
        "owner": AttributeSpec(_S, "accountable owner from the inventory"),
        "purpose": AttributeSpec(_S, "declared purpose from the inventory"),
        "labels": AttributeSpec(AttributeType.MAP, "labels from the inventory"),
        "assurance": _one_of("how the caller was proved", "mtls", "proxied", "bearer"),
    },
    "chain": {
        "present": AttributeSpec(_B, "whether a verified chain came with the request"),
        "assurance": _one_of("how hops were proved", "none", "asserted", "sts", "hop_signed"),
        "mode": _one_of("presentation", "exercise", "handoff"),
        "depth": AttributeSpec(_I, "number of actors"),
        "subject": AttributeSpec(_S, "on whose behalf"),
        "subject_issuer": AttributeSpec(_S, "issuer of the root grant"),
        "actors": AttributeSpec(AttributeType.LIST, "actors, root first"),
        "leaf": AttributeSpec(_S, "last actor"),
        "scope": AttributeSpec(AttributeType.SET, "scope left at the leaf"),
        "purpose": AttributeSpec(_S, "`tctx.purpose` of the root grant"),
        "txn": AttributeSpec(_S, "transaction id"),
        "age_s": AttributeSpec(_I, "seconds since the root grant was issued"),
        "expires_in_s": AttributeSpec(_I, "seconds until the first part of the chain expires"),
    },
    "act": {
        "protocol": _one_of("protocol spoken", *Protocol),
        "name": AttributeSpec(_S, "method, RPC, MCP method or `connect`"),
        "read_only": AttributeSpec(_B, "whether the action is known not to change anything"),
    },
    "obj": {
        "type": _one_of(
            "kind of resource",
            "http",
            "grpc",
            "mcp_tool",
            "mcp_resource",
            "mcp_prompt",
            "mcp_session",
            "a2a_agent",
            "tcp",
        ),
        "host": AttributeSpec(_S, "canonical host without port"),
        "path": AttributeSpec(_S, "canonical path without query"),
        "segments": AttributeSpec(AttributeType.LIST, "path split at `/`"),
        "query": AttributeSpec(AttributeType.MAP, "query parameters, decoded"),
        "tool": AttributeSpec(_S, "MCP tool or prompt name"),
        "uri": AttributeSpec(
            _S, "MCP resource URI, A2A task id, or `tcp://host:port` of a CONNECT tunnel"
        ),
        "args": AttributeSpec(
            AttributeType.MAP,
            "arguments: MCP's, A2A's (protocols.md), and those the bundle declares",
        ),
        "args_sha256": AttributeSpec(_S, "SHA-256 of the arguments' RFC 8785 form, hex"),
        "resource": AttributeSpec(_S, "`resource` of the route's context extensions"),
        "labels": AttributeSpec(AttributeType.MAP, "`label.*` of the route's context extensions"),
    },
    "env": {
        "now": AttributeSpec(_I, "Unix seconds"),
        "hour_utc": AttributeSpec(_I, "0..23"),
        "weekday": AttributeSpec(_I, "Monday 1 .. Sunday 7"),
        "source_ip": AttributeSpec(_S, "address of the immediate peer"),
        "listener": AttributeSpec(_S, "address the request came in by"),
        "domain": AttributeSpec(_S, "enforcement domain of the bundle"),
        "bundle": AttributeSpec(_S, "name of the bundle"),
        "sni": AttributeSpec(_S, "TLS server name"),
    },
}
