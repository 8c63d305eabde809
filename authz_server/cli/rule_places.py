"""Where the rules that decided stand: file and line, while that revision is on disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from authz_server.cli.document import Document, text, texts
from authz_server.core.errors import ConfigurationError

_OTHER_REVISION: Final = "the policy on disk is another revision than the one that decided"

if TYPE_CHECKING:
    from authz_server.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class RulePlaces:
    """`file:line` of each rule that was found, by id, and what holds for all of them.

    `caveat` is empty exactly when the places are those of the revision that decided.
    """

    places: Mapping[str, str]
    caveat: str


def rule_places(settings: "Settings", document: Document) -> RulePlaces:
    """Return where the rules of `document` stand in the bundles that `settings` names.

    Only the file and line of a revision that is still on disk can be told; of another one they are
    those of today, and the caveat says so. Never raises for a policy that does not load.
    """
    from authz_server.cli.policy_sources import load_noted
    from authz_server.core.chain_cache import ChainCache
    from authz_server.reload.loader import load_snapshot

    wanted = texts(document, "rules")
    bundle = text(document, "bundle")
    try:
        noted = load_noted(settings.bundles.dir).get(bundle or "")
        snapshot = load_snapshot(settings, chains=ChainCache())
    except ConfigurationError:
        return _unknown("the policy on disk does not load now")
    if noted is None:
        return _unknown("the policy bundle that decided is not on disk any more")
    rows = {note.rule.id: note.row for note in noted.notes}
    found = {rule: f"{rows[rule].file.name}:{rows[rule].line}" for rule in wanted if rule in rows}
    recorded = text(document, "revision") or ""
    is_same = _policy_revision(recorded) == _policy_revision(snapshot.revision)
    return RulePlaces(
        places=MappingProxyType(found),
        caveat="" if is_same else _OTHER_REVISION,
    )


def _unknown(caveat: str) -> RulePlaces:
    return RulePlaces(places=MappingProxyType({}), caveat=caveat)


def _policy_revision(revision: str) -> str:
    """Return the part of a revision that policies and inventory make; the first part is trust.

    Trust that is learnt live is not on disk, so a revision of a running server never matches whole.
    """
    return ".".join(revision.split(".")[1:2])
