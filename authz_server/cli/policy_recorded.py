"""From a recorded decision to the attributes its rules read, with gaps where the record has them.

What a record keeps is in `core.record`. What it does not: argument values, query, the route's
labels, and all that the inventory says of the parties except kind and owner of some. An inventory
fills in the latter as it is today.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast

from authz_server.cli.document import Document, number, section, sections, texts
from authz_server.core import limits
from authz_server.core.attributes import (
    ActionAttributes,
    Attributes,
    AttributeValue,
    ChainAttributes,
    EnvironmentAttributes,
    Kind,
    ObjectAttributes,
    PartyAttributes,
    Protocol,
    Role,
    no_attributes,
)
from authz_server.core.decision import Verdict
from authz_server.core.errors import InvalidValueError, Reason
from authz_server.core.identities import Identity, Inventory
from authz_server.core.spiffe import SpiffeId
from authz_server.policy.bundle import PolicyBundle
from authz_server.policy.replay import PartialRecord, UnrecordedMap

# Every other reason was found before the policy was asked, or instead of it.
_OF_POLICY: Final = frozenset(
    {
        Reason.OK,
        Reason.NO_MATCHING_RULE,
        Reason.DENIED_BY_RULE,
        Reason.ESCALATED_BY_RULE,
        Reason.APPROVAL_EXPIRED,
        Reason.POLICY_ERROR,
    }
)
_PSEUDONYM: Final = "hmac-sha256:"  # what a ledger of pseudonyms keeps in place of a subject
_SAID_BY_INVENTORY: Final = ("kind", "owner", "purpose", "labels")


def recorded_verdict(document: Document) -> Verdict | None:
    """Return what the policy said at the time; None if it was not asked.

    An approval made an allow of what the policy escalated.
    """
    reason = _string(document, "reason")
    if reason not in _OF_POLICY or not section(document, "action"):
        return None
    if reason == Reason.APPROVAL_EXPIRED or section(document, "approval"):
        return Verdict.ESCALATE
    verdict = _string(document, "verdict")
    return Verdict(verdict) if verdict in list(Verdict) else None


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """The request of one decision document; `inventory` is None where there is none to ask."""

    document: Document
    inventory: Inventory | None

    def attributes(self, bundle: PolicyBundle) -> Attributes:
        """Return what the rules of `bundle` may read. Raises `InvalidValueError`.

        The records in it are `PartialRecord`: reading what was not recorded raises `Unrecorded`.
        """
        caller = self._caller()
        moment = self._moment()
        present = bool(section(self.document, "chain"))
        return Attributes(
            caller=caller,
            actors=self._actors() if present else (),
            subject=self._subject() if present else None,
            chain=self._chain(int(moment.timestamp())),
            act=self._action(),
            obj=self._object(bundle),
            env=self._environment(moment, bundle),
        )

    def _moment(self) -> datetime:
        try:
            return datetime.fromisoformat(_string(self.document, "time") or "").astimezone(UTC)
        except ValueError as error:
            raise InvalidValueError("the record has no time") from error

    # --- parties --------------------------------------------------------------------------------

    @property
    def _caller_id(self) -> str:
        return _string(section(self.document, "principal"), "spiffe_id") or ""

    def _caller(self) -> PartyAttributes:
        principal = section(self.document, "principal")
        known = {
            "kind": _string(principal, "kind"),
            "owner": _string(self.document, "owner"),
            "assurance": _string(principal, "assurance"),
        }
        return self._workload(SpiffeId.parse(self._caller_id), Role.CALLER, known)

    def _actors(self) -> tuple[PartyAttributes, ...]:
        chain = section(self.document, "chain")
        owners = {
            _string(hop, "delegate"): _string(hop, "owner") for hop in sections(chain, "hops")
        }
        found = []
        for name in texts(chain, "actors"):
            known: dict[str, object] = {"assurance": None}
            if name in owners:
                known["owner"] = owners[name]
            if name == self._caller_id:
                principal = section(self.document, "principal")
                known |= {"assurance": "mtls", "kind": _string(principal, "kind")}
            found.append(self._workload(SpiffeId.parse(name), Role.ACTOR, known))
        return tuple(found)

    def _workload(
        self, spiffe_id: SpiffeId, role: Role, known: Mapping[str, object]
    ) -> PartyAttributes:
        identity = self.inventory.find(spiffe_id) if self.inventory else None
        return self._party(
            {
                **self._inventoried(identity),
                "id": str(spiffe_id),
                "role": role.value,
                "trust_domain": spiffe_id.trust_domain.name,
                "path": spiffe_id.path,
                **known,
            }
        )

    def _subject(self) -> PartyAttributes:
        name = _string(section(self.document, "chain"), "subject") or ""
        if name.startswith(_PSEUDONYM):
            return self._party({"role": Role.SUBJECT.value, "assurance": None})
        try:
            spiffe_id = SpiffeId.parse(name)
        except InvalidValueError:
            pass
        else:
            return self._workload(spiffe_id, Role.SUBJECT, {"assurance": None})
        identity = self.inventory.find_subject(name) if self.inventory else None
        inventoried = self._inventoried(identity)
        if inventoried and identity is None:
            inventoried["kind"] = Kind.HUMAN.value  # as `core.parties` takes whom no entry matches
        return self._party(
            {
                **inventoried,
                "id": name,
                "role": Role.SUBJECT.value,
                "trust_domain": None,
                "path": None,
                "assurance": None,
            }
        )

    def _inventoried(self, identity: Identity | None) -> dict[str, object]:
        """Return what the inventory says of one party; nothing if there is none to ask."""
        if self.inventory is None:
            return {}
        if identity is None:
            return {**dict.fromkeys(_SAID_BY_INVENTORY), "labels": no_attributes()}
        return {
            "kind": identity.kind.value,
            "owner": identity.owner,
            "purpose": identity.purpose,
            "labels": identity.labels,
        }

    def _party(self, known: dict[str, object]) -> PartyAttributes:
        known.setdefault("labels", UnrecordedMap("r.sub.labels"))
        return cast(PartyAttributes, PartialRecord("sub", **known))

    # --- chain, action, resource, environment ---------------------------------------------------

    def _chain(self, now_s: int) -> ChainAttributes:
        chain = section(self.document, "chain")
        if not chain:
            return ChainAttributes(present=False)
        actors = texts(chain, "actors")
        known: dict[str, object] = {
            "present": True,
            "assurance": _string(chain, "assurance"),
            "mode": _string(chain, "mode"),
            "depth": len(actors),
            "subject": _string(chain, "subject"),
            "subject_issuer": _string(chain, "subject_issuer"),
            "actors": actors,
            "leaf": actors[-1] if actors else None,
            "scope": frozenset(texts(chain, "scope")),
            "purpose": _string(chain, "purpose"),
            "txn": _string(chain, "txn"),
        }
        if str(known["subject"]).startswith(_PSEUDONYM):
            del known["subject"]
        hops = sections(chain, "hops")
        if actors and len(hops) >= len(actors):
            # The grant that counts for the caller is that of the last actor (core.delegation.bind).
            issued_at = number(hops[0], "issued_at")
            expires_at = number(hops[len(actors) - 1], "expires_at")
            if issued_at is not None and expires_at is not None:
                known |= {"age_s": now_s - issued_at, "expires_in_s": expires_at - now_s}
        return cast(ChainAttributes, PartialRecord("chain", **known))

    def _action(self) -> ActionAttributes:
        action = section(self.document, "action")
        return ActionAttributes(
            protocol=_string(action, "protocol") or "",
            name=_string(action, "name") or "",
            read_only=action.get("read_only") is True,
        )

    def _object(self, bundle: PolicyBundle) -> ObjectAttributes:
        resource = section(self.document, "resource")
        known: dict[str, object] = {
            name: _string(resource, name) for name in ("type", "host", "args_sha256", "resource")
        }
        for name in ("tool", "uri"):
            if len(_string(resource, name) or "") < limits.RECORD_FIELD_CHARS_MAX:
                known[name] = _string(resource, name)  # a longer one was cut
        if _string(resource, "path_sha256") is None:
            path = _string(resource, "path")
            known["path"] = path
            known["segments"] = tuple(path[1:].split("/")) if path and len(path) > 1 else ()
        known |= self._arguments(bundle, none_given=known["args_sha256"] is None)
        known["labels"] = UnrecordedMap("r.obj.labels")
        return cast(ObjectAttributes, PartialRecord("obj", **known))

    def _arguments(
        self, bundle: PolicyBundle, *, none_given: bool
    ) -> dict[str, Mapping[str, AttributeValue]]:
        """Return query and arguments: each is empty where the protocol, or no digest, says so.

        An HTTP request has the arguments that `bundle` declares. An A2A request always has some.
        """
        given = not none_given
        has_query, has_arguments = {
            Protocol.HTTP.value: (given, given and bool(bundle.arguments)),
            Protocol.MCP.value: (False, given),
            Protocol.A2A.value: (given, True),
        }.get(self._action().protocol, (False, False))
        return {
            "args": UnrecordedMap("r.obj.args") if has_arguments else no_attributes(),
            "query": UnrecordedMap("r.obj.query") if has_query else no_attributes(),
        }

    def _environment(self, moment: datetime, bundle: PolicyBundle) -> EnvironmentAttributes:
        environment = section(self.document, "environment")
        return EnvironmentAttributes(
            now=int(moment.timestamp()),
            hour_utc=moment.hour,
            weekday=moment.isoweekday(),
            source_ip=_string(environment, "source_ip"),
            listener=_string(section(self.document, "pep"), "listener"),
            domain=bundle.domain,
            bundle=_string(self.document, "bundle") or bundle.name,
            sni=_string(environment, "sni"),
        )


def _string(document: Document, name: str) -> str | None:
    """Return the string under `name`, an empty one too: to a rule it is not a missing one."""
    value = document.get(name)
    return value if isinstance(value, str) else None
