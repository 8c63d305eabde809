"""The identity inventory from `identities.yaml`: who is registered, and who answers for them."""

import itertools
from collections import defaultdict
from types import MappingProxyType
from typing import Final

from authz_server.core.attributes import Kind
from authz_server.core.errors import ConfigurationError, Fault, InvalidValueError
from authz_server.core.identities import Identity, Inventory
from authz_server.core.spiffe import SpiffeId, SpiffeIdPattern
from authz_server.core.suggestion import did_you_mean
from authz_server.core.yaml_document import Path, YamlDocument, YamlValue
from authz_server.identity.file_content import FileContent
from authz_server.identity.pattern_overlap import overlap

INVENTORY_BYTES_MAX: Final = 16 * 1024 * 1024  # some 100,000 entries
PATTERNS_MAX: Final = 1000  # a look-up tries one after the other, on every request
TEXT_CHARS_MAX: Final = 1024  # owners go into every record (limits.RECORD_FIELD_CHARS_MAX)

_KEYS: Final = ("id", "kind", "owner", "purpose", "labels")


def parse_inventory(file: FileContent) -> Inventory:
    """Return the inventory written in `file`.

    Raises `ConfigurationError` with every fault: an unknown key, a malformed id, a kind that does
    not exist, an id listed twice, and two patterns of equal specificity that some id would match
    both, because which of them counts would depend on their order.
    """
    document = YamlDocument.parse(file.data, file=str(file.path))
    return _InventoryReader(document).read()


class _InventoryReader:
    """Reads one document and collects its faults."""

    def __init__(self, document: YamlDocument) -> None:
        self._document = document
        self._faults: list[Fault] = []

    def read(self) -> Inventory:
        found = [
            (index, identity)
            for index, entry in enumerate(self._entries())
            if (identity := self._identity(entry, ("identities", index))) is not None
        ]
        self._check_repetition(found)
        self._check_ties([pair for pair in found if "*" in pair[1].id])
        if self._faults:
            raise ConfigurationError(self._faults)
        return Inventory.of(identity for _, identity in found)

    def _entries(self) -> list[YamlValue]:
        top = self._document.value
        if not isinstance(top, dict):
            self._refuse((), "must be a mapping with the key `identities`")
            return []
        self._check_keys(top, (), ("identities",))
        entries = top.get("identities")
        if not isinstance(entries, list):
            self._refuse(("identities",), "`identities` must be a list")
            return []
        return entries

    def _identity(self, entry: YamlValue, path: Path) -> Identity | None:
        if not isinstance(entry, dict):
            self._refuse(path, "an identity must be a mapping")
            return None
        self._check_keys(entry, path, _KEYS)
        id_ = self._id(entry, path)
        kind = self._kind(entry, path)
        owner = self._text(entry, path, "owner")
        purpose = self._text(entry, path, "purpose")
        labels = self._labels(entry.get("labels", {}), (*path, "labels"))
        if id_ is None or kind is None:
            return None
        return Identity(
            id=id_, kind=kind, owner=owner, purpose=purpose, labels=MappingProxyType(labels)
        )

    def _id(self, entry: dict[str, YamlValue], path: Path) -> str | None:
        id_ = self._text(entry, path, "id", required=True)
        if id_ is None:
            return None
        try:
            if "*" in id_:
                SpiffeIdPattern.parse(id_)
            elif id_.lower().startswith("spiffe:"):
                SpiffeId.parse(id_)
        except InvalidValueError as error:
            self._refuse((*path, "id"), f"`id` is not valid: {error}")
            return None
        return id_

    def _kind(self, entry: dict[str, YamlValue], path: Path) -> Kind | None:
        text = self._text(entry, path, "kind", required=True)
        if text is None:
            return None
        if text not in tuple(Kind):
            kinds = ", ".join(f"`{kind}`" for kind in Kind)
            hint = did_you_mean(text, Kind)
            self._refuse((*path, "kind"), f"`kind` must be one of {kinds}{hint}")
            return None
        return Kind(text)

    def _labels(self, labels: YamlValue, path: Path) -> dict[str, str]:
        if not isinstance(labels, dict):
            self._refuse(path, "`labels` must be a mapping")
            return {}
        found = {name: self._text(labels, path, name) for name in labels}
        return {name: text for name, text in found.items() if text is not None}

    def _text(
        self, holder: dict[str, YamlValue], path: Path, key: str, *, required: bool = False
    ) -> str | None:
        if key not in holder:
            if required:
                self._refuse(path, f"`{key}` is required")
            return None
        value = holder[key]
        if not isinstance(value, str):
            self._refuse((*path, key), f"`{key}` must be text; quote it")
        elif not value.isprintable() or not 0 < len(value) <= TEXT_CHARS_MAX:
            message = f"`{key}` must be 1 to {TEXT_CHARS_MAX} printable characters"
            self._refuse((*path, key), message)
        else:
            return value
        return None

    def _check_keys(self, holder: dict[str, YamlValue], path: Path, known: tuple[str, ...]) -> None:
        for key in holder:
            if key not in known:
                message = f"`{key}` is not a known key{did_you_mean(key, known)}"
                self._faults.append(self._document.key_fault((*path, key), message))

    def _check_repetition(self, found: list[tuple[int, Identity]]) -> None:
        first: dict[str, int] = {}
        for index, identity in found:
            if identity.id in first:
                line = self._line(first[identity.id])
                self._refuse_id(index, f"`{identity.id}` is already listed in line {line}")
            first.setdefault(identity.id, index)

    def _check_ties(self, found: list[tuple[int, Identity]]) -> None:
        if len(found) > PATTERNS_MAX:
            self._refuse_id(found[PATTERNS_MAX][0], f"there are more than {PATTERNS_MAX} patterns")
            return
        rivals: dict[object, list[tuple[int, str]]] = defaultdict(list)
        for index, identity in found:
            rivals[SpiffeIdPattern.parse(identity.id).specificity].append((index, identity.id))
        for group in rivals.values():
            for (index, one), (later, other) in itertools.combinations(group, 2):
                if one != other and overlap(one, other):
                    message = (
                        f"pattern `{other}` and `{one}` in line {self._line(index)} "
                        "are equally specific and can match the same id"
                    )
                    self._refuse_id(later, message)

    def _line(self, index: int) -> int:
        return self._document.fault(("identities", index, "id"), "").line

    def _refuse_id(self, index: int, message: str) -> None:
        self._refuse(("identities", index, "id"), message)

    def _refuse(self, path: Path, message: str) -> None:
        self._faults.append(self._document.fault(path, message))
