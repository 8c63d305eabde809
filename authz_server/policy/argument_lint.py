"""Which arguments a rule reads, and whether a request over HTTP can be the one it judges.

MCP and A2A requests carry their arguments under names. An HTTP request has none but those that
`arguments` in `bundle.yaml` declares, so a rule that reads another one there meets nothing, ever.
"""

from collections.abc import Iterable
from typing import Final

from authz_server.core.attributes import Protocol
from authz_server.policy.render import reads
from authz_server.policy.terms import Constant, Equal, MapValue, OneOf, Slot, Term

Protocols = frozenset[str]

_ALL: Final[Protocols] = frozenset(Protocol)
_HTTP: Final[Protocols] = frozenset({Protocol.HTTP})
_HTTP_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def arguments_read(terms: Iterable[Term]) -> frozenset[str]:
    """Return the names of the arguments that the conditions `terms` read."""
    return frozenset(
        read.key
        for term in terms
        for read in reads(term)
        if isinstance(read, MapValue) and (read.slot.record, read.slot.field) == ("obj", "args")
    )


def protocols_admitted(terms: Iterable[Term]) -> Protocols:
    """Return the protocols of requests that can meet all of `terms`, where they say so plainly."""
    admitted = _ALL
    for term in terms:
        match term:
            case Equal(left=Slot() as slot, right=Constant() as value):
                admitted &= _spoken(slot, (value,))
            case Equal(left=Constant() as value, right=Slot() as slot):
                admitted &= _spoken(slot, (value,))
            case OneOf(item=Slot() as slot, options=options):
                admitted &= _spoken(slot, options)
            case _:
                pass
    return admitted


def warning(undeclared: str, admitted: Protocols, *, declares: bool) -> str | None:
    """Return what to say of reading an argument that is not declared; None: nothing.

    A bundle that declares none is taken for one that no HTTP route uses, unless the rule says HTTP.
    """
    if not admitted & _HTTP or not (declares or admitted == _HTTP):
        return None
    return f"no HTTP request has the argument `{undeclared}`: `arguments` does not declare it"


def _spoken(slot: Slot, options: tuple[Term, ...]) -> Protocols:
    values = [str(option.value) for option in options if isinstance(option, Constant)]
    if len(values) < len(options):
        return _ALL
    match slot.record, slot.field:
        case "act", "protocol":
            return frozenset(values)
        case "act", "name":
            # MCP's GET and DELETE open and end sessions, and have no arguments.
            return _HTTP if _HTTP_METHODS.issuperset(values) else _ALL - _HTTP
        case "obj", "type":
            return frozenset(value.partition("_")[0] for value in values)
        case "obj", "tool" | "uri":
            return _ALL - _HTTP
        case _:
            return _ALL
